"""What each worker of a steered run has to do, under way and planned, and for how long as predicted."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from mosaicsim.runtime.forecast import Forecast
from mosaicsim.runtime.job import Job
from mosaicsim.runtime.pool import Pool
from mosaicsim.schedulers.base import AGGREGATING, Course


class Lanes:
    """The sessions of a pool's workers. It knows no clock: who asks says what time it is.

    ``planned`` has each worker's, in order, that have not started; ``running``, by number, those that have.
    ``holds``: the expert whose model an idle worker still has. ``prefetched``: the one whose weights are read
    ahead for a group. A lost worker is not ``alive``.
    """

    def __init__(self, pool: Pool, course: Course, forecast: Forecast) -> None:
        self._pool, self._course, self._forecast = pool, course, forecast
        self.planned: dict[int, deque[Job]] = {w.index: deque() for w in pool.workers}
        self.running: dict[int, Job] = {}
        self.alive = {w.index for w in pool.workers}
        self.holds: dict[int, int] = {}
        self.prefetched: dict[tuple[int, ...], int] = {}

    def of(self, worker: int) -> list[Job]:
        """Sessions of a worker: under way, then planned."""
        return [job for job in self.running.values() if worker in job.workers] + list(self.planned[worker])

    def queue(self, job: Job) -> None:
        """Plan a session behind what its workers have to do; the first of a group keeps it."""
        self.planned[job.workers[0]].append(job)

    def put_first(self, job: Job) -> None:
        """Plan a session before what its worker has planned, the aggregator's joined by its own calls.

        They would otherwise wait, the model loaded, until the last of those taken from others had ended.
        """
        lane = self.planned[job.workers[0]]
        if job.expert == AGGREGATING:
            for own in [j for j in lane if j.expert == AGGREGATING and j.workers == job.workers]:
                lane.remove(own)
                job.calls = own.calls | job.calls
        lane.appendleft(job)

    def phase(self) -> int:
        """The lowest phase with a session left: later phases wait for it."""
        planned = (lane[0].phase for lane in self.planned.values() if lane)
        return min([*planned, *(job.phase for job in self.running.values())], default=0)

    def in_turn(self, now: float) -> list[int]:
        """Workers alive, in the order in which they may start something: where few may, the busiest first."""
        if self._pool.at_once is None:
            return sorted(self.alive)
        return sorted(self.alive, key=lambda worker: (-self.backlog_s(worker, now), worker))

    def room(self, workers: Sequence[int]) -> bool:
        """Whether a session may start on these workers; a group's must be free, each of them."""
        if not set(workers) <= self.alive:
            return False
        held = [w for job in self.running.values() for w in job.workers]
        grouped = {w for job in self.running.values() if len(job.workers) > 1 for w in job.workers}
        if len(workers) > 1 and any(w in held for w in workers):
            return False
        if any(held.count(w) >= self._course.slots or w in grouped for w in workers):
            return False
        busy = set(held)
        return self._pool.at_once is None or len(busy | set(workers)) <= max(self._pool.at_once, len(busy))

    def groups(self, expert: int) -> tuple[tuple[int, ...], ...]:
        """Where a session of the expert can run."""
        if expert == AGGREGATING:
            return self._course.instances.groups
        return tuple((w.index,) for w in self._pool.workers)

    def load_s(self, group: tuple[int, ...], expert: int, *, behind: bool) -> float:
        """Seconds to bring the model there; ``behind`` another session its weights will be read ahead."""
        if len(group) == 1 and self.holds.get(group[0]) == expert:
            return 0.0
        cost = self._forecast.cost(expert, group)
        ahead = (self._course.prefetch and behind) or self.prefetched.get(group) == expert
        return cost.load_s - (cost.disk_s if ahead else 0.0)

    def loads_for_s(self, job: Job, now: float) -> float:
        """Predicted seconds for which a session has yet to load."""
        if job.number is None:
            return self.load_s(job.workers, job.expert, behind=self._is_behind(job))
        return 0.0 if job.ready else max(0.0, job.started_s + job.load_s - now)

    def left_s(self, job: Job, now: float) -> float:
        """Predicted seconds until a session is done, counted from its turn."""
        return self._forecast.left_s(job, now, self.loads_for_s(job, now))

    def wait_s(self, before: Sequence[Job], now: float) -> float:
        """Predicted seconds until a worker that has these sessions to do first can start another."""
        if len(before) < self._course.slots:
            return 0.0
        return sum(self.left_s(job, now) for job in before)

    def backlog_s(self, worker: int, now: float) -> float:
        """Predicted seconds until a worker has done what it was given."""
        return sum(self.left_s(job, now) for job in self.of(worker))

    def _is_behind(self, job: Job) -> bool:
        """Whether a planned session follows another, while which its weights can be read."""
        worker = job.workers[0]
        return self.planned[worker][0] is not job or any(
            j.workers == (worker,) for j in self.running.values()
        )
