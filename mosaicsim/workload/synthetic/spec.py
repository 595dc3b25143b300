"""What a user writes to describe a synthetic trace: YAML -> validated models."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mosaicsim.document import read_mapping
from mosaicsim.errors import TraceError
from mosaicsim.validation import explain
from mosaicsim.workload.calls import Ints
from mosaicsim.workload.lengths import LengthSpec, fit_lengths
from mosaicsim.workload.synthetic.agreement import SLOTS


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ExpertSpec(_Strict):
    """One expert of the pool: ``slots`` is its count in the recorded routing (the paper's N_m).

    ``ability`` is added to the logit of answering correctly; ``lengths`` are its output tokens.
    """

    model: str
    reasoning: bool
    slots: int = Field(ge=0)
    ability: float = 0.0
    lengths: LengthSpec


class AggregatorSpec(_Strict):
    """The aggregator's output lengths; ``template_tokens`` is its prompt without question and proposals."""

    model: str
    lengths: LengthSpec
    template_tokens: int = Field(default=150, ge=1)


class CategorySpec(_Strict):
    """One category: its ``weight`` in the dataset, mean ``prompt_tokens`` of a question with its options.

    ``difficulty`` shifts the latent difficulty (in its standard deviations), ``length`` a call's log length
    (in standard deviations of it).
    """

    weight: float = Field(gt=0)
    prompt_tokens: float = Field(gt=1)
    difficulty: float = 0.0
    length: float = 0.0


class PromptSpec(_Strict):
    """Prompt lengths: lognormal with ``log_sd`` around the category's mean, plus ``template_tokens``."""

    log_sd: float = Field(ge=0)
    template_tokens: int = Field(ge=0)


class VisibleSpec(_Strict):
    """Text after ``</think>`` of a reasoning expert: lognormal with this mean and cv."""

    mean: float = Field(gt=1)
    cv: float = Field(gt=0)


class CouplingSpec(_Strict):
    """How one question's lengths hang together, as correlations between standard normal scores.

    ``disagreement_reasoning`` and ``disagreement_instruct`` tie lengths to how much the pool disagrees on the
    question (the first is fitted instead when ``targets.tokens_by_bucket`` is given);
    ``class_factor`` is the share of what is left that experts of one class have in common;
    ``repeat_share`` the share of variance between samples of one expert on one question;
    ``wrong_shift`` lengthens wrong answers, in standard deviations of log length.
    """

    disagreement_reasoning: float = Field(default=0.6, ge=0, lt=1)
    disagreement_instruct: float = Field(default=0.4, ge=0, lt=1)
    disagreement_aggregator: float = Field(default=0.5, ge=0, lt=1)
    class_factor_reasoning: float = Field(default=0.2, ge=0, le=1)
    class_factor_instruct: float = Field(default=0.6, ge=0, le=1)
    repeat_share: float = Field(default=0.17, ge=0, lt=1)
    wrong_shift: float = Field(default=0.15, ge=0)


class AnswerSpec(_Strict):
    """``options`` of a question; how repeatable one expert is, and how often a cut-off answer is missing.

    ``self_consistency`` is the chance that a sample is the expert's modal answer rather than a fresh draw.
    """

    options: int = Field(ge=3, le=26)
    self_consistency: float = Field(default=0.8, ge=0, le=1)
    missing_if_cut: float = Field(default=0.7, ge=0, le=1)


class TargetSpec(_Strict):
    """Questions, counted, that the recorded routing must meet exactly, and the redraws on average.

    ``unanimous`` (3:0), ``majority`` (2:1) and ``split`` (1:1:1) add up to all questions.
    ``unanimous_correct`` and ``majority_correct`` are plurality answers right in 3:0 and 2:1,
    ``aggregator_correct`` the aggregator right on all questions. ``gain_tau_1`` and ``gain_tau_two_thirds``
    are correct answers won (lost if negative) by the plurality gate. ``tokens_by_bucket`` is the mean output
    tokens of an expert call in 3:0, 2:1 and 1:1:1.
    """

    unanimous: int = Field(ge=0)
    majority: int = Field(ge=0)
    split: int = Field(ge=0)
    unanimous_correct: int = Field(ge=0)
    majority_correct: int = Field(ge=0)
    aggregator_correct: int = Field(ge=0)
    gain_tau_1: int
    gain_tau_two_thirds: int
    tokens_by_bucket: tuple[float, float, float] | None = None

    @property
    def questions(self) -> int:
        """All questions of the trace."""
        return self.unanimous + self.majority + self.split


class SyntheticSpec(_Strict):
    """A synthetic trace: the pool in first-seen order, the model's fixed parts, and the targets to meet."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    seed: int = Field(default=0, ge=0)
    samples: int = Field(default=SLOTS, ge=SLOTS)
    calibration_questions: int = Field(default=350, ge=1)
    experts: dict[str, ExpertSpec]
    aggregator: AggregatorSpec
    categories: dict[str, CategorySpec]
    prompt: PromptSpec
    visible: VisibleSpec
    answers: AnswerSpec
    coupling: CouplingSpec = CouplingSpec()
    targets: TargetSpec
    sources: dict[str, str] = {}
    """Where each figure comes from: the figure's path in this file -> "published: ..." or "modelled: ..."."""

    @model_validator(mode="after")
    def _consistent(self) -> SyntheticSpec:
        slots = int(self.slot_counts.sum())
        if slots != SLOTS * self.targets.questions:
            raise ValueError(
                f"experts.*.slots add up to {slots}, but {self.targets.questions} questions (the sum of "
                f"targets.unanimous, majority and split) take {SLOTS * self.targets.questions}"
            )
        for name, expert in self.experts.items():
            _feasible(f"experts.{name}.lengths", expert.lengths)
        _feasible("aggregator.lengths", self.aggregator.lengths)
        if not self.categories:
            raise ValueError("categories is empty; accepted: one or more")
        return self

    @property
    def slot_counts(self) -> Ints:
        """Slots of each expert in the recorded routing, shape (experts,)."""
        return np.array([e.slots for e in self.experts.values()], dtype=np.int64)

    def scaled(self, questions: int) -> SyntheticSpec:
        """The same trace with another number of questions: slots and targets in proportion."""
        old = self.targets
        if questions == old.questions:
            return self
        unanimous, majority, split = apportion([old.unanimous, old.majority, old.split], questions)
        slots = apportion([e.slots for e in self.experts.values()], SLOTS * questions)
        ratio = questions / old.questions
        counts = {
            key: round(getattr(old, key) * ratio)
            for key in (
                "unanimous_correct",
                "majority_correct",
                "aggregator_correct",
                "gain_tau_1",
                "gain_tau_two_thirds",
            )
        }
        targets = old.model_copy(
            update={"unanimous": unanimous, "majority": majority, "split": split, **counts}
        )
        experts = {
            name: expert.model_copy(update={"slots": n})
            for (name, expert), n in zip(self.experts.items(), slots, strict=True)
        }
        return self.model_copy(update={"targets": targets, "experts": experts})


def apportion(weights: list[int] | list[float], total: int) -> list[int]:
    """Split ``total`` into whole numbers in proportion to ``weights``, by largest remainders."""
    exact = np.asarray(weights, dtype=np.float64) * total / sum(weights)
    whole = np.floor(exact).astype(np.int64)
    short = total - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:short]] += 1
    return [int(n) for n in whole]


def load_spec(path: str | os.PathLike[str]) -> SyntheticSpec:
    """Read a YAML spec. Raises TraceError naming the file, the key's path and the nearest accepted name."""
    raw = read_mapping(Path(path), "trace spec", TraceError)
    try:
        return SyntheticSpec.model_validate(raw)
    except ValidationError as error:
        raise TraceError(f"{path}: {explain(error, SyntheticSpec)}") from error


def _feasible(where: str, lengths: LengthSpec) -> None:
    try:
        fit_lengths(lengths)
    except TraceError as error:
        raise ValueError(f"{where}: {error}") from error
