"""A time no run of the whole mixture can beat, from the first load to the last answer, at the same answers.

It holds for every run that leaves started calls on their worker, also one that knows all lengths and answers,
orders, holds back, cancels and overlaps as it likes and has weights read and the aggregator loaded ahead, as
long as each question ends with the gate's word; and, where workers are alike and no cache keeps blocks, for
one that moves calls between engines of equal size: a call that moves gets a token out of a prefill, as a
preempted one does, which the charges allow for. What a gate says with calls pending is what it would say
however they end, so a question that it accepts finishes a *deciding set* of its calls: one on which the gate
accepts with the others pending (all of them, for a gate that does not cancel). A question that asks finishes
all its calls and then, since it reads them, the aggregator's. Two parts relax this; their maximum is a bound.

* **work**: N workers up to T have N T seconds. Every token of a finished call costs at least what
  :func:`~mosaicsim.schedulers.bounds.call_work_s` charges, whatever runs beside it, tokens of calls cancelled
  later included; so charges add up, and a question adds at least its cheapest deciding set. On a group of g
  workers a second takes g of theirs. An expert that every deciding set of some question calls is loaded once,
  and the aggregator if one asks, less what is read ahead; but the least of all reads comes before all else
  (argument: :func:`~mosaicsim.schedulers.bounds.expert_stage_lower_bound`). Unlike workers are weighted: a
  weighted mean of busy times is below T.
* **chain**: a call waits for a load of its expert, an aggregator call for the last of its question's calls,
  and each takes at least its steps alone. Of an accepted question the fastest deciding set counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from mosaicsim.aggregation.base import Gate, Verdict
from mosaicsim.analysis.bound import expert_engines, limits_of, shares_prefixes
from mosaicsim.executors.fleet import Fleet
from mosaicsim.runtime.orchestrator import AGGREGATOR
from mosaicsim.schedulers.bounds import EngineLimits, ExpertCalls, call_work_s, longest_call_s
from mosaicsim.workload.ballots import Ballot
from mosaicsim.workload.calls import Bools, Floats, Ints, Workload

MOST_CHAINS = 50
"""Chains are tried for the questions with most tokens only: any of them is a bound."""


@dataclass(frozen=True)
class Engines:
    """What can be run where: ``experts[m][w]`` on worker w; ``aggregators`` on groups of workers.

    ``slots`` models share a worker's time, so that a load may run beside other work.
    """

    experts: Sequence[Sequence[EngineLimits]]
    aggregators: Sequence[tuple[tuple[int, ...], EngineLimits]]
    slots: int = 1
    prefix_caching: bool = False


@dataclass(frozen=True)
class EndToEndBound:
    """Seconds that no run with the gate's answers can beat, part by part."""

    work_s: float
    chain_s: float

    @property
    def seconds(self) -> float:
        """The bound: the larger part."""
        return max(self.work_s, self.chain_s)


def bound_of_whole_run(fleet: Fleet, workload: Workload, gate: Gate) -> EndToEndBound:
    """Bound any run of the workload on the fleet that ends with this gate's answers."""
    slots = fleet.pool.slots
    place = {w.index: i for i, w in enumerate(fleet.pool.workers)}
    aggregators = [
        (tuple(place[w] for w in group), limits_of(fleet.engine_of(AGGREGATOR, group), shared=slots > 1))
        for _, groups in fleet.aggregator_groups()
        for group in groups
    ]
    experts = expert_engines(fleet, workload)
    caching = shares_prefixes(fleet, workload)
    return end_to_end_lower_bound(workload, gate, Engines(experts, aggregators, slots, caching))


def end_to_end_lower_bound(workload: Workload, gate: Gate, engines: Engines) -> EndToEndBound:
    """Bound the makespan of any run that ends every question with the gate's word on all its calls."""
    bound = _Bound(workload, gate, engines)
    return EndToEndBound(bound.work_s(), bound.chain_s())


def deciding_sets(workload: Workload, gate: Gate, question: int) -> list[tuple[int, ...]]:
    """Sets of a question's calls, by id, one of which finishes in every run; empty where the gate asks."""
    k = len(workload.calls) // workload.n_questions
    ids = range(question * k, (question + 1) * k)
    sizes = range(1, k + 1) if gate.cancels else (k,)
    return [
        found
        for size in sizes
        for found in combinations(ids, size)
        if gate.decide(_ballot(workload, question, ids, found)).verdict is Verdict.ACCEPT
    ]


def _ballot(workload: Workload, question: int, ids: range, ended: tuple[int, ...]) -> Ballot:
    known = workload.outcomes.confidence
    return Ballot(
        answers=tuple(int(workload.outcomes.answer[c]) for c in ended),
        experts=tuple(int(workload.calls.expert[c]) for c in ended),
        confidences=tuple(float("nan") if known is None else float(known[c]) for c in ended),
        pending=tuple(int(workload.calls.expert[c]) for c in ids if c not in ended),
        category=workload.categories[question],
    )


class _Bound:
    """The parts of the bound, and what they share."""

    def __init__(self, workload: Workload, gate: Gate, engines: Engines) -> None:
        self._workload, self._engines = workload, engines
        self._k = len(workload.calls) // workload.n_questions
        self._sets = [deciding_sets(workload, gate, q) for q in range(workload.n_questions)]
        self._asked = np.array([q for q, sets in enumerate(self._sets) if not sets], np.int64)

    def work_s(self) -> float:
        """The work part: the better of equal weights and each worker's speed at all the work."""
        n_workers = len(self._engines.experts[0])
        total = self._work.sum(axis=0)
        weights = (np.ones(n_workers), 1 / np.maximum(total, 1e-12))
        return max(self._weighted_s(w / w.sum()) for w in weights)

    def _weighted_s(self, share: Floats) -> float:
        """A weighted mean of the workers' busy times, each call at its cheapest weighted place."""
        calls = (self._work * share).min(axis=1)
        seconds = sum(min(calls[list(s)].sum() for s in self._finishing(q)) for q in range(len(self._sets)))
        if len(self._asked):
            places = self._engines.aggregators
            places_s = [share[list(g)].sum() * self._aggregation_s(e) for g, e in places]
            seconds += np.min(places_s, axis=0).sum()
        loads_s = self._loads_s(share) if self._engines.slots == 1 else 0.0
        return float(self._first_s() + loads_s + seconds)

    def _first_s(self) -> float:
        """Seconds in which nothing can generate: the least read."""
        called = np.unique(self._workload.calls.expert).tolist()
        engines = [e for m in called for e in self._engines.experts[m]]
        engines += [e for _, e in self._engines.aggregators]
        return float(min(e.disk_s for e in engines))

    def _loads_s(self, share: Floats) -> float:
        seconds = 0.0
        for m in self._surely_called():
            row = zip(share, self._engines.experts[m], strict=True)
            seconds += min(s * (e.load_s - e.disk_s) for s, e in row)
        if len(self._asked):
            places = self._engines.aggregators
            seconds += min(share[list(g)].sum() * (e.load_s - e.disk_s) for g, e in places)
        return seconds

    def _surely_called(self) -> set[int]:
        """Experts that every way to end some question calls."""
        expert = self._workload.calls.expert
        found: set[int] = set()
        for q in range(len(self._sets)):
            found |= set.intersection(*({int(expert[c]) for c in s} for s in self._finishing(q)))
        return found

    def _finishing(self, question: int) -> list[tuple[int, ...]]:
        """Sets of calls one of which finishes: the deciding ones, or all calls for the aggregator to read."""
        first = question * self._k
        return self._sets[question] or [tuple(range(first, first + self._k))]

    @cached_property
    def _work(self) -> Floats:
        """Least engine seconds of every call on every worker, shape (calls, workers)."""
        work = np.zeros((len(self._workload.calls), len(self._engines.experts[0])))
        charged = self._without_twins()
        for m, row in enumerate(self._engines.experts):
            own = np.flatnonzero(self._workload.calls.expert == m)
            if len(own):
                calls = self._of_experts(own, charged[own])
                known = {_kind(e): call_work_s(calls, e) for e in _unlike(row)}
                work[own] = np.stack([known[_kind(e)] for e in row], axis=1)
        return work

    def _without_twins(self) -> Bools:
        """Calls whose prompt is surely prefilled for them: with caching, no other of theirs has the same."""
        calls = self._workload.calls
        if not self._engines.prefix_caching:
            return np.ones(len(calls), np.bool_)
        key = calls.expert * (int(calls.question.max(initial=0)) + 1) + calls.question
        _, group, twins = np.unique(key, return_inverse=True, return_counts=True)
        alone: Bools = twins[group] == 1
        return alone

    def _of_experts(self, ids: Ints, charged: Bools) -> ExpertCalls:
        prompt, output = self._workload.calls.prompt_tokens[ids], self._workload.outcomes.output_tokens[ids]
        return ExpertCalls(prompt.astype(np.float64), output.astype(np.float64), charged)

    def _of_aggregator(self, questions: Ints) -> ExpertCalls:
        table = self._workload.aggregator
        prompt, output = table.prompt_tokens[questions], table.output_tokens[questions]
        return ExpertCalls(
            prompt.astype(np.float64), output.astype(np.float64), np.ones(len(questions), np.bool_)
        )

    def _aggregation_s(self, engine: EngineLimits) -> Floats:
        return call_work_s(self._of_aggregator(self._asked), engine)

    def chain_s(self) -> float:
        """The chain part, over the questions with most tokens one after another."""
        return max(self._chains(), default=0.0)

    def _chains(self) -> Iterator[float]:
        output = self._workload.outcomes.output_tokens
        tokens = np.array(
            [min(output[list(s)].max() for s in self._finishing(q)) for q in range(len(self._sets))]
        )
        tokens[self._asked] += self._workload.aggregator.output_tokens[self._asked]
        for q in np.argsort(-tokens, kind="stable")[:MOST_CHAINS].tolist():
            last = min(max(self._alone_s(c) for c in s) for s in self._finishing(q))
            yield last if self._sets[q] else last + self._aggregated_alone_s(q)

    def _alone_s(self, call: int) -> float:
        own = self._of_experts(np.array([call]), np.ones(1, np.bool_))
        shared = self._engines.prefix_caching
        row = self._engines.experts[int(self._workload.calls.expert[call])]
        return min(e.load_s + longest_call_s(own, e, prompt_shared=shared) for e in _unlike(row))

    def _aggregated_alone_s(self, question: int) -> float:
        own = self._of_aggregator(np.array([question]))
        engines = _unlike([e for _, e in self._engines.aggregators])
        return min(longest_call_s(own, e, prompt_shared=False) for e in engines)


def _kind(engine: EngineLimits) -> tuple[float, ...]:
    """Equal for engines that cost the same; tables are long, so their identity stands for them."""
    return id(engine.tables), engine.load_s, engine.disk_s, engine.kv_capacity_tokens, engine.max_num_seqs


def _unlike(engines: Sequence[EngineLimits]) -> list[EngineLimits]:
    """One engine of each kind."""
    return list({_kind(e): e for e in engines}.values())
