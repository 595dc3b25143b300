"""A time the expert stage cannot beat, from which worker serves which calls; it takes seconds to find.

:mod:`~mosaicsim.schedulers.packing_bound` counts the hosts of an expert together. Here every schedule is a
solution of a model that tells its workers apart, and HiGHS bounds the makespan of that model from below. It
is made for V0 without prefix caching, for workers alike, one expert at a time on each, and started calls that
stay where they are.

Of the calls that finish on a host (an expert on a worker) let each have p prompt tokens and d tokens after
its first. Its token g = 1..d attends ``p + g`` tokens, which take up b(g) in whole blocks of a KV cache of K.
The host runs D decode steps. Why every schedule fits into the model:

* A decode step of B calls over C tokens costs ``base + slope B + context C`` or more, a prefilled token
  ``rate`` or more. So the host's time is at least ``base D`` and what is *lean* of its calls.
* No call decodes in the t-th step a token later than its t-th. So if a call has d > m, then D > m, and the
  tokens of all calls after their m-th come out of the D - m steps after the m-th, each of K tokens and of
  max_num_seqs calls at most: ``D >= m + (sum of b over the tokens after the m-th) / K``, and likewise for
  the number of these tokens. With m = 0 the cache is always full, with m = d - 1 it is the longest call that
  counts, and in between what is lost while the cache fills from empty. Or with F(m), the most that
  max_num_seqs calls can take up in m steps: ``D >= m + (sum of b over all tokens - F(m)) / K``.
* A preempted call gets a token out of recomputing all ``p + g``, at ``rate`` each, in place of a decode step.
  It has missed the step that it was preempted in, so no t-th step has a later token for it. What is spared
  is left to the solver: so many tokens of so many attended ones, if it pays for them.

* A running call decodes in every step, so calls that fill an empty cache are in the way of others later.
  Whatever the cache costs in each step, D steps take in as much as the calls pay, or more
  (:mod:`~mosaicsim.schedulers.step_prices`). Prices are made for the hosts of a solution, and the model is
  solved anew with them, a few times.

A load takes of its worker's time what cannot be read ahead; no host generates before its own load's end, and
no worker its finished calls before the weights of one of its hosts are read.

The calls are in classes by d. ``led`` says that a host has a call of a class or of a later one; the calls of
a class are spread by number and by lean seconds, both exact in sum. For the other costs of a call there is a
line in its lean seconds that none of its class is below, and lines may be summed over any calls of a class.
Workers alike may be numbered by their steps for the expert with the most work.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor

import numpy as np

from mosaicsim.schedulers.bounds import EngineLimits, expert_stage_lower_bound
from mosaicsim.schedulers.hosted_calls import HostedCalls
from mosaicsim.schedulers.linear_model import LinearModel, Term
from mosaicsim.schedulers.step_prices import fitted_prices
from mosaicsim.workload.calls import CallTable, Floats, Ints

GRAIN = 0.01
"""Classes are cut so that the steps of the longest call take about this part of the makespan in each."""

FEWEST_CLASSES, MOST_CLASSES = 2, 32

MOST_LED = 300
"""Classes times workers with which the model is solved in seconds; with twice as many it takes minutes."""

GAP = 1e-4
NODE_LIMIT = 6_000
TIME_LIMIT_S = 900.0
"""A guard: the result of a search that it ends is not deterministic."""

ROUNDS = 4
"""Times that prices are added, as long as they raise the bound."""

SAMPLES = 3
"""Calls that stand for a class when prices are made."""

LEAST_UNPAID = 3e-4
"""Part of the makespan by which a solution has to fall short of prices for them to be added."""

LEAST_PRICED = 0.2
"""Prices matter where the steps of an expert's longest call take this part of the makespan or more."""

MOST_HOSTS = 64
"""Experts times workers beyond which the model is too large to be of use."""

SAFETY = 1e-6
"""Relative: HiGHS meets rows within about 1e-7 of their seconds."""


def assignment_bound(
    calls: CallTable,
    output_tokens: Ints,
    engines: Sequence[Sequence[EngineLimits]],
    *,
    finished: Ints | None = None,
    prefix_caching: bool = False,
    slots: int = 1,
    node_limit: int = NODE_LIMIT,
    rounds: int = ROUNDS,
) -> float:
    """Seconds that no run can beat which finished the calls: arguments as of ``expert_stage_lower_bound``.

    It is no less than that bound, and just that where the model is not made for the engines. ``rounds`` times
    prices of the KV cache are added.
    """
    known_s = expert_stage_lower_bound(
        calls, output_tokens, engines, finished=finished, prefix_caching=prefix_caching, slots=slots
    ).seconds
    plain = not (prefix_caching or any(e.mixes_prefill or e.keeps_blocks for row in engines for e in row))
    alike = all(engine == row[0] for row in engines for engine in row)
    n_workers = len(engines[0])
    if not (plain and alike and slots == 1 and known_s and len(engines) * n_workers <= MOST_HOSTS):
        return known_s
    ids = np.arange(len(calls)) if finished is None else finished
    experts = [
        _hosted(calls, output_tokens, ids[calls.expert[ids] == m], engines[m][0])
        for m in np.unique(calls.expert[ids]).tolist()
    ]
    stage = _Stage(experts, n_workers, known_s)
    best_s = known_s
    for left in range(rounds, -1, -1):
        solution = stage.model.minimise(stage.makespan, GAP, node_limit, TIME_LIMIT_S)
        before_s, best_s = best_s, max(best_s, solution.bound * (1 - SAFETY))
        raised = left == rounds or best_s > before_s * (1 + GAP)
        if not left or not raised or not len(solution.values) or not stage.price(solution.values):
            break
    return best_s


def _hosted(calls: CallTable, output_tokens: Ints, ids: Ints, engine: EngineLimits) -> HostedCalls:
    ids = ids[np.argsort(output_tokens[ids], kind="stable")]
    decodes = np.maximum(output_tokens[ids] - 1.0, 0.0)
    return HostedCalls(calls.prompt_tokens[ids].astype(np.float64), decodes, engine)


@dataclass(frozen=True)
class StepsNeeded:
    """A lower bound on a host's decode steps, as coefficients of its variables.

    ``led`` of the variable of the class ``part``; ``share`` and ``lean`` of each class's number of calls and
    lean seconds; less ``token`` for each token that comes out of recomputation, ``attended`` for each that
    it attends.
    """

    part: int
    led: float
    share: Sequence[float] = ()
    lean: Sequence[float] = ()
    token: float = 0.0
    attended: float = 0.0


def _steps_needed(expert: HostedCalls, parts: Sequence[slice], n_workers: int) -> Iterator[StepsNeeded]:
    """What is known of the decode steps of a host of the expert."""
    engine = expert.engine
    cache, full = float(engine.kv_capacity_tokens), float(engine.max_num_seqs)
    spared = (engine.block_size - 1) / cache, 1 / cache
    all_blocks = expert.lines(expert.blocks_after(0.0) / cache, parts)
    for c, m in _after_steps(expert, parts, n_workers):
        yield StepsNeeded(c, m, *expert.lines(expert.blocks_after(m) / cache, parts), *spared)
        yield StepsNeeded(c, m, *expert.lines(np.maximum(expert.decodes - m, 0.0) / full, parts), 1 / full)
        begun = m - expert.most_blocks(m) / cache
        if begun > 0:
            yield StepsNeeded(c, begun, *all_blocks, *spared)
    for c, part in enumerate(parts):
        yield StepsNeeded(c, float(expert.decodes[part.start]))


def _after_steps(expert: HostedCalls, parts: Sequence[slice], n_workers: int) -> Iterator[tuple[int, float]]:
    """Numbers of steps m to count the tokens after, each with the first class whose calls all have more.

    From the first step on; from the longest that each class has; and from when 1, 2, ... hosts with equal
    numbers of calls, or hosts with as many as can run, have filled their caches.
    """
    shortest = [float(expert.decodes[part.start]) for part in parts]
    yield 0, 0.0
    yield from ((c, d - 1) for c, d in enumerate(shortest) if d > 1)
    running = [len(expert.decodes) / hosts for hosts in range(1, n_workers + 1)]
    for calls in sorted({*running, min(float(expert.engine.max_num_seqs), running[0])}):
        m = floor(expert.engine.kv_capacity_tokens / calls - expert.prompt_tokens.mean())
        if 0 < m < shortest[-1]:
            yield bisect_right(shortest, m), float(m)


@dataclass(frozen=True)
class _Priced:
    """Least steps of a host under prices: as :class:`StepsNeeded`, but recomputing counts by its own time.

    ``led`` and ``share`` by class, ``lean`` a second of each class's lean seconds.
    """

    led: Sequence[float]
    share: Sequence[float]
    lean: Sequence[float]


class _Host:
    """Variables of an expert on a worker, and the rows that are about them alone.

    By class ``led``, ``share`` (of its calls, 0 to 1) and ``lean_s``; ``steps_s`` are the bases of its decode
    steps. Recomputed: ``tokens`` and what they have ``attended``, both in full KV caches.
    """

    def __init__(self, model: LinearModel, expert: HostedCalls, parts: Sequence[slice]) -> None:
        self._expert = expert
        self.led = [model.variable(binary=True) for _ in parts]
        self.share = [model.variable(1.0) for _ in parts]
        self.lean_s = [model.variable() for _ in parts]
        self.steps_s, self._tokens, self._attended = (model.variable() for _ in range(3))
        for sooner, later in pairwise(self.led):
            model.at_least([(sooner, 1.0), (later, -1.0)])
        for led, share, lean_s, part in zip(self.led, self.share, self.lean_s, parts, strict=True):
            own = expert.lean_s[part]
            model.at_least([(led, 1.0), (share, -1.0)])
            model.at_least([(lean_s, 1.0), (share, -len(own) * float(own.min()))])
            model.at_least([(lean_s, -1.0), (share, len(own) * float(own.max()))])
        self._limit_recomputed(model, parts)

    def _limit_recomputed(self, model: LinearModel, parts: Sequence[slice]) -> None:
        """No more tokens than the host's calls have, each of which attends as much as a token can."""
        expert, cache = self._expert, float(self._expert.engine.kv_capacity_tokens)
        tokens = [len(expert.decodes[part]) * float(expert.decodes[part].max()) / cache for part in parts]
        model.at_least([(self._tokens, -1.0), *zip(self.share, tokens, strict=True)])
        model.at_least([(self._attended, 1.0), (self._tokens, -float(expert.prompt_tokens.min()) - 1)])
        most = float((expert.prompt_tokens + expert.decodes).max())
        model.at_least([(self._attended, -1.0), (self._tokens, most)])

    def need(self, model: LinearModel, needed: StepsNeeded) -> None:
        """Demand the decode steps."""
        base, cache = self._expert.step[0], float(self._expert.engine.kv_capacity_tokens)
        row: list[Term] = [(self.steps_s, 1.0), (self.led[needed.part], -base * needed.led)]
        row += [(number, -base * steps) for number, steps in zip(self.share, needed.share, strict=False)]
        row += [(number, -base * steps) for number, steps in zip(self.lean_s, needed.lean, strict=False)]
        row += [(self._tokens, base * cache * needed.token), (self._attended, base * cache * needed.attended)]
        model.at_least(row)

    def pay(self, model: LinearModel, priced: _Priced) -> None:
        """Demand the decode steps that the calls pay for, or recomputing in their place."""
        base = self._expert.step[0]
        row: list[Term] = [(self.steps_s, 1.0), *self._recomputing_s()]
        row += [(number, -base * steps) for number, steps in self._paid(priced)]
        model.at_least(row)

    def unpaid_steps(self, values: Floats, priced: _Priced) -> float:
        """By how many steps a solution falls short of what the calls pay for."""
        base = self._expert.step[0]
        steps_s = values[self.steps_s] + sum(values[n] * seconds for n, seconds in self._recomputing_s())
        return float(sum(values[n] * steps for n, steps in self._paid(priced)) - steps_s / base)

    def _paid(self, priced: _Priced) -> list[Term]:
        numbers = (*self.led, *self.share, *self.lean_s)
        return list(zip(numbers, (*priced.led, *priced.share, *priced.lean), strict=True))

    def _recomputing_s(self) -> list[Term]:
        """Seconds of recomputing, less what the steps would have taken that it stands for."""
        cache = float(self._expert.engine.kv_capacity_tokens)
        context_s = self._expert.rate - self._expert.engine.tables.decode_context
        return [(self._attended, context_s * cache), (self._tokens, -self._expert.step[1] * cache)]

    def busy(self) -> list[Term]:
        """The least time on the worker, load included, less what may be read ahead."""
        engine = self._expert.engine
        return [
            (self.led[0], engine.load_s - engine.disk_s),
            (self.steps_s, 1.0),
            *((number, 1.0) for number in self.lean_s),
            *self._recomputing_s(),
        ]


class _Stage:
    """The model of a stage: every expert's hosts, and what they take of each worker."""

    def __init__(self, experts: Sequence[HostedCalls], n_workers: int, known_s: float) -> None:
        self.model = model = LinearModel()
        self.makespan = model.variable()
        self._experts = experts
        self._known_s = known_s
        self._parts = _classes(experts, n_workers, known_s)
        self._hosts = [
            _hosts(model, expert, parts, n_workers)
            for expert, parts in zip(experts, self._parts, strict=True)
        ]
        for w in range(n_workers):
            hosts = [row[w] for row in self._hosts]
            busy = [term for host in hosts for term in host.busy()]
            self._ends_after([*busy, *self._first_read(hosts)])
            # nor does a host generate before its own weights are read
            for expert, host in zip(experts, hosts, strict=True):
                self._ends_after([*host.busy(), (host.led[0], expert.engine.disk_s)])
        largest = self._hosts[int(np.argmax([expert.lean_s.sum() for expert in experts]))]
        for sooner, later in pairwise(largest):
            model.at_least([(sooner.steps_s, 1.0), (later.steps_s, -1.0)])

    def _first_read(self, hosts: Sequence[_Host]) -> list[Term]:
        """Seconds in which a worker reads the weights of its first host, and nothing can generate."""
        first = [self.model.variable() for _ in hosts]
        for number, host in zip(first, hosts, strict=True):
            self.model.at_least([(host.led[0], 1.0), (number, -1.0)])
            self.model.at_least([*((any_first, 1.0) for any_first in first), (host.led[0], -1.0)])
        return [(number, expert.engine.disk_s) for number, expert in zip(first, self._experts, strict=True)]

    def _ends_after(self, busy: Sequence[Term]) -> None:
        self.model.at_least([(self.makespan, 1.0), *((number, -seconds) for number, seconds in busy)])

    def price(self, values: Floats) -> bool:
        """Demand what the calls of the solution's hosts pay for; whether any of them fell short of it."""
        found = False
        for expert, parts, hosts in zip(self._experts, self._parts, self._hosts, strict=True):
            base = expert.step[0]
            if base * expert.decodes[-1] < LEAST_PRICED * self._known_s:
                continue
            for host in hosts:
                priced = _priced(expert, parts, host, values)
                if priced and base * host.unpaid_steps(values, priced) > LEAST_UNPAID * self._known_s:
                    found = True
                    for any_host in hosts:
                        any_host.pay(self.model, priced)
        return found


def _priced(expert: HostedCalls, parts: Sequence[slice], host: _Host, values: Floats) -> _Priced | None:
    """What prices made for a host of the solution demand of any; None where nothing can be priced."""
    if values[host.led[0]] < 0.5 or not expert.can_be_priced:
        return None
    samples, weights = _samples(expert, parts, values[host.share])
    led = int(np.flatnonzero(values[host.led] > 0.5)[-1])
    least = np.array([expert.decodes[part.start] for part in parts])
    prices = fitted_prices(samples, weights, float(least[led]))
    if prices is None:
        return None
    excess = prices.excess(expert, least)
    at_none, a_second = expert.lines(prices.least_paid(expert), parts)
    return _Priced((-np.diff(excess, prepend=0.0)).tolist(), at_none, a_second)


def _samples(expert: HostedCalls, parts: Sequence[slice], share: Floats) -> tuple[HostedCalls, Floats]:
    """Calls that stand for so much of each class, and how often each is counted."""
    groups = [
        (run, part_share * len(run))
        for part, part_share in zip(parts, share.tolist(), strict=True)
        if part_share > 1e-6
        for run in np.array_split(np.arange(part.start, part.stop), min(SAMPLES, part.stop - part.start))
    ]
    columns = expert.prompt_tokens, expert.decodes
    prompt, decodes = (np.array([column[run].mean() for run, _ in groups]) for column in columns)
    return HostedCalls(prompt, decodes, expert.engine), np.array([weight for _, weight in groups])


def _classes(experts: Sequence[HostedCalls], n_workers: int, known_s: float) -> list[list[slice]]:
    """The classes of every expert's calls, twice as coarse where the model would be too large."""
    for grain in (GRAIN, 2 * GRAIN):
        found = [_parts(expert, grain * known_s) for expert in experts]
        if n_workers * sum(map(len, found)) <= MOST_LED:
            break
    return found


def _parts(expert: HostedCalls, grain_s: float) -> list[slice]:
    longest_s = expert.step[0] * float(expert.decodes[-1])
    return expert.classes(ceil(min(max(longest_s / grain_s, FEWEST_CLASSES), MOST_CLASSES)))


def _hosts(model: LinearModel, expert: HostedCalls, parts: Sequence[slice], n_workers: int) -> list[_Host]:
    """An expert on each worker; together they have all its calls."""
    hosts = [_Host(model, expert, parts) for _ in range(n_workers)]
    for needed in _steps_needed(expert, parts, n_workers):
        for host in hosts:
            host.need(model, needed)
    for c, part in enumerate(parts):
        model.at_least([(host.led[c], 1.0) for host in hosts], 1.0)
        model.equal([(host.share[c], 1.0) for host in hosts], 1.0)
        model.equal([(host.lean_s[c], 1.0) for host in hosts], float(expert.lean_s[part].sum()))
    return hosts
