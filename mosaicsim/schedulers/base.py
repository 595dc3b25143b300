"""The scheduler seam: a Problem goes in, a Plan comes out, and no clock is in sight.

A scheduler is pure in (its arguments, its own options): it imports no simpy, asyncio, vllm or time. Third
parties register one through the entry-point group ``mosaicsim.schedulers``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from pydantic import Field

from mosaicsim.aggregation.base import Gate
from mosaicsim.errors import MosaicsimError
from mosaicsim.validation import StrictModel
from mosaicsim.workload.calls import Calibration, CallTable, Floats, Ints

AGGREGATING = -1
"""The aggregator's number where an expert's number stands."""


@dataclass(frozen=True)
class SessionCost:
    """Profiled cost of one expert on one kind of worker; what a scheduler knows of the future.

    ``counts`` (ascending, starting at 1) and ``generate_s`` are the offline profiling sweep: seconds to
    generate for that many calibration calls in one session, load excluded. ``mean_output_tokens`` and
    ``max_output_tokens`` describe the calibration lengths. ``reasoning`` marks experts that think before
    they answer. ``sequences`` is the most the engine runs at once. ``progress``, shape (sizes, shares), is
    the part of a session's time after which 1/n, 2/n, ..., n/n of its calls have ended; empty: not known.
    ``disk_s`` is the part of ``load_s`` that weights read ahead spare.
    """

    load_s: float
    counts: Floats
    generate_s: Floats
    mean_output_tokens: float
    max_output_tokens: float
    reasoning: bool
    sequences: int = 256
    progress: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    disk_s: float = 0.0

    def ended_s(self, n_calls: float, share: float) -> float:
        """Seconds until a share of the calls of a session of ``n_calls`` has ended; 0 where not known."""
        counts, _, progress = self._columns
        if not progress:
            return 0.0
        place = share * len(progress[0])
        above = min(max(ceil(place), 1), len(progress[0]))

        def at_size(row: int) -> float:
            upper, lower = progress[row][above - 1], progress[row][above - 2] if above > 1 else 0.0
            return lower + (upper - lower) * (place - above + 1)

        return _interpolated(counts, at_size, n_calls) * self.predict_s(n_calls)

    def at_pace(self, factor: float) -> SessionCost:
        """The cost where generating takes ``factor`` times as long."""
        return replace(self, generate_s=self.generate_s * factor)

    def shared_s(self, left_s: float, n_calls: int, of: int) -> float:
        """Seconds that ``n_calls`` of a session's ``of`` calls take alone if together they take ``left_s``.

        What a session takes whatever its number of calls stays: the steps of its longest one.
        """
        fixed, slope = self.line_around(of)
        return left_s * (fixed + slope * n_calls) / max(fixed + slope * of, 1e-9) if n_calls else 0.0

    def line_around(self, n_calls: float) -> tuple[float, float]:
        """Fixed part and slope of the curve around a number of calls: its secant from 0.7 to 1.4 of it."""
        low, high = max(1.0, 0.7 * n_calls), max(2.0, 1.4 * n_calls)
        slope = max((self.predict_s(high) - self.predict_s(low)) / (high - low), 0.0)
        return max(self.predict_s(n_calls) - slope * n_calls, 0.0), slope

    def predict_s(self, n_calls: float) -> float:
        """Seconds to generate ``n_calls``: interpolated in the sweep, extended by its last slope."""
        if n_calls <= 0:
            return 0.0
        counts, seconds, _ = self._columns
        if n_calls > counts[-1] and len(counts) > 1:
            slope = (seconds[-1] - seconds[-2]) / (counts[-1] - counts[-2])
            return seconds[-1] + slope * (n_calls - counts[-1])
        return _interpolated(counts, seconds.__getitem__, n_calls)

    @cached_property
    def _columns(self) -> tuple[list[float], list[float], list[list[float]]]:
        """The sweep as plain lists: a run that is steered asks for single numbers, millions of times."""
        counts: list[float] = self.counts.tolist()
        seconds: list[float] = self.generate_s.tolist()
        progress: list[list[float]] = self.progress.tolist()
        return counts, seconds, progress


def _interpolated(x: list[float], y: Callable[[int], float], at: float) -> float:
    """``np.interp`` of one number, to the last bit, asking for two values of ``y`` only."""
    above = bisect_right(x, at)
    if above in (0, len(x)):
        return y(max(above - 1, 0))
    low = y(above - 1)
    return (y(above) - low) / (x[above] - x[above - 1]) * (at - x[above - 1]) + low


@dataclass(frozen=True)
class WorkerView:
    """A worker as a scheduler sees it.

    ``index`` is the executor's, ``backlog_s`` the predicted time for which the worker is still busy.
    """

    index: int
    name: str
    device: str
    backlog_s: float = 0.0


@dataclass(frozen=True)
class Instances:
    """A way to run the aggregator: an instance on each of ``groups`` of ``tp`` workers, at ``costs``.

    These are of calls with ``mean_prompt_tokens``.
    """

    tp: int
    groups: tuple[tuple[int, ...], ...]
    costs: tuple[SessionCost, ...]
    mean_prompt_tokens: float


@dataclass(frozen=True)
class Sharing:
    """A way to use workers: ``slots`` sessions at a time share one, each with its part of the memory.

    ``costs`` and ``instances`` are as a :class:`Problem`'s, in seconds of the worker: a session's part of
    what such sessions take together.
    """

    slots: int
    costs: tuple[tuple[SessionCost, ...], ...]
    instances: tuple[Instances, ...]


@dataclass(frozen=True)
class Rehearsed:
    """What a plan came to when it was played: seconds to the end of the expert stage, and to the end.

    ``worker_s`` is when each worker ended its last expert session.
    """

    expert_stage_s: float
    makespan_s: float
    worker_s: tuple[float, ...] = ()


class Rehearsing(Protocol):
    """Plays plans of the calls to come, with lengths and answers of calibration questions."""

    def play(self, scheduler: Scheduler, plan: Plan, problem: Problem, scene: int) -> Rehearsed:
        """Play a plan in one scene: a draw of calibration questions, the same for every plan."""
        ...


@dataclass(frozen=True)
class Problem:
    """What has to be placed: the calls left to run (without lengths), the pool, and the workers alive.

    ``call_ids`` (shape (n,)) are the rows of ``calls`` that are still to be run; ``costs[m][w]`` is
    expert m on ``workers[w]``. Experts are in first-seen order; one may have no call left. Barrier phases and
    sessions refer to ``WorkerView.index``. ``calibration`` is what the profiling run saw; ``gate`` judges the
    answers; ``instances`` are the ways to run the aggregator, the scenario's own first; ``rehearsal`` plays a
    plan on calibration questions. These three are there for a plan of a whole run only. Where sessions may
    share workers, ``costs`` are of sessions that do, and a scheduler that steers is told of all ``sharings``.
    """

    experts: tuple[str, ...]
    calls: CallTable
    call_ids: Ints
    workers: tuple[WorkerView, ...]
    costs: tuple[tuple[SessionCost, ...], ...]
    calibration: Calibration | None = None
    gate: Gate | None = None
    instances: tuple[Instances, ...] = ()
    rehearsal: Rehearsing | None = None
    sharings: tuple[Sharing, ...] = ()

    def shared_by(self, slots: int) -> Problem:
        """The problem where so many sessions share a worker: one of ``sharings``, if there are any."""
        if not self.sharings:
            return self
        sharing = next(s for s in self.sharings if s.slots == slots)
        return replace(self, costs=sharing.costs, instances=sharing.instances)

    def counts(self) -> Ints:
        """Calls left of each expert, shape (experts,): the paper's N_m."""
        counts: Ints = np.bincount(self.calls.expert[self.call_ids], minlength=len(self.experts))
        return counts.astype(np.int64)

    def calls_of(self, expert: int) -> Ints:
        """Ids of the calls left of one expert, in the order of the workload."""
        own: Ints = self.call_ids[self.calls.expert[self.call_ids] == expert]
        return own


@dataclass(frozen=True)
class OracleProblem(Problem):
    """A Problem that also tells true output lengths; only the scheduler named ``oracle`` is handed one.

    ``output_tokens`` has one entry per row of ``calls``; ``costs`` are sweeps over the true lengths, the
    longest calls of a session first.
    """

    output_tokens: Ints = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class PlannedSession:
    """One expert on one worker and the ids of the calls it takes, in the order they are queued.

    A session of phase p starts only after every session of a lower phase, on any worker, has ended.
    """

    worker: int
    expert: int
    call_ids: Ints
    phase: int = 0


@dataclass(frozen=True)
class Plan:
    """An ordered list of sessions for each worker, and the makespan the scheduler itself predicts.

    ``info`` holds deterministic facts of how the plan was found: objective, best_bound, gap, ... The rest is
    for runs that are steered (:class:`Steering`): see :class:`Course`.
    """

    sessions: tuple[PlannedSession, ...]
    predicted_s: float
    info: dict[str, float | int | str] = field(default_factory=dict)
    course: Course | None = None


@dataclass(frozen=True)
class Course:
    """What a steered run is to do beside its sessions.

    ``held`` calls start only when their question is still undecided once its other calls have ended, one at a
    time, or when a session of their expert has fewer than ``fill`` calls left. The aggregator runs as
    ``instances`` says, its calls once their question needs them (``overlap``) or after the expert stage.
    ``reserved`` workers take over no calls of others while aggregator calls may still come. With
    ``exchange``, a session with a sequence free takes the next call of another session of its expert. With
    ``prefetch``, the model a busy worker runs next is read into the host's memory. With ``migrate``, idle
    workers may take over calls that have started, and a session's last ones join another of its expert.
    ``slots`` sessions share a worker at a time, those of groups of workers apart.
    """

    held: Ints
    fill: int
    overlap: bool
    instances: Instances
    reserved: tuple[int, ...] = ()
    exchange: bool = False
    prefetch: bool = False
    migrate: bool = False
    slots: int = 1


class SchedulerOptions(StrictModel):
    """Options every scheduler takes; a policy subclasses it with its own."""

    label: str | None = Field(
        None, description="name of this entry in tables and results; null: the policy's own"
    )


class Scheduler(Protocol):
    """A policy. ``plan`` is asked once; after a lost worker it is asked again with what is left."""

    name: ClassVar[str]
    summary: ClassVar[str]
    Options: ClassVar[type[SchedulerOptions]]
    sees_lengths: ClassVar[bool]

    def __init__(self, options: SchedulerOptions) -> None: ...

    def plan(self, problem: Problem) -> Plan:
        """Place every call of ``problem.call_ids`` exactly once."""
        ...


@dataclass(frozen=True)
class Seat:
    """Where a call could go: a session's ``worker``, the calls not ended there, and its cost.

    ``weight`` is what the call counts for, in calls of average size, as do ``calls``. ``wait_s`` is
    the predicted time until that session generates, load included; 0 once it does.
    """

    worker: int
    calls: float
    weight: float
    cost: SessionCost
    wait_s: float


@dataclass(frozen=True)
class Load:
    """Calls of one session, under way or planned, of which a free worker may take some over.

    ``calls`` have not ended, ``movable`` of them may be free to go; ``end_s`` is the predicted time until its
    worker has done all it was given, ``load_s`` of it spared if no call stays there. ``cost`` is the
    session's where it is, ``cost_here`` on the free worker, where loading takes ``load_here_s`` (0: the model
    is there) and ``own_s`` is what that worker was itself given to do, after what it takes over.
    ``running``: started calls stay where they are. Unless ``started``: they go then, and all calls of the
    session together still take ``left_s``.
    """

    worker: int
    expert: int
    calls: int
    end_s: float
    load_s: float
    cost: SessionCost
    cost_here: SessionCost
    load_here_s: float
    own_s: float
    running: bool
    movable: int
    started: bool = False
    left_s: float = 0.0


@dataclass(frozen=True)
class Observed:
    """What has come of the expert calls, shape (calls,): NO_ANSWER and 0 of those that have not ended."""

    answer: Ints
    output_tokens: Ints


@runtime_checkable
class Steering(Scheduler, Protocol):
    """A scheduler that is also asked while the run goes on."""

    def seat(self, seats: Sequence[Seat]) -> int:
        """The index of the seat a call that is now to run should take."""
        ...

    def arrange(self, call_ids: Ints, observed: Observed) -> Ints:
        """The calls of a session about to start, in the order they are to be queued."""
        ...

    def may_go(self, calls: int, *, waited_for: bool) -> int:
        """How many of a session's started calls may move, others being planned there behind it or not."""
        ...

    def merge(self, calls: int, left_s: float, behind: int, others: Sequence[int]) -> int | None:
        """Which other session of their expert the started ``calls`` of one should join; None: they stay.

        They are predicted to hold their worker for ``left_s`` more, while ``behind`` calls wait for it;
        ``others`` has the calls left in each other session.
        """
        ...

    def relieve(self, loads: Sequence[Load]) -> tuple[int, int] | None:
        """For a free worker: from which load it takes how many calls; None: from none."""
        ...


def split_evenly(call_ids: Ints, parts: int) -> Sequence[Ints]:
    """Deal calls like cards into ``parts`` shares whose sizes differ by at most one."""
    return [call_ids[i::parts] for i in range(parts)]


def check_plan(plan: Plan, problem: Problem, scheduler: str) -> None:
    """Raise MosaicsimError for a plan that does not place every call of ``problem`` exactly once."""
    known = {worker.index for worker in problem.workers}
    phases: dict[int, int] = {}
    for session in plan.sessions:
        if session.worker not in known:
            raise MosaicsimError(
                f"scheduler '{scheduler}': its plan uses worker {session.worker}, which is not there"
            )
        if (problem.calls.expert[session.call_ids] != session.expert).any():
            raise MosaicsimError(
                f"scheduler '{scheduler}': its plan gives calls to another expert than theirs"
            )
        if session.phase < phases.get(session.worker, 0):
            raise MosaicsimError(f"scheduler '{scheduler}': phases of worker {session.worker} do not ascend")
        phases[session.worker] = session.phase
    placed = np.sort(np.concatenate([problem.call_ids[:0], *(s.call_ids for s in plan.sessions)]))
    if not np.array_equal(placed, np.sort(problem.call_ids)):
        raise MosaicsimError(
            f"scheduler '{scheduler}': its plan places {len(placed)} calls, {len(np.unique(placed))} of them "
            f"different; {len(problem.call_ids)} are to be placed once each"
        )
