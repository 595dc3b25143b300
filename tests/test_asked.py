"""Questions asked for real: gates are fitted to the calibration trace, and to nothing that is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trace_samples as samples

from mosaicsim.errors import TraceError
from mosaicsim.workload.asked import ask
from mosaicsim.workload.calls import Workload
from mosaicsim.workload.questions import Question, QuestionSet
from mosaicsim.workload.routing import ROUTERS
from mosaicsim.workload.trace import as_trace

ASKED = QuestionSet(
    Path("asked.jsonl"),
    tuple(Question(f"q{i}", "?", ("x", "y"), "A", ("law", "math")[i % 2]) for i in range(6)),
)


def make(
    *, aggregator: bool = True, router: str = "skill", for_gates: bool = True, **changed: Any
) -> Workload:
    values = samples.columns(aggregator=aggregator) | changed
    values["confidence"] = np.full(len(values["expert"]), 0.5, np.float32)
    options = ROUTERS[router].Options(replacement=False)
    return ask(
        ASKED,
        as_trace(samples.table(values), samples.metadata(aggregator)),
        k=3,
        router=ROUTERS[router](options),
        prompt_tokens=lambda question, expert: 10,
        rng_streams=lambda name: np.random.default_rng([*name.encode()]),
        for_gates=for_gates,
    )


@pytest.mark.parametrize("aggregator", [True, False])
@pytest.mark.parametrize("router", ["skill", "uniform"])
def test_gates_are_fitted_to_the_calibration_trace(aggregator: bool, router: str) -> None:
    workload = make(aggregator=aggregator, router=router)
    calibration = workload.gate_calibration
    assert calibration is not None
    assert len(calibration) == 34  # 40, less the six that are asked
    assert calibration.aggregator == ("recorded" if aggregator else "modelled")
    assert np.bincount(calibration.calls.question).tolist() == [4] * 34
    assert (calibration.ballots.confidences == 0.5).all()  # as a real call brings its own
    assert (calibration.calls.confidence == 0.5).all()
    np.testing.assert_array_equal(workload.calls.expert, make(router=router, for_gates=False).calls.expert)


def test_without_a_gate_to_fit_grades_are_not_needed() -> None:
    ungraded = {"correct": [None] * 160}
    assert make(aggregator=False, router="uniform", for_gates=False, **ungraded).gate_calibration is None
    with pytest.raises(TraceError, match="needs every calibration row graded"):
        make(aggregator=False, router="uniform", **ungraded)
