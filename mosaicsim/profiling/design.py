"""Which steps to measure, so that every cost shows, within the time there is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

SHORT_PROMPT = 16
PIECE = 128
"""Long prefills are measured as one prompt and as many of this length: they differ by their attention."""

STEPS = 6
"""Decode steps a point, at least."""

LEAST_POINTS = 20


@dataclass(frozen=True)
class Limits:
    """What the engine resolved: no point may ask for more."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    kv_capacity_tokens: int


@dataclass(frozen=True)
class Point:
    """``batch`` sequences of ``prompt_tokens`` decode ``steps`` steps; then come prefills beside them.

    Each of ``prefills`` are prompts that are added together and end with their first token.
    """

    batch: int = 0
    prompt_tokens: int = SHORT_PROMPT
    steps: int = 0
    prefills: tuple[tuple[int, ...], ...] = ()
    held_out: bool = False

    @property
    def prefilled_tokens(self) -> int:
        """Prompt tokens in all, which is what a point mostly costs."""
        return self.batch * self.prompt_tokens + sum(map(sum, self.prefills))

    def setup_steps(self, limits: Limits) -> int:
        """Steps that prefill the batch, while its first sequences decode already."""
        room = limits.max_num_batched_tokens - self.batch
        return -(-self.batch * self.prompt_tokens // max(1, room))

    def output_tokens(self, limits: Limits) -> int:
        """Tokens that each sequence of the batch must have left until the last prefill is through."""
        room = max(1, limits.max_num_batched_tokens - self.batch)
        beside = sum(-(-sum(prompts) // room) for prompts in self.prefills)
        return self.setup_steps(limits) + self.steps + beside + 2


@dataclass(frozen=True)
class Speed:
    """A first impression: seconds of a decode step and of a prefilled token."""

    step_s: float
    token_s: float

    def seconds(self, point: Point) -> float:
        """Estimate of what the point takes."""
        steps = point.steps + len(point.prefills) + 2
        return self.token_s * point.prefilled_tokens + 1.5 * self.step_s * steps


def design(limits: Limits, speed: Speed, budget_s: float) -> list[Point]:
    """Points that fit the engine, and together the budget; every third or so is held out of the fit.

    The dearest are left out first, and one that takes a fifth of the budget always: what is cheap tells the
    engine's base costs. ``LEAST_POINTS`` stay, whatever they take.
    """
    wanted = [*_decodes(limits), *_contexts(limits, speed, budget_s), *_prefills(limits), *_mixed(limits)]
    points = list(dict.fromkeys(p for p in wanted if _fits(p, limits)))
    cost = {p: speed.seconds(p) for p in points}
    while len(points) > LEAST_POINTS:
        dearest = max(points, key=cost.__getitem__)
        if sum(cost[p] for p in points) <= budget_s and cost[dearest] <= budget_s / 5:
            break
        points.remove(dearest)
    return points


def passes(points: list[Point], speed: Speed, budget_s: float) -> int:
    """How often to go through the points: 1 to 3 times."""
    return max(1, min(3, int(budget_s / sum(map(speed.seconds, points)))))


def _powers(first: int, last: int) -> Iterator[int]:
    while first < last:
        yield first
        first *= 2
    yield last


def _short(limits: Limits) -> int:
    return max(1, min(SHORT_PROMPT, limits.max_model_len // 4))


def _decodes(limits: Limits) -> Iterator[Point]:
    """The batch at little context, dense where kernels change; batches between are held out."""
    prompt, seats = _short(limits), limits.max_num_seqs
    fitted = sorted({*_powers(1, seats), *(b for b in _powers(3, seats) if 4 < seats > b)})
    for batch in fitted:
        yield Point(batch, prompt, STEPS)
    yield Point(1, 5 * prompt, STEPS)
    for batch in sorted({1, seats}):
        yield Point(batch, 3 * prompt, STEPS, held_out=True)
    for below, above in itertools.pairwise(fitted):
        if above - below > 1:
            yield Point((below + above) // 2, prompt, STEPS, held_out=True)


def _contexts(limits: Limits, speed: Speed, budget_s: float) -> Iterator[Point]:
    """Much context: in one sequence, in some, in a full batch; and beside a small prefill."""
    affordable = 0.07 * budget_s / speed.token_s
    total = min(affordable, 0.9 * limits.kv_capacity_tokens)
    longest = limits.max_model_len - STEPS - 2
    batches = sorted({1, *(max(1, limits.max_num_seqs // k) for k in (8, 2, 1))})
    for share, held_out in ((1.0, False), (0.6, True)):
        for batch in batches:
            prompt = min(int(share * total) // batch, longest)
            if prompt > 2 * SHORT_PROMPT:
                beside = ((2 * SHORT_PROMPT,),) if batch < limits.max_num_seqs else ()
                yield Point(batch, prompt, STEPS, beside, held_out)


def _prefills(limits: Limits) -> Iterator[Point]:
    """Prefill alone, of one prompt and of many, and of one that takes several steps."""
    longest = limits.max_model_len - 2
    largest = limits.max_num_batched_tokens
    for tokens in _powers(16, largest):
        yield from _prefill(tokens, longest, held_out=False)
    for tokens in _powers(24, largest - 1):
        if tokens % 3 == 0:
            yield from _prefill(tokens, longest, held_out=True)
    if longest > largest:
        yield Point(prefills=((min(longest, 2 * largest),),))


def _prefill(tokens: int, longest: int, *, held_out: bool) -> Iterator[Point]:
    if tokens <= longest:
        yield Point(prefills=((tokens,),), held_out=held_out)
    pieces, rest = divmod(tokens, min(PIECE, longest))
    if pieces > 1:
        prompts = (min(PIECE, longest),) * pieces + ((rest,) if rest else ())
        yield Point(prefills=(prompts,), held_out=held_out)


def _mixed(limits: Limits) -> Iterator[Point]:
    """Decodes beside prefills of several sizes."""
    prompt, seats = _short(limits), limits.max_num_seqs
    longest = min(limits.max_model_len - 2, limits.max_num_batched_tokens - seats)
    sizes, others = (
        tuple((min(n, longest),) for n in lengths if longest > 0) for lengths in ((32, 128, 512), (64, 256))
    )
    for batch in sorted({max(1, seats // 8), max(1, seats // 2), seats - 1} - {0}):
        yield Point(batch, prompt, 2, sizes)
    if seats > 2:
        yield Point(max(1, seats // 4), prompt, 2, others, held_out=True)


def _fits(point: Point, limits: Limits) -> bool:
    """Whether the engine can hold the point at once."""
    most = max((sum(prompts) for prompts in point.prefills), default=0)
    sequences = point.batch + max((len(prompts) for prompts in point.prefills), default=0)
    length = point.prompt_tokens + point.output_tokens(limits)
    return (
        sequences <= limits.max_num_seqs
        and point.batch * length + most <= 0.95 * limits.kv_capacity_tokens
        and length <= limits.max_model_len
    )
