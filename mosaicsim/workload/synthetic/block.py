"""The questions of a synthetic trace with everything that was generated on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mosaicsim.workload.calls import Bools, Ints
from mosaicsim.workload.synthetic.agreement import Expected, routed_samples
from mosaicsim.workload.synthetic.answers import AnswerModel, Candidates
from mosaicsim.workload.synthetic.spec import SyntheticSpec


@dataclass(frozen=True)
class Block:
    """The n questions of a trace. ``answers``, ``tokens`` and ``cut`` have shape (n, experts, samples).

    ``deal`` (n, 3) is the recorded routing, or None; the aggregator's columns have shape (n,).
    """

    spec: SyntheticSpec
    questions: Candidates
    expected: Expected
    tokens: Ints
    cut: Bools
    deal: Ints | None
    aggregator_right: Bools
    aggregator_tokens: Ints
    aggregator_cut: Bools
    model: AnswerModel
    reasoning_coupling: float

    @property
    def answers(self) -> Ints:
        """Answer codes: 0 the correct option, NO_ANSWER where none was given."""
        return self.questions.answers

    def routed(self, values: Ints) -> Ints:
        """The values of the calls the recorded routing drew, shape (n, 3)."""
        if self.deal is None:
            raise ValueError("a calibration block has no recorded routing")
        return values[np.arange(len(self.deal))[:, None], self.deal, routed_samples(self.deal)]
