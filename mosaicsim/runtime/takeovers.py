"""Which calls may leave their session: for a free worker, or for another session of their expert.

What is possible is said here, what pays is the scheduler's to say. Nothing is moved here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from mosaicsim.runtime.forecast import Forecast
from mosaicsim.runtime.job import Job
from mosaicsim.runtime.lanes import Lanes
from mosaicsim.schedulers.base import AGGREGATING, Course, Load, Steering


class Takeovers:
    """Puts a run's sessions before its scheduler. It knows no clock: who asks says what time it is."""

    def __init__(self, lanes: Lanes, forecast: Forecast, scheduler: Steering, course: Course) -> None:
        self._lanes, self._forecast = lanes, forecast
        self._scheduler, self._course = scheduler, course

    def for_worker(self, worker: int, asked: Collection[int], now: float) -> tuple[Job, int, bool] | None:
        """A session that a free worker should take calls of, how many, and whether they have started.

        What the worker has planned itself then waits, as may suit sessions that anyone can take later. Calls
        that the executor has to give back first are for idle workers only. An aggregator session takes every
        question that becomes ready, so it may last to the end: a worker with experts of its own planned
        starts none for others. Nothing is taken of the sessions ``asked``, by number.
        """
        found = list(self._able(worker, asked, now))
        choice = self._scheduler.relieve([load for _, load in found]) if found else None
        if choice is None:
            return None
        job, load = found[choice[0]]
        return job, min(choice[1], load.movable), load.started

    def _able(self, worker: int, asked: Collection[int], now: float) -> Iterator[tuple[Job, Load]]:
        """Sessions of other workers with calls that may go to a free worker."""
        here, lanes, forecast = (worker,), self._lanes, self._forecast
        busy = any(job.expert != AGGREGATING for job in lanes.planned[worker])
        own_s, phase = lanes.backlog_s(worker, now), lanes.phase()
        for other in sorted(lanes.alive - {worker}):
            end_s = lanes.backlog_s(other, now)
            for job in lanes.of(other):
                started = job.ready and not job.kept and self.may_go(job) > 0
                if len(job.workers) > 1 or job.stopping or not job.calls or (job.drained and not started):
                    continue
                if job.number in asked or job.phase > phase:
                    continue
                if lanes.planned[worker] and job.number is not None and not job.kept:
                    continue
                if job.expert == AGGREGATING and (busy or here not in self._course.instances.groups):
                    continue
                left_s = lanes.left_s(job, now)
                longer_s = forecast.longer_s(job, left_s) if started else 0.0
                yield (
                    job,
                    Load(
                        other,
                        job.expert,
                        len(job.calls),
                        end_s + longer_s,
                        lanes.loads_for_s(job, now) if job.number is None else 0.0,
                        forecast.cost(job.expert, job.workers),
                        forecast.cost(job.expert, here),
                        lanes.load_s(here, job.expert, behind=False),
                        own_s,
                        job.number is not None,
                        self.may_go(job) if started else len(job.kept) or len(job.calls),
                        started,
                        left_s + longer_s,
                    ),
                )

    def may_go(self, job: Job) -> int:
        """How many of a session's started calls may go."""
        if not self._course.migrate or job.stays:
            return 0
        return self._scheduler.may_go(len(job.calls), waited_for=bool(self._lanes.planned[job.workers[0]]))

    def pays(self, job: Job, n: int, worker: int) -> bool:
        """Whether taking over so many calls, fewer than asked for perhaps, still is worth the load."""
        cost, here = self._forecast.cost(job.expert, job.workers), self._forecast.cost(job.expert, (worker,))
        load = self._lanes.load_s((worker,), job.expert, behind=False)
        before = cost.predict_s(len(job.calls) + n)
        return before - max(cost.predict_s(len(job.calls)), load + here.predict_s(n)) > load

    def settled(self, asked: Collection[int]) -> list[Job]:
        """Sessions of experts under way, none of whose calls waits or moves."""
        return [
            job
            for job in self._lanes.running.values()
            if job.ready and job.calls and not job.kept and not job.stopping and job.expert != AGGREGATING
            if job.coming is None and job.number not in asked
        ]

    def to_join(self, job: Job, settled: list[Job], asked: Collection[int], now: float) -> Job | None:
        """The session of its expert that a settled session's last calls should join, if others wait."""
        planned, phase = self._lanes.planned[job.workers[0]], self._lanes.phase()
        # a group's session would still wait for its other workers
        behind = sum(len(j.calls) for j in planned if j.phase <= phase and len(j.workers) == 1)
        if not behind or job.stays or job.coming or job.number in asked:
            return None
        others = [
            other
            for other in settled
            if other is not job and other.expert == job.expert
            if other.coming is None and other.number not in asked
            if len(other.calls) + len(job.calls) <= self._forecast.cost(other.expert, other.workers).sequences
        ]
        left_s = self._lanes.left_s(job, now)
        left_s += self._forecast.longer_s(job, left_s)
        choice = self._scheduler.merge(len(job.calls), left_s, behind, [len(other.calls) for other in others])
        return None if choice is None else others[choice]
