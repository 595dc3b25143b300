"""A time the expert stage cannot beat, from which worker serves which calls; it takes seconds to find.

:mod:`~mosaicsim.schedulers.packing_bound` counts the hosts of an expert together. Here every schedule is a
solution of a model that tells its workers apart, and HiGHS bounds the makespan of that model from below. It
is made for V0 without prefix caching, for workers alike and one expert at a time on each.

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

A load takes of its worker's time what cannot be read ahead; no host generates before its own load's end, and
no worker in the first seconds that the least read takes.

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
from mosaicsim.workload.calls import CallTable, Ints

GRAIN = 0.02
"""Classes are cut so that the steps of the longest call take about this part of the makespan in each."""

FEWEST_CLASSES, MOST_CLASSES = 2, 32

GAP = 5e-4
NODE_LIMIT = 6_000
TIME_LIMIT_S = 900.0
"""A guard: the result of a search that it ends is not deterministic."""

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
) -> float:
    """Seconds that no run can beat which finished the calls: arguments as of ``expert_stage_lower_bound``.

    It is no less than that bound, and just that where the model is not made for the engines.
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
    model, makespan = _model(experts, n_workers, GRAIN * known_s)
    return max(known_s, model.dual_bound(makespan, GAP, node_limit, TIME_LIMIT_S) * (1 - SAFETY))


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

    def busy(self) -> list[Term]:
        """The least time on the worker, load included, less what may be read ahead."""
        engine, slope = self._expert.engine, self._expert.step[1]
        cache = float(engine.kv_capacity_tokens)
        recomputing_s = (self._expert.rate - engine.tables.decode_context) * cache
        return [
            (self.led[0], engine.load_s - engine.disk_s),
            (self.steps_s, 1.0),
            *((number, 1.0) for number in self.lean_s),
            (self._attended, recomputing_s),
            (self._tokens, -slope * cache),
        ]


def _model(experts: Sequence[HostedCalls], n_workers: int, grain_s: float) -> tuple[LinearModel, int]:
    """The model, and the number of its makespan."""
    model = LinearModel()
    makespan = model.variable()
    hosts = [_hosts(model, expert, n_workers, grain_s) for expert in experts]
    # nothing generates before the first weights are read, nor on a host before its own are
    first_s = min(expert.engine.disk_s for expert in experts)
    for w in range(n_workers):
        busy = [term for row in hosts for term in row[w].busy()]
        model.at_least([(makespan, 1.0), *((number, -seconds) for number, seconds in busy)], first_s)
        for expert, row in zip(experts, hosts, strict=True):
            alone = [*row[w].busy(), (row[w].led[0], expert.engine.disk_s)]
            model.at_least([(makespan, 1.0), *((number, -seconds) for number, seconds in alone)])
    largest = hosts[int(np.argmax([expert.lean_s.sum() for expert in experts]))]
    for sooner, later in pairwise(largest):
        model.at_least([(sooner.steps_s, 1.0), (later.steps_s, -1.0)])
    return model, makespan


def _hosts(model: LinearModel, expert: HostedCalls, n_workers: int, grain_s: float) -> list[_Host]:
    """An expert on each worker; together they have all its calls."""
    longest_s = expert.step[0] * float(expert.decodes[-1])
    parts = expert.classes(ceil(min(max(longest_s / grain_s, FEWEST_CLASSES), MOST_CLASSES)))
    hosts = [_Host(model, expert, parts) for _ in range(n_workers)]
    for needed in _steps_needed(expert, parts, n_workers):
        for host in hosts:
            host.need(model, needed)
    for c, part in enumerate(parts):
        model.at_least([(host.led[c], 1.0) for host in hosts], 1.0)
        model.equal([(host.share[c], 1.0) for host in hosts], 1.0)
        model.equal([(host.lean_s[c], 1.0) for host in hosts], float(expert.lean_s[part].sum()))
    return hosts
