"""work_stealing: any plan as the start; then idle workers take over, and no barrier is waited at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from mosaicsim.errors import InfeasibleError, UserInputError
from mosaicsim.schedulers.base import (
    Course,
    Instances,
    Load,
    Observed,
    Plan,
    PlannedSession,
    Problem,
    Rehearsed,
    Scheduler,
    SchedulerOptions,
    Seat,
    SessionCost,
    WorkerView,
)
from mosaicsim.schedulers.outlook import Outlook
from mosaicsim.schedulers.predictors import Informed, predict_tokens
from mosaicsim.workload.calls import Floats, Ints


class WorkStealingOptions(SchedulerOptions):
    """Options of ``work_stealing``."""

    start: str | dict[str, Any] = Field(
        "greedy", description="the policy whose plan is the start: a name or one `name: {options}`"
    )
    steal: bool = Field(True, description="idle workers take over calls that have not started")
    cascade: bool = Field(
        True,
        description="calls that a gate which cancels may not need come late, or wait",
    )
    fill: int = Field(
        16, ge=0, description="start held calls early where a session has fewer calls than this left"
    )
    order: Literal["longest_first", "fcfs"] = Field(
        "longest_first",
        description="order of calls in a session: by the predicted way to go, or as they came",
    )
    predictor: Literal["mean", "quantile", "category", "regression", "informed"] = Field(
        "informed", description="what lengths are predicted by"
    )
    scenes: int = Field(
        1, ge=0, description="rehearsals of each draft of the plan on calibration questions; 0: by formula"
    )
    overlap: bool = Field(True, description="aggregator calls start as their question is ready; no barrier")
    migrate: bool = Field(
        False,
        description="started calls move too, and compute anew what they had: to idle workers, and a "
        "session's last ones to another session of their expert",
    )
    prefetch: bool = Field(
        True, description="the model a busy worker runs next is read into the host's memory"
    )

    @field_validator("start")
    @classmethod
    def _known(cls, value: str | dict[str, Any]) -> str | dict[str, Any]:
        _create(value)
        return value


class WorkStealing:
    """Start as another policy plans, and let events correct what it could not know.

    See ``docs/schedulers.md`` for the rules.
    """

    name: ClassVar[str] = "work_stealing"
    summary: ClassVar[str] = (
        "any plan as the start; idle workers take over waiting calls, aggregator calls start when ready"
    )
    Options: ClassVar[type[SchedulerOptions]] = WorkStealingOptions
    sees_lengths: ClassVar[bool] = False

    def __init__(self, options: WorkStealingOptions) -> None:
        """Take the options and make the policy that plans the start."""
        self.options = options
        self._start = _create(options.start)
        self._held, self._k = _Held.none(), 1
        self._informed: Informed | None = None
        self._tokens: Floats = np.zeros(0)

    def plan(self, problem: Problem) -> Plan:
        """See :class:`~mosaicsim.schedulers.base.Scheduler`; there is a course where the gate is known."""
        if problem.gate is None or not problem.instances:
            return self._start.plan(problem)
        outlook = Outlook(problem)
        asks = outlook.asks()
        ways = {
            slots: list(self._drafts(problem.shared_by(slots), outlook, slots))
            for slots in [sharing.slots for sharing in problem.sharings] or [1]
        }
        self._prepare(problem, _Held.none(), outlook.k)
        drafts = self._best_way(problem, list(ways.values()))
        best = self._best(problem, drafts)
        if best.makespan_s() == inf:  # none could be played: what does not fit may not come either
            best = replace(min(drafts, key=lambda d: d.formula.makespan_s), plays={})
        self._held = best.held
        return replace(
            best.plan,
            predicted_s=best.expert_stage_s(),
            info=best.plan.info
            | {
                "aggregator_tp": best.instances.tp,
                "sessions_per_worker": best.plan.course.slots if best.plan.course is not None else 1,
                "drafts": len(drafts),
                "expected_asks": round(asks, 1),
                "held": len(best.held.calls),
                "predicted_makespan_s": best.makespan_s(),
            },
        )

    def _drafts(self, problem: Problem, outlook: Outlook, slots: int) -> Iterator[_Draft]:
        """Ways to hold calls back and to place the aggregator, where so many sessions share a worker."""
        ahead = _read_ahead(problem) if self.options.prefetch else problem
        holding = [_Held.none()]
        if self.options.cascade and outlook.cancels and outlook.quorum < outlook.k:
            holding = [_hold(problem, outlook, how) for how in ("queue", "light", "all")]
        for held in holding:
            expected = replace(ahead, call_ids=held.expected(problem))
            for instances in problem.instances:
                if instances.tp == 1 or held is holding[0]:
                    for placement in self._placements(expected, instances, outlook.asks()):
                        yield self._draft(problem, placement, held, slots)

    def _draft(self, problem: Problem, placement: _Placement, held: _Held, slots: int) -> _Draft:
        plan, options = placement.plan, self.options
        awaited = options.overlap or bool(len(held.calls))
        facts: dict[str, float | int | str] = {"reserved": len(placement.reserved), "hold": held.how}
        sessions = _with_held(problem, plan.sessions, held.calls)
        return _Draft(
            Plan(
                _by_length(problem, sessions, longest_first=not awaited),
                placement.expert_stage_s,
                plan.info | facts,
                Course(
                    held.calls,
                    options.fill,
                    options.overlap,
                    placement.instances,
                    placement.reserved,
                    options.steal,
                    options.prefetch,
                    options.steal and options.migrate,
                    slots,
                ),
            ),
            held,
            placement.instances,
            Rehearsed(placement.expert_stage_s, placement.makespan_s),
        )

    def _best_way(self, problem: Problem, ways: list[list[_Draft]]) -> list[_Draft]:
        """The drafts of the way to share workers whose best draft rehearses best.

        The best of a way is found in the first scene, among those that place the aggregator differently: by
        the formula alone it may be one that nobody would take. More sharing must gain SHARING_GAIN.
        """
        if len(ways) == 1 or problem.rehearsal is None or not self.options.scenes:
            return [draft for drafts in ways for draft in drafts]
        played = []
        for drafts in ways:
            firsts = _unlike(drafts)
            for draft in firsts:
                self._play(problem, draft, 0)
            first = min(firsts, key=_Draft.makespan_s)
            played.append(
                np.mean([self._play(problem, first, scene) for scene in range(self.options.scenes)])
            )
        best = 0
        for i in range(1, len(ways)):
            if played[i] < played[best] * (1 - SHARING_GAIN):
                best = i
        return ways[best]

    def _play(self, problem: Problem, draft: _Draft, scene: int) -> float:
        """A draft's makespan in a scene, played once."""
        assert problem.rehearsal is not None
        if scene not in draft.plays:
            self._held = draft.held
            try:
                draft.plays[scene] = problem.rehearsal.play(self, draft.plan, problem, scene)
            except InfeasibleError:  # a call of the scene does not fit the engines of this draft
                draft.plays[scene] = Rehearsed(inf, inf)
        return draft.plays[scene].makespan_s

    def _best(self, problem: Problem, drafts: list[_Draft]) -> _Draft:
        """The draft with the least mean makespan over the scenes; by the formula without rehearsals.

        After each scene the better half goes on to the next (successive halving, arXiv 1502.07943).
        """
        if problem.rehearsal is not None:
            for scene in range(self.options.scenes):
                for draft in drafts:
                    self._play(problem, draft, scene)
                drafts = sorted(drafts, key=lambda d: d.mean_s(scene + 1))
                drafts = drafts[: max(LEAST_DRAFTS, -(-len(drafts) // 2))]
        return min(drafts, key=_Draft.makespan_s)

    def _prepare(self, problem: Problem, held: _Held, k: int) -> None:
        """What orders calls later on."""
        self._held, self._k = held, k
        if self.options.predictor == "informed":
            self._informed = Informed(problem)
        else:
            self._tokens = predict_tokens(problem, self.options.predictor)

    def _placements(self, problem: Problem, instances: Instances, asks: float) -> list[_Placement]:
        """Ways to place the aggregator: after everything, or on some workers kept for it from early on."""
        per_instance = asks / max(1, len(instances.groups))
        loads = [c.load_s - (c.disk_s if self.options.prefetch else 0.0) for c in instances.costs]
        ends = [load + c.predict_s(per_instance) for load, c in zip(loads, instances.costs, strict=True)]
        after = max(ends) if asks else 0.0
        found = []
        for stages in ("one", "waves"):
            plan = self._staged(problem, (), stages)
            found.append(_Placement(plan, instances, (), plan.predicted_s, plan.predicted_s + after))
        if not self.options.overlap or instances.tp > 1 or not asks:
            return found
        for kept in range(1, min(len(instances.groups) // 2, MOST_RESERVED) + 1):
            groups, costs = instances.groups[-kept:], instances.costs[-kept:]
            reserved = tuple(group[0] for group in groups)
            last = max(c.predict_s(max(1.0, LATE_SHARE * asks / len(instances.groups))) for c in costs)
            ways = [("early", share * found[0].expert_stage_s) for share in SPARED]
            for stages, spared_s in (*ways, ("apart", 0.0)):
                plan = self._staged(problem, reserved, stages, spared_s)
                busy = _busy_s(problem, plan)
                alone = max(
                    busy[w] + load + c.predict_s(asks / kept)
                    for w, load, c in zip(reserved, loads[-kept:], costs, strict=True)
                )
                stage = max(busy.values())
                found.append(_Placement(plan, instances, reserved, stage, max(alone, stage + last)))
        return found

    def _staged(
        self,
        problem: Problem,
        reserved: tuple[int, ...],
        stages: str,
        spared_s: float = 0.0,
    ) -> Plan:
        """The start's plan, made in one, or of experts that do not reason and of the others.

        What others wait for is then early: in ``waves`` over all workers, the reasoning experts behind; or
        ``apart``, on the reserved workers, while the others reason. ``early``: reserved workers take part,
        but get so much less that they are done ``spared_s`` before the others.
        """
        reasoning = np.array([bool(row) and row[0].reasoning for row in problem.costs])
        heavy = reasoning[problem.calls.expert[problem.call_ids]]
        rest = tuple(w for w in problem.workers if w.index not in reserved) or problem.workers
        if stages == "early":
            spared = tuple(
                replace(w, backlog_s=w.backlog_s + (spared_s if w.index in reserved else 0.0))
                for w in problem.workers
            )
            plan = self._start.plan(_on(problem, spared))
            return replace(plan, info=plan.info | {"stages": stages, "spared_s": round(spared_s)})
        if heavy.all() or not heavy.any() or stages == "one":
            return self._start.plan(_on(problem, rest))
        kept = tuple(w for w in problem.workers if w.index in reserved)
        light = problem.workers if stages == "waves" else kept
        first = self._start.plan(_on(replace(problem, call_ids=problem.call_ids[~heavy]), light))
        busy = _busy_s(problem, first)
        behind = tuple(replace(w, backlog_s=busy[w.index]) for w in rest)
        second = self._start.plan(_on(replace(problem, call_ids=problem.call_ids[heavy]), behind))
        info = second.info | {"stages": stages}
        return Plan(first.sessions + second.sessions, max(first.predicted_s, second.predicted_s), info)

    def arrange(self, call_ids: Ints, observed: Observed) -> Ints:
        """Longest way to go first: a call's own predicted tokens, and those of what waits for it."""
        if self.options.order == "fcfs":
            return np.sort(call_ids)
        tokens = self._informed.tokens(observed) if self._informed is not None else self._tokens
        way = tokens[call_ids]
        if len(self._held.calls):
            after = np.zeros(len(tokens) // self._k)
            left = observed.output_tokens[self._held.calls] == 0
            np.add.at(
                after,
                (self._held.calls // self._k)[left],
                (self._held.chance * tokens[self._held.calls])[left],
            )
            own = np.isin(call_ids, self._held.calls)
            way = way + np.where(own, 0.0, after[call_ids // self._k])
        late = np.isin(call_ids, self._held.late)
        arranged: Ints = call_ids[np.lexsort((-way, late))]
        return arranged

    def seat(self, seats: Sequence[Seat]) -> int:
        """Where the call is predicted to be done first."""

        def done_s(seat: Seat) -> float:
            return seat.wait_s + seat.cost.predict_s(seat.calls + seat.weight)

        return min(range(len(seats)), key=lambda i: done_s(seats[i]))

    def may_go(self, calls: int, *, waited_for: bool) -> int:
        """Half, or the last few if others wait for these."""
        return calls if calls <= STRAGGLERS and waited_for else calls // 2

    def merge(self, calls: int, left_s: float, behind: int, others: Sequence[int]) -> int | None:
        """The last few join the smallest session, if more calls wait behind them than run there."""
        if not others or calls > LAST_CALLS or left_s < LEAST_SAVING_STARTED_S:
            return None
        smallest = min(range(len(others)), key=others.__getitem__)
        return smallest if behind > others[smallest] else None

    def relieve(self, loads: Sequence[Load]) -> tuple[int, int] | None:
        """Where it saves most, as many calls as make both workers done at once.

        Only if that saves more than the load it takes.
        """
        if not self.options.steal:
            return None
        best, best_saving = None, 0.0
        for i, load in enumerate(loads):
            calls, saving = balanced(load)
            least_s = LEAST_SAVING_STARTED_S if load.started else LEAST_SAVING_S
            if saving > max(load.load_here_s, least_s) and saving > best_saving:
                best, best_saving = (i, calls), saving
        return best


MOST_RESERVED = 2
"""Workers kept for the aggregator in a draft, and at most half of them."""

LEAST_DRAFTS = 3
"""So many drafts are played in every scene."""

SHARING_GAIN = 0.01
"""Part of the makespan that sharing must save: it is modelled, and judged by the best of several drafts."""

SPARED = (0.25, 0.5, 0.75)
"""Shares of the expert stage by which a worker kept for the aggregator is done earlier, each in a draft."""

LATE_SHARE = 0.1
"""Share of the aggregator's calls that are taken to become ready when the expert stage ends."""

LEAST_SAVING_S = 1.0
"""What a takeover must save where the model is there already: less is within the prediction's noise."""


STRAGGLERS = 16
"""So many started calls of a session are taken over all at once, if its worker can do something else then."""

LAST_CALLS = 8
"""So many started calls join another session of their expert, so that their worker can go on."""

LEAST_SAVING_STARTED_S = 20.0
"""What a takeover of started calls must save: that they are computed anew is not priced."""


def balanced(load: Load) -> tuple[int, float]:
    """How many calls to take so that giver and taker are done together, and the seconds that saves."""
    low, high = 1, load.movable
    while low < high:
        n = (low + high) // 2
        if _taker_s(load, n) >= _giver_s(load, n):
            high = n
        else:
            low = n + 1
    n = min((max(low - 1, 1), low), key=lambda n: max(_taker_s(load, n), _giver_s(load, n)))
    return n, load.end_s - max(_taker_s(load, n), _giver_s(load, n))


def _taker_s(load: Load, n: int) -> float:
    taken_s = load.cost_here.predict_s(n)
    if load.started:
        taken_s = load.cost_here.shared_s(load.left_s, n, load.calls)
    return load.own_s + load.load_here_s + taken_s


def _giver_s(load: Load, n: int) -> float:
    left = load.calls - n
    if load.started:
        return load.end_s - load.left_s + load.cost.shared_s(load.left_s, left, load.calls)
    gone = load.load_s if not left else 0.0
    return load.end_s - load.cost.predict_s(load.calls) + load.cost.predict_s(left) - gone


@dataclass(frozen=True)
class _Placement:
    """A plan with the aggregator placed, and what it is predicted to take."""

    plan: Plan
    instances: Instances
    reserved: tuple[int, ...]
    expert_stage_s: float
    makespan_s: float


@dataclass(frozen=True)
class _Draft:
    """A plan that may be taken, and what it is expected to come to."""

    plan: Plan
    held: _Held
    instances: Instances
    formula: Rehearsed
    plays: dict[int, Rehearsed] = field(default_factory=dict)

    def mean_s(self, scenes: int) -> float:
        """The mean makespan of the first rehearsals."""
        return float(np.mean([self.plays[scene].makespan_s for scene in range(scenes)]))

    def makespan_s(self) -> float:
        """The mean of its rehearsals, else by the formula."""
        return float(np.mean([p.makespan_s for p in self.plays.values() or [self.formula]]))

    def expert_stage_s(self) -> float:
        """The same for the expert stage."""
        return float(np.mean([p.expert_stage_s for p in self.plays.values() or [self.formula]]))


def _unlike(drafts: list[_Draft]) -> list[_Draft]:
    """Of drafts that differ in what they hold back only, the best by the formula."""
    best: dict[tuple[Any, ...], _Draft] = {}
    for draft in sorted(drafts, key=lambda d: d.formula.makespan_s):
        info = draft.plan.info
        key = draft.instances.tp, info["reserved"], info.get("stages"), info.get("spared_s")
        best.setdefault(key, draft)
    return list(best.values())


@dataclass(frozen=True)
class _Held:
    """Calls held back, likeliest to be needed first, and how likely that is; both of shape (n,)."""

    calls: Ints
    chance: Floats
    late: Ints
    how: str = "none"

    @classmethod
    def none(cls) -> _Held:
        return cls(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))

    def expected(self, problem: Problem) -> Ints:
        """The calls to plan for: those not held, and of each expert's held ones as many as will be needed."""
        kept = np.ones(len(problem.calls), np.bool_)
        experts = problem.calls.expert[self.calls]
        for m in np.unique(experts).tolist():
            own = self.calls[experts == m]
            kept[own[round(float(self.chance[experts == m].sum())) :]] = False
        return problem.call_ids[kept[problem.call_ids]]


def _hold(problem: Problem, outlook: Outlook, how: str) -> _Held:
    """Of each question, what lies beyond the quorum when its cheapest calls come first, is to come late.

    ``queue``: at the end of its session's queue. ``light``: it waits for its question, if no call it waits
    for reasons. ``all``: it waits in any case.
    """
    counts = problem.counts()
    each = np.array(
        [min(_marginal_s(cost, int(n)) for cost in row) for row, n in zip(problem.costs, counts, strict=True)]
    )
    ids = np.arange(len(problem.calls)).reshape(-1, outlook.k)
    order = np.take_along_axis(
        ids, np.argsort(each[problem.calls.expert[ids]], axis=1, kind="stable"), axis=1
    )
    beyond = order[:, outlook.quorum :]
    chances = outlook.needed(order)[:, outlook.quorum :]
    reasoning = np.array([bool(row) and row[0].reasoning for row in problem.costs])
    awaited = reasoning[problem.calls.expert[order[:, : outlook.quorum]]].any(axis=1)
    waits = {"queue": np.zeros_like(awaited), "light": ~awaited, "all": np.ones_like(awaited)}[how]
    calls, chance = beyond[waits].ravel(), chances[waits].ravel()
    known = np.isin(calls, problem.call_ids)
    calls, chance = calls[known], chance[known]
    rank = np.argsort(-chance, kind="stable")
    return _Held(calls[rank], chance[rank], beyond.ravel(), how)


def _marginal_s(cost: SessionCost, n_calls: int) -> float:
    """Seconds a call adds to a session of many."""
    return cost.predict_s(n_calls) / n_calls if n_calls else 0.0


def _read_ahead(problem: Problem) -> Problem:
    """The problem where sessions load without the disk; every worker's first has to wait for it all the same.

    What all first sessions have in common goes into the workers' backlogs.
    """
    used = np.unique(problem.calls.expert[problem.call_ids]).tolist()
    least_s = min((cost.disk_s for m in used for cost in problem.costs[m]), default=0.0)
    costs = tuple(tuple(replace(c, load_s=c.load_s - c.disk_s) for c in row) for row in problem.costs)
    workers = tuple(replace(w, backlog_s=w.backlog_s + least_s) for w in problem.workers)
    return replace(problem, costs=costs, workers=workers)


def _on(problem: Problem, workers: tuple[WorkerView, ...]) -> Problem:
    """The problem on some of its workers, or with other backlogs."""
    place = {worker.index: i for i, worker in enumerate(problem.workers)}
    costs = tuple(tuple(row[place[w.index]] for w in workers) for row in problem.costs)
    return replace(problem, workers=workers, costs=costs)


def _with_held(
    problem: Problem, sessions: tuple[PlannedSession, ...], held: Ints
) -> tuple[PlannedSession, ...]:
    """Add held calls that were not planned for to the largest session of their expert."""
    planned = np.zeros(len(problem.calls), np.bool_)
    for session in sessions:
        planned[session.call_ids] = True
    rest = held[~planned[held]]
    found = list(sessions)
    for m in np.unique(problem.calls.expert[rest]).tolist():
        calls = np.sort(rest[problem.calls.expert[rest] == m])
        own = [i for i, s in enumerate(found) if s.expert == m]
        if own:
            largest = max(own, key=lambda i: len(found[i].call_ids))
            joined = np.concatenate([found[largest].call_ids, calls])
            found[largest] = replace(found[largest], call_ids=joined)
        else:
            phase = max((s.phase for s in found), default=0)
            found.append(PlannedSession(problem.workers[0].index, m, calls, phase))
    return tuple(found)


def _by_length(
    problem: Problem, sessions: tuple[PlannedSession, ...], *, longest_first: bool
) -> tuple[PlannedSession, ...]:
    """Each worker's sessions: short calls first, because others wait for them, or long sessions first.

    Where nothing waits, what comes last can still go to another worker.
    """
    place = {worker.index: i for i, worker in enumerate(problem.workers)}

    def rank(session: PlannedSession) -> float:
        if longest_first:
            return -problem.costs[session.expert][place[session.worker]].predict_s(len(session.call_ids))
        return problem.costs[session.expert][place[session.worker]].mean_output_tokens

    return tuple(sorted(sessions, key=lambda s: (s.phase, rank(s))))


def _busy_s(problem: Problem, plan: Plan) -> dict[int, float]:
    """Predicted seconds until each worker has done its sessions."""
    place = {worker.index: i for i, worker in enumerate(problem.workers)}
    busy = {worker.index: worker.backlog_s for worker in problem.workers}
    for session in plan.sessions:
        cost = problem.costs[session.expert][place[session.worker]]
        busy[session.worker] += cost.load_s + cost.predict_s(len(session.call_ids))
    return busy


def _create(given: str | dict[str, Any]) -> Scheduler:
    """Make the starting policy. Raises ValueError, in one line, for what is no blind policy."""
    from mosaicsim.schedulers.registry import create

    if isinstance(given, dict) and len(given) != 1:
        raise ValueError(f"expected a name or one `name: {{options}}`, got {given!r}")
    name, options = (given, {}) if isinstance(given, str) else next(iter(given.items()))
    try:
        policy = create(str(name), options or {})
    except UserInputError as error:
        raise ValueError(str(error)) from None
    if policy.sees_lengths or isinstance(policy, WorkStealing):
        raise ValueError(f"'{name}' cannot be the start of another policy")
    return policy
