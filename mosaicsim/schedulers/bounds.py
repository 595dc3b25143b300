"""A time the expert stage cannot beat, whatever the scheduler: the yardstick beside every run.

Each part relaxes what every schedule must do, so their maximum is a bound. Why the work part holds:

* A step with B >= 1 decode sequences over C context tokens costs at least ``base + slope B + context C`` for
  any line ``base + slope B`` below the tables; P prefill tokens add at least ``prefill P``, the least rate.
* The first token of a call comes out of its prefill, token g + 1 out of a step in which it attends prompt + g
  tokens. Over all steps the B add up to the decode tokens and the C to the attended tokens, exactly.
* A step holds at most max_num_seqs sequences, and at most the KV cache's tokens, so ``base`` is paid at least
  tokens / max_num_seqs and attended / kv_capacity times. Either way a token costs an affine function of g.
* A preempted call gets its next token out of recomputing its prefill instead, of at least the g tokens
  generated (its prompt may be shared). So a token never costs less than ``min(affine(g), prefill g)``.
* With prefix caching it may recompute one token only, and attends to the others, which cost no less than
  ``context`` each. Under V1 its step still holds at most max_num_seqs sequences, and pays the base for them;
  only ``slope`` is replaced by the cost of that token. Nor is a call preempted more often than calls need a
  block: each preemption is for a need that is met at once, or the victim's own, which is met at its return.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf

import numpy as np

from mosaicsim.hardware.latency import StepTables
from mosaicsim.schedulers.packing_bound import ExpertNeeds, not_known, packing_bound
from mosaicsim.workload.calls import Bools, CallTable, Floats, Ints


@dataclass(frozen=True)
class EngineLimits:
    """What bounds an expert's engine on a worker: step costs, load time, sequences and KV tokens at once.

    ``disk_s`` is the part of ``load_s`` for which weights are read, perhaps while the worker is busy.

    ``mixes_prefill``: decodes may run in a step with prefill (vLLM's V1). Without it (V0) a prefill step
    stands alone and pays its own base. ``keeps_blocks``: a preempted call may find its own KV again (prefix
    caching), in blocks of ``block_size`` tokens. No cost in ``tables`` may be negative.
    """

    tables: StepTables
    load_s: float
    kv_capacity_tokens: int
    max_num_seqs: int
    mixes_prefill: bool = True
    keeps_blocks: bool = False
    block_size: int = 1
    disk_s: float = 0.0


@dataclass(frozen=True)
class LowerBound:
    """Seconds that no schedule of the expert stage can beat, part by part.

    ``work_s``: every expert loaded once and all work, spread over all workers; ``expert_s``: one expert
    loaded, then its work on all workers; ``longest_call_s``: one call loaded for and run alone; ``loads_s``:
    the loads that some worker must do because there are more experts than workers; ``packing_s``: all the
    work, with the tails of long calls and a load for each worker an expert needs
    (:mod:`~mosaicsim.schedulers.packing_bound`).
    """

    work_s: float
    expert_s: float
    longest_call_s: float
    loads_s: float
    packing_s: float = 0.0

    @property
    def seconds(self) -> float:
        """The bound: the largest part."""
        return max(self.work_s, self.expert_s, self.longest_call_s, self.loads_s, self.packing_s)


@dataclass(frozen=True)
class ExpertCalls:
    """One expert's calls, columns of shape (n,); ``charged`` marks prompts that surely were prefilled."""

    prompt_tokens: Floats
    output_tokens: Floats
    charged: Bools


def expert_stage_lower_bound(
    calls: CallTable,
    output_tokens: Ints,
    engines: Sequence[Sequence[EngineLimits]],
    *,
    finished: Ints | None = None,
    prefix_caching: bool = False,
    slots: int = 1,
    calls_stay: bool = True,
) -> LowerBound:
    """Bound the expert stage of any run that finished the calls ``finished`` (ids; default: all of them).

    ``engines[m][w]`` is expert m on worker w, ``output_tokens`` has shape (calls,). With ``prefix_caching``
    one of several identical prompts is charged. ``slots`` experts at a time share a worker's generation time,
    and loads may then run beside it, so that no load is added to the work. Lost workers, contended disks,
    wake-ups and cancelled calls only add to a run.

    Without ``calls_stay`` a started call may go on elsewhere, as after a preemption. The packing, which asks
    what one worker can do, is left out then; where workers are unlike, so that a call may begin on one kind
    and end on another, or where preempted calls find their blocks again, only the loads count.

    Weights may be read ahead, which spares a busy worker the disk part of a load. But no session is ready
    before its own weights have been read and its engine has started, one after the other: ``load_s`` into the
    run at the earliest. So where every read takes d seconds or more, nothing generates in the first d, and
    what follows is, d earlier, a run whose loads have no disk part: what bounds that, and d, bounds the run.
    """
    ids = np.arange(len(calls)) if finished is None else finished
    pool = _by_expert(calls, output_tokens, ids, prefix_caching)
    if not pool:
        return LowerBound(0.0, 0.0, 0.0, 0.0)
    kinds, workers = _kinds(engines)
    n_workers = int(workers.sum())
    work = {m: np.array([call_work_s(own, engines[m][w]) for w in kinds]) for m, own in pool.items()}
    load = {m: np.array([engines[m][w].load_s for w in kinds]) for m in pool}
    ahead = {m: load[m] - [engines[m][w].disk_s for w in kinds] for m in pool}
    first_s = min(engines[m][w].disk_s for m in pool for w in kinds)
    unhidden = ahead if slots == 1 else {m: np.zeros(len(kinds)) for m in pool}
    per_worker = -(-len(pool) // (n_workers * slots))
    simple = LowerBound(
        work_s=_spread(work, unhidden, workers) + first_s,
        expert_s=max(float(load[m].min() + work[m].min(axis=0).sum() / n_workers) for m in pool),
        longest_call_s=max(
            min(
                engines[m][w].load_s + longest_call_s(own, engines[m][w], prompt_shared=prefix_caching)
                for w in kinds
            )
            for m, own in pool.items()
        ),
        loads_s=sum(sorted(float(ahead[m].min()) for m in pool)[:per_worker]) + first_s,
    )
    if not calls_stay:
        known = len(kinds) == 1 and not any(engine.keeps_blocks for row in engines for engine in row)
        return simple if known else LowerBound(0.0, 0.0, 0.0, simple.loads_s)
    needs = [
        _needs(own, [engines[m][w] for w in kinds], work[m], float(load[m].min()), float(unhidden[m].min()))
        for m, own in pool.items()
    ]
    return replace(simple, packing_s=packing_bound(needs, n_workers, simple.seconds, first_s))


def _needs(
    calls: ExpertCalls, engines: Sequence[EngineLimits], work: Floats, load_s: float, taken_s: float
) -> ExpertNeeds:
    """An expert's calls for the packing bound: on the kind of worker where each part is least."""
    led = [led_work_s(calls, engine) for engine in engines]
    lean, lead = np.min([pair[0] for pair in led], axis=0), np.min([pair[1] for pair in led], axis=0)
    order = np.argsort(-lead, kind="stable")
    # how caches fill is known of workers alike that drop a preempted call's blocks
    known = len(engines) == 1 and not engines[0].keeps_blocks
    filling = partial(filling_work_s, calls, engines[0]) if known else not_known
    return ExpertNeeds(load_s, taken_s, work.min(axis=0)[order], lean[order], lead[order], filling)


def _by_expert(
    calls: CallTable, output_tokens: Ints, ids: Ints, prefix_caching: bool
) -> dict[int, ExpertCalls]:
    """The finished calls of each expert that has any."""
    charged = _one_of_each_prompt(calls, ids) if prefix_caching else np.ones(len(calls), np.bool_)
    pool = {}
    for m in np.unique(calls.expert[ids]).tolist():
        rows = ids[calls.expert[ids] == m]
        columns = calls.prompt_tokens[rows].astype(np.float64), output_tokens[rows].astype(np.float64)
        pool[m] = ExpertCalls(*columns, charged[rows])
    return pool


def _one_of_each_prompt(calls: CallTable, ids: Ints) -> Bools:
    """Mark one call of each prompt whose calls all finished: else one that did not may have prefilled it."""
    key = calls.expert * (int(calls.question.max(initial=0)) + 1) + calls.question
    _, first, group, twins = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
    complete = np.bincount(group[ids], minlength=len(first)) == twins
    marked = np.zeros(len(calls), np.bool_)
    marked[first[complete]] = True
    return marked


def _kinds(engines: Sequence[Sequence[EngineLimits]]) -> tuple[list[int], Ints]:
    """Kinds of worker (equal engines for every expert): one worker of each, and how many there are."""
    members: dict[tuple[tuple[float, ...], ...], list[int]] = {}
    for w, column in enumerate(zip(*engines, strict=True)):
        # tables are long lists: their identity tells them apart, at worst two alike count as two kinds
        key = tuple((id(e.tables), e.load_s, e.disk_s, e.kv_capacity_tokens, e.max_num_seqs) for e in column)
        members.setdefault(key, []).append(w)
    return [group[0] for group in members.values()], np.array([len(group) for group in members.values()])


def _spread(work: dict[int, Floats], load: dict[int, Floats], workers: Ints) -> float:
    """Least makespan of work that may be cut at will, by weak duality.

    ``work[m]`` has shape (kinds, calls), ``load[m]`` (kinds,). The makespan is at least any weighted mean of
    the workers' busy times, in which each call counts at least its cheapest weighted place. Two sets of
    weights are tried: equal ones, and each kind's speed at the whole. With workers alike both are 1 / N.
    """
    total = np.array([work[m].sum(axis=1) + load[m] for m in work]).sum(axis=0)
    bounds = []
    for weight in (np.ones_like(total), 1 / np.maximum(total, 1e-12)):
        share = weight / (weight * workers).sum()
        calls_s = sum((share[:, None] * seconds).min(axis=0).sum() for seconds in work.values())
        bounds.append(calls_s + sum((share * seconds).min() for seconds in load.values()))
    return float(max(bounds))


def call_work_s(calls: ExpertCalls, engine: EngineLimits) -> Floats:
    """Least engine time each call takes up, whatever it is batched with; shape (n,)."""
    return max((_separable_work_s(calls, one) for one in _separable(engine)), key=np.sum)


def _separable_work_s(calls: ExpertCalls, engine: EngineLimits) -> Floats:
    """:func:`call_work_s` for tables without a part by tokens."""
    full, capacity = float(engine.max_num_seqs), float(engine.kv_capacity_tokens)
    # the base is paid for each full batch of sequences, or for each KV cache full of attended tokens
    ways = (full, 1 / full, 0.0), (mean_batch(calls, engine), 0.0, 1 / capacity)
    return max((_charged_s(calls, engine, *way) for way in ways), key=np.sum)


def led_work_s(calls: ExpertCalls, engine: EngineLimits) -> tuple[Floats, Floats]:
    """Least engine time of each call without any base, and what it adds if all its steps' bases are its own.

    Both have shape (n,). The tokens of one call come out of different steps: of the calls of an expert on a
    worker, one, say the longest, can be charged all the bases of its steps, and the others the rest.
    """
    batch, found = mean_batch(calls, engine), []
    for one in _separable(engine):
        without = _charged_s(calls, one, batch, 0.0, 0.0)
        found.append((without, _charged_s(calls, one, batch, 1.0, 0.0) - without))
    return max(found, key=lambda pair: float(pair[0].sum() + pair[1].max()))


def filling_work_s(calls: ExpertCalls, engine: EngineLimits, room_s: float) -> float:
    """Least engine time of all calls on hosts with ``room_s`` each, whose KV caches are empty at first.

    In the t-th decode step of a host with n calls none has generated more than t tokens, so that at most
    ``min(K, n (p + t))`` tokens are attended of a KV cache of K, if of each prompt p count at most. What the
    host attends, x, then takes ``x / K + R(n)`` steps or more, where ``R(n) = (K - n (p + 1))^2 / (2 n K)``
    is lost while the cache fills (p + 1, since steps are whole), or fewer where x is too little to fill it.
    In any case steps are concave in x and convex in n. A host attends at most X in its room; so hosts that
    attend ``h X`` in all lose at least ``h R(n / h)`` with n calls in all (a chord in x, Jensen's inequality
    in n), which is convex in h, as long as X fills the cache of a host with ``n / h`` calls. Its tangent is
    charged to attended tokens, for those that are recomputed are none of them. 0: nothing is known.
    """
    return max(_separable_filling_s(calls, one, room_s) for one in _separable(engine))


def _separable_filling_s(calls: ExpertCalls, engine: EngineLimits, room_s: float) -> float:
    """:func:`filling_work_s` for tables without a part by tokens."""
    own, n, capacity = _own_prompt(calls), len(calls.prompt_tokens), float(engine.kv_capacity_tokens)
    batch, counted = mean_batch(calls, engine), float(own.mean())
    (step_s, context), decodes = _decode_steps(engine), np.maximum(calls.output_tokens - 1, 0)
    base, slope = line_below(step_s, batch)
    prompt = np.minimum(own, counted)
    attended = float((decodes * prompt + decodes * (decodes + 1) / 2).sum())
    longest = max(float((prompt + decodes).max()), 1.0)
    least_s = context + base / capacity + slope / longest
    if not attended or not least_s:
        return 0.0
    most = room_s / least_s
    hosts = attended / most
    at_once, whole = n * (counted + 1), hosts * capacity
    if hosts > n or whole <= at_once or whole**2 - at_once**2 > 2 * n * attended:
        return 0.0
    charge = 1 / capacity + (whole - at_once) / (n * most)
    tangent_s = base * (whole**2 - at_once**2) / (2 * n * capacity)
    return float(_charged_s(calls, engine, batch, 0.0, charge, counted).sum()) - tangent_s


def mean_batch(calls: ExpertCalls, engine: EngineLimits) -> float:
    """The largest mean batch that sequences and KV cache allow."""
    decodes, full = np.maximum(calls.output_tokens - 1, 0), float(engine.max_num_seqs)
    stored = float((decodes * _own_prompt(calls) + decodes * (decodes + 1) / 2).sum())
    return min(full, float(decodes.sum()) * engine.kv_capacity_tokens / stored) if stored else full


def _own_prompt(calls: ExpertCalls) -> Floats:
    return np.where(calls.charged, calls.prompt_tokens, 0.0)


def _charged_s(
    calls: ExpertCalls,
    engine: EngineLimits,
    batch: float,
    a_token: float,
    a_context: float,
    most_prompt: float = inf,
) -> Floats:
    """Least engine time of each call when a token pays so much of a step's base, and an attended one.

    The line below the step costs is the highest at ``batch``. Of a prompt at most ``most_prompt`` tokens pay.
    """
    decodes, own_prompt = np.maximum(calls.output_tokens - 1, 0), _own_prompt(calls)
    triangle = decodes * (decodes + 1) / 2
    (step_s, context), rate = _decode_steps(engine), _prefill_rate(engine)
    if engine.keeps_blocks:
        context = min(context, rate)
    base, slope = line_below(step_s, batch)
    if engine.keeps_blocks and engine.mixes_prefill:
        base = min(base, engine.tables.mixed_base[0])
    share = base * (a_token + a_context * np.minimum(own_prompt, most_prompt)) + slope
    growth = base * a_context + context
    seconds = decodes * (share + context * calls.prompt_tokens) + growth * triangle
    if not engine.keeps_blocks:
        first = share + context * calls.prompt_tokens
        seconds -= _positive_sum(first, growth - rate, decodes)
    elif not engine.mixes_prefill:
        spared = np.maximum(share - (rate - context), 0.0)
        seconds -= _positive_sum(spared, base * a_context, decodes)
    else:
        needs = np.minimum(decodes, decodes / engine.block_size + 1)
        seconds -= max(slope - (rate - context), 0.0) * needs
    charged: Floats = np.maximum(seconds, 0.0) + rate * own_prompt
    return charged


def _separable(engine: EngineLimits) -> list[EngineLimits]:
    """The engine with tables below its own that have no part by tokens.

    A line ``base + slope T`` below that part splits into one of B and one of P. Two lines are tried: the
    level of the weights that every step streams, and the steepest, which charges each token its arithmetic.
    """
    tables = engine.tables
    if not any(tables.tokens):
        return [engine]
    step_s = np.array(tables.tokens[1:])
    lines = (float(step_s.min()), 0.0), line_below(step_s, len(step_s))
    return [replace(engine, tables=_split(tables, base, slope)) for base, slope in lines]


def _split(tables: StepTables, base: float, slope: float) -> StepTables:
    """Tables with ``base + slope T`` in place of their part by tokens T = B + P."""
    return replace(
        tables,
        mixed_base=[s + base + slope * b for b, s in enumerate(tables.mixed_base)],
        prefill=[s + slope * p for p, s in enumerate(tables.prefill)],
        tokens=[],
    )


def longest_call_s(calls: ExpertCalls, engine: EngineLimits, *, prompt_shared: bool) -> float:
    """Least time of the call with most output tokens, from its first step to its last.

    Token g + 1 costs a step of at least one sequence, or one that recomputes at least g tokens, or with
    blocks kept one token, and attends to the others.
    """
    return max(_separable_call_s(calls, one, prompt_shared) for one in _separable(engine))


def _separable_call_s(calls: ExpertCalls, engine: EngineLimits, prompt_shared: bool) -> float:
    """:func:`longest_call_s` for tables without a part by tokens."""
    i = int(np.argmax(calls.output_tokens))
    generated = np.arange(1, int(calls.output_tokens[i]))
    context = calls.prompt_tokens[i] + generated
    tables, rate = engine.tables, _least_rate(engine.tables.prefill)
    recomputed_s = rate * generated
    if engine.keeps_blocks:
        recomputed_s = rate + min(tables.mixed_context, rate) * (context - 1)
    step_s = np.minimum(
        min(tables.decode_base[1:]) + tables.decode_context * context,
        min(tables.mixed_base) + recomputed_s,
    )
    if engine.mixes_prefill:
        step_s = np.minimum(step_s, min(tables.mixed_base[1:]) + tables.mixed_context * context)
    prompt = 0.0 if prompt_shared else calls.prompt_tokens[i]
    return float(min(tables.mixed_base) + rate * prompt + step_s.sum())


def _decode_steps(engine: EngineLimits) -> tuple[Floats, float]:
    """Least cost of a step by its decode sequences 1, 2, ..., and the least cost of a token it attends."""
    tables, end = engine.tables, engine.max_num_seqs + 1
    decode = np.array(tables.decode_base[1:end])
    if not engine.mixes_prefill:
        kept = tables.mixed_context if engine.keeps_blocks else tables.decode_context
        return decode, min(tables.decode_context, kept)
    return np.minimum(decode, tables.mixed_base[1:end]), min(tables.decode_context, tables.mixed_context)


def _prefill_rate(engine: EngineLimits) -> float:
    """Least seconds a prefilled token costs; a step that stands alone shares its base among its tokens."""
    base = 0.0 if engine.mixes_prefill else engine.tables.mixed_base[0]
    return _least_rate(engine.tables.prefill, base)


def _least_rate(prefill: Sequence[float], base_s: float = 0.0) -> float:
    """Least seconds a token, with ``base_s`` a step, in a table by tokens; 0 if that ends at no tokens."""
    seconds = base_s + np.array(prefill[1:])
    return float((seconds / np.arange(1, len(prefill))).min()) if len(seconds) else 0.0


def line_below(step_s: Floats, batch: float) -> tuple[float, float]:
    """Base and slope, neither negative, of a line below ``step_s[B - 1]`` for all B, high at ``batch``.

    The table's own slopes are tried, its chord, a constant and a line through the origin; whatever the slope,
    the base is taken so that the line stays below.
    """
    sizes = np.arange(1, len(step_s) + 1)
    chord = (step_s[-1] - step_s[0]) / max(len(step_s) - 1, 1)
    slopes = np.unique([0.0, (step_s / sizes).min(), chord, *np.diff(step_s)])
    slopes = slopes[slopes >= 0]
    bases = (step_s - slopes[:, None] * sizes).min(axis=1)
    height = np.where(bases >= 0, bases + slopes * max(batch, 1.0), -np.inf)
    best = int(np.argmax(height))
    return float(bases[best]), float(slopes[best])


def _positive_sum(first: Floats, growth: float, terms: Floats) -> Floats:
    """Sum of ``max(0, first + growth g)`` over g = 1..terms, elementwise; ``first`` is not negative."""
    last = terms
    if growth < 0:
        # the nudge keeps a quotient that rounded down from losing a term; one too many is about zero
        last = np.minimum(np.floor(np.minimum(first, -growth * terms) / -growth + 1e-9), terms)
    total: Floats = last * first + growth * last * (last + 1) / 2
    return total
