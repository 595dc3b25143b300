"""Every rule of validation, each broken by a real value, names its column and row."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import trace_samples as samples

from mosaicsim.errors import TraceError
from mosaicsim.workload.trace import Trace, as_trace
from mosaicsim.workload.validate import require_valid, violations


def build(values: dict[str, Any], **metadata: Any) -> Trace:
    return as_trace(samples.table(values), samples.metadata(**metadata))


def setting(column: str, row: int, value: Any) -> Trace:
    """A sound trace but for one cell."""
    values = samples.with_routing(samples.columns())
    cells = pa.array(values[column]).to_pylist()
    cells[row] = value
    return build(values | {column: cells})


def without(rows: list[int], routed: bool = False) -> Trace:
    values = samples.columns()
    values = samples.with_routing(values) if routed else values
    table = samples.table(values)
    keep = np.setdiff1d(np.arange(len(table)), rows)
    return as_trace(table.take(pa.array(keep)), samples.metadata())


def test_sound_traces_pass() -> None:
    for trace in (
        samples.trace(),
        samples.trace(routed=True),
        samples.trace(aggregator=False),
        samples.trace(n_samples=3),
        without([3], routed=True),
    ):
        require_valid(trace)


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("question_id", 4, None, "row 5: is null"),
        ("finish_reason", 0, None, "row 1: is null"),
        ("question_id", 4, "", "row 5: is an empty string"),
        ("category", 4, "  ", "row 5: is an empty string"),
        ("expert", 4, "", "row 5: is an empty string"),
        ("sample", 4, -1, "row 5: is -1, not within 0 and 10,000"),
        ("sample", 4, 1, "row 5: is 1, but question 'q1', expert 'gemma' has 1 sample"),
        ("prompt_tokens", 4, 0, "row 5: is 0, not within 1 and 1,000,000"),
        ("output_tokens", 4, -7, "row 5: is -7, not within"),
        ("output_tokens", 4, 2_000_000_000, "row 5: is 2,000,000,000, not within"),
        ("visible_tokens", 4, -1, "row 5: is -1, not within"),
        ("visible_tokens", 4, 900_000, r"row 5: is 900,000, more than the row's output_tokens"),
        ("confidence", 4, float("nan"), "row 5: is nan, not within 0 and 1"),
        ("confidence", 4, 1.5, "row 5: is 1.5, not within 0 and 1"),
        ("finish_reason", 4, "stopped", r"row 5: is 'stopped' \(did you mean 'stop'\?\); accepted: stop, "),
        ("dataset", 5, "other", "row 6: differs from an earlier row of question 'q1'"),
        ("category", 5, "law", "row 6: differs from an earlier row of question 'q1'"),
        ("slot", 4, -2, "row 5: is -2, not within"),
        ("slot", 4, 1, "row 6: 1 is filled twice for question 'q1'"),
        ("slot", 4, None, "row 5: question 'q1' has 2 of its 3 slots filled"),
        ("slot", 165, 0, "row 166: is set on an aggregator row"),
    ],
)
def test_one_bad_cell_is_named(column: str, row: int, value: Any, message: str) -> None:
    with pytest.raises(TraceError, match=f"column '{column}', {message}") as caught:
        require_valid(setting(column, row, value))
    assert "\n" not in str(caught.value)


def test_duplicate_row() -> None:
    with pytest.raises(
        TraceError, match="'sample', row 6: 0 appears twice for question 'q1', expert 'gemma'"
    ):
        require_valid(setting("expert", 5, "gemma"))


def test_missing_expert_in_a_block() -> None:
    with pytest.raises(TraceError, match="row 1: question 'q0' has no row of expert 'qwen_r1', 'glm'"):
        require_valid(without([1, 2]))


def test_missing_aggregator_row() -> None:
    with pytest.raises(
        TraceError, match=r"row 1: question 'q0' has no aggregator row \(expert 'aggregator'\)"
    ):
        require_valid(without([160]))


def test_unknown_expert_and_first_seen_order() -> None:
    order = ("gemma", "qwen_r1", "glm", "exaone2")
    with pytest.raises(TraceError, match=r"row 4: 'exaone' is not in .*\(did you mean 'exaone2'\?\)"):
        require_valid(build(samples.columns(), first_seen=order))
    with_idle = build(samples.with_routing(samples.columns()), first_seen=("idle", *samples.EXPERTS))
    require_valid(with_idle)
    assert with_idle.experts == ("idle", *samples.EXPERTS)


def test_no_rows() -> None:
    with pytest.raises(TraceError, match="the trace has no rows"):
        require_valid(as_trace(samples.trace().table.slice(0, 0), samples.metadata()))


def test_every_problem_is_listed_and_counted() -> None:
    values = samples.columns()
    values["output_tokens"][[2, 9]] = 0
    values["visible_tokens"][5] = 999_999
    trace = build(values)
    lines = [v.line(row) for v in violations(trace) for row in v.rows.tolist()]
    assert [re.match(r"column '(\w+)', row (\d+)", line).groups() for line in lines] == [
        ("output_tokens", "3"),
        ("output_tokens", "10"),
        ("visible_tokens", "3"),
        ("visible_tokens", "6"),
        ("visible_tokens", "10"),
    ]
    with pytest.raises(TraceError, match=r"\(and 4 more; list them with 'mosaicsim trace validate'\)"):
        require_valid(trace)
