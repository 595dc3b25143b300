"""`mosaicsim profiles`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mosaicsim.cli.profiles import profiles
from mosaicsim.errors import ProfileError


def run(*arguments: str) -> Result:
    return CliRunner().invoke(profiles, arguments)


def rows(*arguments: str) -> list[dict[str, Any]]:
    result = run("--json", *arguments)
    assert result.exit_code == 0, result.output
    listed: list[dict[str, Any]] = json.loads(result.stdout)["profiles"]
    return listed


def test_table_names_models_devices_and_the_reason_for_a_gap() -> None:
    result = run("--device", "l40s", "--model", "gemma-2-9b", "--model", "qwen2.5-32b")
    assert result.exit_code == 0
    assert "gemma-2-9b" in result.stdout
    assert "derived" in result.stdout
    assert "tp=2 is the least" in result.stdout


def test_json_has_a_row_a_pair_with_sources() -> None:
    (row,) = rows("--model", "r1-distill-llama-8b", "--device", "A100")
    assert row["model"] == "r1-distill-llama-8b"
    assert row["kv_capacity_tokens"] == 411_529
    # Composed line at 1 sequence of 1,024 tokens: 11.169 + 0.033233 + 7.9794e-5 x 1024 ms.
    assert row["decode_step_s"]["1"] == pytest.approx(11.284e-3, rel=1e-4)
    assert row["sources"]["latency"].startswith("composed")


def test_engine_time_is_added_and_batches_without_room_are_null() -> None:
    (bare,) = rows("--model", "gemma-2-9b", "--device", "l40s")
    (hosted,) = rows("--model", "gemma-2-9b", "--device", "l40s", "--engine", "vllm-0.7-v0")
    assert hosted["decode_step_s"]["64"] - bare["decode_step_s"]["64"] == pytest.approx(0.0164)
    assert bare["decode_step_s"]["256"] is None


def test_unavailable_pairs_carry_the_reason_and_all_unavailable_is_an_error() -> None:
    fits, not_fits = rows("--model", "qwen2.5-32b", "--device", "h100", "--device", "l40s")
    assert "unavailable" not in fits
    assert "do not fit" in not_fits["unavailable"]
    result = run("--timing", "hinges")
    assert isinstance(result.exception, ProfileError)
    assert "did you mean 'hinge'" in str(result.exception)
