"""Routers: which expert fills each of a question's k slots.

A router sees a block's experts and categories, and grades on calibration questions only. Popularity routers
turn a target into exact slot counts, so the target is met up to rounding to whole slots, not on average.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from pydantic import Field, NonNegativeInt, model_validator

from mosaicsim.errors import ScenarioError, TraceError, nearest
from mosaicsim.validation import StrictModel
from mosaicsim.workload.calls import Floats, Ints
from mosaicsim.workload.dealing import deal, draw_weighted, whole_slots


@dataclass(frozen=True)
class RoutingInput:
    """What a router may look at.

    ``category`` (questions,) codes each evaluated question's category; ``graded`` and ``right``
    (categories + 1, experts) count the calibration rows with a grade and the correct ones, the last row those
    of categories that are not evaluated; ``recorded`` (questions, k') is the routing the trace holds, if any.
    ``source`` names the trace in messages.
    """

    k: int
    experts: tuple[str, ...]
    category: Ints
    graded: Ints
    right: Ints
    recorded: Ints | None
    source: str = "trace"

    @property
    def n_questions(self) -> int:
        """Questions to route."""
        return len(self.category)

    @property
    def n_slots(self) -> int:
        """Slots to fill."""
        return self.n_questions * self.k


@dataclass(frozen=True)
class HeldOut:
    """The calibration questions as a router may see them, for routing them as if they were evaluated.

    ``block`` is of these questions, its grades those of all of them. ``own_graded`` and ``own_right``
    (questions, experts) are each question's own part in these, which must not decide how it is routed.
    """

    block: RoutingInput
    own_graded: Ints
    own_right: Ints


class RouterOptions(StrictModel):
    """Base of every router's options."""


class DrawOptions(RouterOptions):
    """Options of the routers that draw."""

    replacement: bool = True
    """Whether a question may draw one expert twice (Symbolic-MoE does): then the expert samples twice."""

    resample: bool = False
    """Make up a repeat that the trace has no sample for: the row's answer, its length with log-sd 0.25."""


O = TypeVar("O", bound=RouterOptions)  # noqa: E741 - the usual one-letter name of a type variable


class Router(ABC, Generic[O]):
    """Draws experts for questions; holds its options and nothing else."""

    name: ClassVar[str]
    summary: ClassVar[str]
    Options: ClassVar[type[RouterOptions]]
    recorded: ClassVar[bool] = False
    """Whether the draw is the trace's own, so that its rows and aggregator rows are taken as they are."""

    def __init__(self, options: O) -> None:
        """Take the options, validated."""
        self.options = options

    @abstractmethod
    def draw(self, block: RoutingInput, rng: np.random.Generator) -> Ints:
        """Index of the expert drawn in each slot, shape (questions, k)."""

    def draw_calibration(self, held_out: HeldOut, drawn: Ints, rng: np.random.Generator) -> Ints:
        """Draw for the calibration questions as ``drawn`` came about; shape (calibration questions, k).

        By default each expert's share of the slots is that of ``drawn``, dealt at random.
        """
        block = held_out.block
        shares = np.bincount(drawn.ravel(), minlength=len(block.experts)) / drawn.size
        counts = whole_slots(shares, block.n_slots)
        replacement = not isinstance(self.options, DrawOptions) or self.options.replacement
        return deal(counts, block.experts, block.k, replacement, rng)


class Recorded(Router[RouterOptions]):
    """The routing recorded with the trace."""

    name = "recorded"
    summary = "the routing recorded with the trace (column slot)"
    Options = RouterOptions
    recorded = True

    def draw(self, block: RoutingInput, rng: np.random.Generator) -> Ints:
        """See :meth:`Router.draw`. Raises TraceError: no routing, or one of another k."""
        if block.recorded is None:
            drawing = ", ".join(name for name in ROUTERS if name != self.name)
            raise TraceError(
                f"{block.source}: no routing is recorded (column 'slot' is empty); "
                f"routers that draw one: {drawing}"
            )
        if block.recorded.shape[1] != block.k:
            raise TraceError(
                f"{block.source}: the recorded routing has k = {block.recorded.shape[1]}, not {block.k}"
            )
        return block.recorded

    def draw_calibration(self, held_out: HeldOut, drawn: Ints, rng: np.random.Generator) -> Ints:
        """The routing the calibration trace holds; where it holds none, dealt like the evaluated one."""
        if held_out.block.recorded is None:
            return super().draw_calibration(held_out, drawn, rng)
        return self.draw(held_out.block, rng)


class Uniform(Router[DrawOptions]):
    """Every expert equally likely in every slot."""

    name = "uniform"
    summary = "every expert equally likely"
    Options = DrawOptions

    def draw(self, block: RoutingInput, rng: np.random.Generator) -> Ints:
        """See :meth:`Router.draw`."""
        weights = np.ones((block.n_questions, len(block.experts)))
        return draw_weighted(weights, block.k, self.options.replacement, rng)


class SkillOptions(DrawOptions):
    """How strength becomes a weight."""

    pool_size: int | None = Field(default=None, ge=1)
    """Keep the strongest so many experts of each category; all unless given."""

    weights: Literal["proportional", "softmax"] = "proportional"
    temperature: float = Field(default=0.1, gt=0)
    """Of the softmax, in units of accuracy: 0.1 makes ten points of accuracy worth a factor e."""

    shrinkage: float = Field(default=10.0, ge=0)
    """Calibration questions that an expert's overall accuracy counts for in each category."""


class Skill(Router[SkillOptions]):
    """Symbolic-MoE's recruiting (arXiv 2503.05641): k draws by the experts' strength in the question's skill.

    Strength is accuracy per (category, expert) on the calibration questions, shrunk to the expert's mean, so
    that a category with few calibration questions does not decide by luck.
    """

    name = "skill"
    summary = "by per-category accuracy on the calibration questions (Symbolic-MoE)"
    Options = SkillOptions

    def draw(self, block: RoutingInput, rng: np.random.Generator) -> Ints:
        """See :meth:`Router.draw`. Raises TraceError: an expert has no graded calibration row."""
        weights = self.weigh(self.strength(block))
        return draw_weighted(weights[block.category], block.k, self.options.replacement, rng)

    def draw_calibration(self, held_out: HeldOut, drawn: Ints, rng: np.random.Generator) -> Ints:
        """See :meth:`Router.draw_calibration`: by the strengths that the other calibration questions show.

        An evaluated question has no part in the strengths it is routed by, so neither may one of these.
        """
        block = held_out.block
        graded = block.graded.sum(axis=0) - held_out.own_graded
        right = block.right.sum(axis=0) - held_out.own_right
        strength = self._shrunk(
            block.graded[block.category] - held_out.own_graded,
            block.right[block.category] - held_out.own_right,
            right / np.maximum(graded, 1),
        )
        return draw_weighted(self.weigh(strength), block.k, self.options.replacement, rng)

    def strength(self, block: RoutingInput) -> Floats:
        """Shrunk accuracy, shape (categories, experts)."""
        graded, right = block.graded.sum(axis=0), block.right.sum(axis=0)
        if not graded.all():
            expert = block.experts[int(np.argmin(graded))]
            raise TraceError(
                f"{block.source}: router 'skill' needs graded calibration rows (column 'correct') "
                f"of every expert, and '{expert}' has none"
            )
        prior = np.broadcast_to(right / graded, block.graded.shape)
        return self._shrunk(block.graded, block.right, prior)

    def _shrunk(self, graded: Ints, right: Ints, prior: Floats) -> Floats:
        weight = graded + self.options.shrinkage
        pooled = right + self.options.shrinkage * prior
        return np.where(weight > 0, pooled / np.maximum(weight, 1e-12), prior)

    def weigh(self, strength: Floats) -> Floats:
        """Draw weights, shape (categories, experts); zero outside the pool of each category."""
        if self.options.weights == "softmax":
            weights = np.exp((strength - strength.max(axis=1, keepdims=True)) / self.options.temperature)
        else:
            # An expert that was never right still has to be drawable when it is all there is.
            weights = np.maximum(strength, 1e-6)
        size = min(self.options.pool_size or strength.shape[1], strength.shape[1])
        rank = np.argsort(np.argsort(-strength, axis=1, kind="stable"), axis=1)
        kept: Floats = np.where(rank < size, np.maximum(weights, 1e-300), 0.0)
        return kept


class FixedCountsOptions(DrawOptions):
    """Slots of every expert."""

    counts: dict[str, NonNegativeInt]
    """Slots by expert, adding up to questions x k; experts left out get none."""


class FixedCounts(Router[FixedCountsOptions]):
    """Stated slot counts, met exactly, as the paper's Table 3; who gets which question is random."""

    name = "fixed_counts"
    summary = "stated slot counts by expert, met exactly (the paper's Table 3)"
    Options = FixedCountsOptions

    def draw(self, block: RoutingInput, rng: np.random.Generator) -> Ints:
        """See :meth:`Router.draw`. Raises ScenarioError: unknown expert or wrong total; InfeasibleError."""
        for name in sorted(set(self.options.counts) - set(block.experts)):
            raise ScenarioError(
                f"router 'fixed_counts': no expert '{name}' in {block.source}"
                f"{nearest(name, block.experts)}; accepted: {', '.join(block.experts)}"
            )
        total = sum(self.options.counts.values())
        if total != block.n_slots:
            raise ScenarioError(
                f"router 'fixed_counts': the counts add up to {total:,}, but {block.n_questions:,} evaluated "
                f"questions x k = {block.k} are {block.n_slots:,} slots"
            )
        counts = np.array([self.options.counts.get(name, 0) for name in block.experts], dtype=np.int64)
        return deal(counts, block.experts, block.k, self.options.replacement, rng)


class PopularityOptions(DrawOptions):
    """The popularity skew to meet; exactly one of the two targets."""

    max_min: float | None = Field(default=None, ge=1)
    """Slots of the most drawn expert over those of the least drawn (the paper's pools: 2.98, 92.4, 5.46)."""

    cv: float | None = Field(default=None, ge=0)
    """Standard deviation of the experts' slots over their mean."""

    order: Literal["random", "first_seen"] = "random"
    """Which expert is popular: a random one, or the first-seen one most, the second next, ..."""

    @model_validator(mode="after")
    def _one_target(self) -> PopularityOptions:
        if (self.max_min is None) == (self.cv is None):
            raise ValueError("give exactly one of max_min and cv")
        return self


class _Popular(Router[PopularityOptions]):
    """Shares proportional to exp(t x shape), with t solved for the target; slots are dealt exactly."""

    Options = PopularityOptions

    @abstractmethod
    def shape(self, n_experts: int, rng: np.random.Generator) -> Floats:
        """Log-popularity before it is scaled, largest first, shape (experts,)."""

    def draw(self, block: RoutingInput, rng: np.random.Generator) -> Ints:
        """See :meth:`Router.draw`. Raises ScenarioError: no such skew; InfeasibleError: see ``deal``."""
        shares = self._shares(self.shape(len(block.experts), rng))
        if self.options.order == "random":
            shares = rng.permutation(shares)
        counts = whole_slots(shares, block.n_slots)
        return deal(counts, block.experts, block.k, self.options.replacement, rng)

    def _shares(self, shape: Floats) -> Floats:
        if self.options.max_min is not None:
            spread = float(shape[0] - shape[-1])
            if spread == 0 and self.options.max_min > 1:
                raise ScenarioError(f"router '{self.name}': max_min needs two experts or more")
            return _softmax(shape * (np.log(self.options.max_min) / (spread or 1.0)))
        assert self.options.cv is not None  # the validator saw to it
        return self._shares_of_cv(shape, self.options.cv)

    def _shares_of_cv(self, shape: Floats, cv: float) -> Floats:
        """Bisect the exponent: CV grows with it from 0 to sqrt(experts - 1), one expert drawn alone."""
        limit = np.sqrt(len(shape) - 1)
        if cv > 0 and cv >= limit:
            raise ScenarioError(
                f"router '{self.name}': cv = {cv:g} cannot be reached; "
                f"with {len(shape)} experts it stays below {limit:.3g}"
            )
        low, high = 0.0, 1.0
        while _cv(_softmax(shape * high)) < cv:
            high *= 2
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if _cv(_softmax(shape * middle)) < cv else (low, middle)
        return _softmax(shape * high)


class Zipf(_Popular):
    """Shares proportional to rank**-s, the exponent s solved for the target."""

    name = "zipf"
    summary = "popularity rank**-s, s solved for a target max/min ratio or CV"

    def shape(self, n_experts: int, rng: np.random.Generator) -> Floats:
        """See :meth:`_Popular.shape`."""
        return -np.log(np.arange(1, n_experts + 1, dtype=np.float64))


class Dirichlet(_Popular):
    """A random point of the simplex (Dirichlet, concentration 1), raised to the power that meets the target.

    A Dirichlet draw meets a target only on average over draws; the power makes this draw meet it, and leaves
    the random part, how the experts between most and least drawn lie, to the Dirichlet.
    """

    name = "dirichlet"
    summary = "a Dirichlet draw of popularity, sharpened to a target max/min ratio or CV"

    def shape(self, n_experts: int, rng: np.random.Generator) -> Floats:
        """See :meth:`_Popular.shape`."""
        return np.sort(np.log(rng.standard_exponential(n_experts)))[::-1]


ROUTERS: dict[str, type[Router[Any]]] = {
    router.name: router for router in (Recorded, Skill, FixedCounts, Zipf, Dirichlet, Uniform)
}


def _softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def _cv(shares: Floats) -> float:
    return float(shares.std() / shares.mean())
