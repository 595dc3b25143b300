"""The calls of a workload as columns: what a scheduler may see, and what only an executor may.

The two halves are two types. :class:`CallTable` has no output length, so code that is handed one cannot
read a length; :class:`Outcomes` holds lengths and answers and goes to executors, gates (answers only, and
only of finished calls) and the marked oracle.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from mosaicsim.workload.ballots import GateCalibration

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

NO_ANSWER = -1
"""Answer code of a call whose answer could not be extracted; it never wins a vote."""


@dataclass(frozen=True)
class CallTable:
    """The n expert calls of a workload, without their lengths; every column has shape (n,).

    ``question`` and ``expert`` are indices into the workload's questions and experts. Calls with equal
    (question, expert) have the identical prompt: the router drew the expert more than once. ``category`` is
    a code of the question's category, known before anything runs.
    """

    question: Ints
    expert: Ints
    sample: Ints
    prompt_tokens: Ints
    category: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        """Without categories all calls are of one."""
        if len(self.category) != len(self.question):
            object.__setattr__(self, "category", np.zeros(len(self.question), np.int64))

    def __len__(self) -> int:
        return len(self.question)

    def counts(self, n_experts: int) -> Ints:
        """Calls of each expert, shape (n_experts,): the paper's N_m."""
        return np.bincount(self.expert, minlength=n_experts).astype(np.int64)


@dataclass(frozen=True)
class Outcomes:
    """What the calls turned out to be; every column has shape (n,), aligned with a :class:`CallTable`.

    ``answer`` holds codes local to the workload (equal code, equal answer; ``NO_ANSWER`` where none was
    extracted); ``visible_tokens`` is the text after the reasoning, which the aggregator reads. ``confidence``
    is 0 to 1, NaN where a call has none; None: no call has one.
    """

    output_tokens: Ints
    visible_tokens: Ints
    answer: Ints
    correct: Bools
    confidence: Floats | None = None


@dataclass(frozen=True)
class AggregatorCalls:
    """One aggregator call for every question, whether or not a gate will need it; shape (questions,).

    ``prompt_tokens`` is the aggregator's whole prompt: template, question and the proposers' visible text.
    """

    prompt_tokens: Ints
    output_tokens: Ints
    correct: Bools


@dataclass(frozen=True)
class Calibration:
    """What the offline profiling run saw, on questions that the evaluation does not use.

    ``output_tokens[m]`` and ``prompt_tokens[m]`` are expert m's calibration calls, one array an expert, and
    ``category[m]`` their categories, coded as in :class:`CallTable`. ``answers`` has shape (questions,
    experts, samples), NO_ANSWER where nothing was profiled; ``lengths`` and ``visible_tokens``, of the same
    shape, are 0 there, and ``question_category`` (questions,) goes with them. ``aggregator_output_tokens`` is
    an aggregator call a question, ``aggregator_prompt_tokens`` its prompt without what it reads of the
    experts' calls. What is empty is not known.
    """

    output_tokens: tuple[Ints, ...]
    prompt_tokens: tuple[Ints, ...]
    category: tuple[Ints, ...] = ()
    answers: Ints = field(default_factory=lambda: np.zeros((0, 0, 1), np.int64))
    lengths: Ints = field(default_factory=lambda: np.zeros((0, 0, 1), np.int64))
    visible_tokens: Ints = field(default_factory=lambda: np.zeros((0, 0, 1), np.int64))
    question_category: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    aggregator_output_tokens: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    aggregator_prompt_tokens: Ints = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class Workload:
    """A routed batch: questions, the pool, the calls the router drew, and what they turned out to be.

    Calls are ordered by question, k a question: call ``q * k + slot`` belongs to question q.
    ``experts`` is in first-seen order, the order in which round-robin deals experts to workers. ``labels``
    maps a figure ("aggregator_stage", "accuracy", ...) to "modelled" where it does not come from
    recorded rows of the trace. ``gate_calibration`` is there when a gate is to be fitted.
    """

    name: str
    questions: tuple[str, ...]
    categories: tuple[str, ...]
    experts: tuple[str, ...]
    calls: CallTable
    outcomes: Outcomes
    aggregator: AggregatorCalls
    calibration: Calibration
    labels: dict[str, str] = field(default_factory=dict)
    gate_calibration: GateCalibration | None = None

    @property
    def n_questions(self) -> int:
        """Number of questions."""
        return len(self.questions)
