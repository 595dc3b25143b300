"""A log of requests and its replay: the engine's own runs come back without error, bad logs are told by line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from operator_samples import write_tables

from mosaicsim.analysis.log_replay import (
    COLUMNS,
    RequestLog,
    compare,
    read_log,
    replay,
    replay_engine,
    validate_log,
    with_host_time,
)
from mosaicsim.cli import cli
from mosaicsim.errors import MosaicsimError, ProfileError, ScenarioError, TraceError
from mosaicsim.hardware.operators import profile_from_operators

STARVED = ("engine.num_gpu_blocks=450", "engine.max_num_batched_tokens=512")
KEYS = (
    "ttft_mean_error_pct",
    "tpot_mean_error_pct",
    "e2e_mean_error_pct",
    "e2e_mape_pct",
    "makespan_error_pct",
    "host_overhead_s",
)


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_tables(tmp_path_factory.mktemp("bench") / "MyGPU_Llama-3.1-8B")
    path = folder.parent / "mygpu.yaml"
    path.write_text(profile_from_operators(folder))
    return str(path)


def unserved(n: int, seed: int) -> RequestLog:
    """Requests nobody has served: the last two columns are as if at once."""
    rng = np.random.default_rng(seed)
    arrival_s = 5.0 + np.cumsum(rng.exponential(0.1, n))
    prompt, output = rng.integers(20, 800, n), rng.integers(1, 300, n)
    return RequestLog(arrival_s, prompt, output, arrival_s, arrival_s + 1)


def served(log: RequestLog, profile: str, host_s: float) -> RequestLog:
    """The log that an engine with so much host time a step would leave behind."""
    done = replay(log, with_host_time(replay_engine(profile, STARVED), host_s))
    assert done.preemptions > 10
    return RequestLog(
        log.arrival_s, log.prompt_tokens, log.generated_tokens, done.first_token_s, done.last_token_s
    )


def as_csv(log: RequestLog) -> str:
    columns = [getattr(log, name).tolist() for name in COLUMNS]
    return "\n".join(
        [",".join(COLUMNS), *(",".join(map(repr, row)) for row in zip(*columns, strict=True)), ""]
    )


def mosaicsim(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in args])


def validated(*args: object) -> dict[str, Any]:
    done = mosaicsim("validate", *args, "--json")
    assert done.exit_code == 0, done.output
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def overrides(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def test_the_engine_s_own_run_comes_back_without_error(profile: str, tmp_path: Path) -> None:
    log = tmp_path / "log.csv.gz"
    log.write_bytes(gzip.compress(as_csv(served(unserved(120, 1), profile, 0.0)).encode()))
    figures = validated("--log", log, "--profile", profile, *overrides(*STARVED))
    assert list(figures)[:5] == list(KEYS[:5])
    assert [figures[key] for key in KEYS] == pytest.approx([0.0] * 6, abs=1e-6)
    assert figures["requests"] == figures["requests_compared"] == 120
    assert figures["preemptions"] > 10
    assert figures["engine"]["num_gpu_blocks"] == 450


@pytest.mark.parametrize("host_s", [0.0, 0.0021, 0.04])
def test_the_host_time_of_a_step_is_recovered_from_half_a_log(profile: str, host_s: float) -> None:
    """Errors are of the other half; without the fit they are there."""
    log, engine = served(unserved(80, 2), profile, host_s), replay_engine(profile, STARVED)
    figures = validate_log(log, engine, 0.5)
    assert figures["host_overhead_s"] == pytest.approx(host_s, abs=2e-6)
    assert figures["e2e_mape_pct"] < 0.1
    assert (figures["requests_fitted"], figures["requests_compared"]) == (40, 40)
    if host_s:
        assert validate_log(log, engine, None)["e2e_mean_error_pct"] < -1


def test_the_fit_does_not_see_the_part_that_is_compared(profile: str) -> None:
    log, engine = served(unserved(80, 3), profile, 0.0021), replay_engine(profile, STARVED)
    late = np.arange(80) >= 40
    spoilt = RequestLog(
        log.arrival_s,
        log.prompt_tokens,
        log.generated_tokens,
        log.first_token_s + 100 * late,
        log.last_token_s + 200 * late,
    )
    one, other = validate_log(log, engine, 0.5), validate_log(spoilt, engine, 0.5)
    assert one["host_overhead_s"] == other["host_overhead_s"]
    assert other["e2e_mean_error_pct"] < one["e2e_mean_error_pct"] - 50


def test_errors_are_simulated_over_real_less_one(profile: str) -> None:
    real = served(unserved(60, 4), profile, 0.0)
    engine = replay_engine(profile, STARVED)
    twice = RequestLog(
        real.arrival_s,
        real.prompt_tokens,
        real.generated_tokens,
        real.arrival_s + (real.first_token_s - real.arrival_s) / 2,
        real.arrival_s + (real.last_token_s - real.arrival_s) / 2,
    )
    figures = compare(twice, replay(real, engine))
    for key in KEYS[:4]:
        assert figures[key] == pytest.approx(100)
    assert compare(real, replay(real, engine), slice(10))["real"]["e2e_mean_s"] == pytest.approx(
        (real.last_token_s - real.arrival_s)[:10].mean()
    )


def test_a_log_of_single_tokens_has_no_tpot(profile: str, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text(",".join(COLUMNS) + "\n0,10,1,0.5,0.5\n1,10,1,1.5,1.5\n")
    figures = validated("--log", log, "--profile", profile, *overrides(*STARVED))
    assert figures["tpot_mean_error_pct"] is None
    table = mosaicsim("validate", "--log", log, "--profile", profile, *overrides(*STARVED))
    assert "nothing fitted to the log" in table.output


def test_rows_are_put_in_order_of_arrival_and_other_columns_ignored(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text(
        "id,last_token_s,first_token_s,generated_tokens,prompt_tokens,arrival_s\nb,9,8,2,20,7\n\na,3,2,4.0,10,1\n"
    )
    read = read_log(log)
    assert read.arrival_s.tolist() == [1, 7]
    assert read.prompt_tokens.tolist() == [10, 20]
    assert read.generated_tokens.tolist() == [4, 2]
    assert read.generated_tokens.dtype == np.int64


BAD_CELLS = {
    "arrival_s": ["", "soon", "nan", "inf", "-1"],
    "prompt_tokens": ["", "many", "0", "-3", "1.5", "nan", "1e300"],
    "generated_tokens": ["", "x", "0", "2.5"],
    "first_token_s": ["", "later", "inf", "-0.5"],
    "last_token_s": ["", "?", "nan"],
}


@given(data=st.data())
def test_a_bad_cell_is_one_line_with_file_line_column_and_value(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [["0.0", "10", "3", "1.0", "2.0"] for _ in range(data.draw(st.integers(1, 6)))]
    bad = data.draw(st.integers(0, len(rows) - 1))
    column = data.draw(st.sampled_from(list(COLUMNS)))
    cell = data.draw(st.sampled_from(BAD_CELLS[column]))
    rows[bad][list(COLUMNS).index(column)] = cell
    path = tmp_path_factory.mktemp("bad") / "log.csv"
    path.write_text("\n".join(",".join(row) for row in [list(COLUMNS), *rows]))
    with pytest.raises(TraceError) as told:
        read_log(path)
    assert str(told.value).startswith(f"{path}:{bad + 2}: {column}: expected ")
    assert str(told.value).endswith(f", got {cell!r}")


HEADER = ",".join(COLUMNS)
BAD_LOGS = {
    "order": (
        f"{HEADER}\n1,1,1,2,3\n5,1,1,4,6\n",
        r":3: expected arrival_s <= first_token_s <= last_token_s",
    ),
    "no time": (f"{HEADER}\n1,1,1,1,1\n", r":2: expected .* got 1, 1, 1"),
    "column": ("arrival,prompt_tokens\n", r":1: no column 'arrival_s' \(did you mean 'arrival'\?\)"),
    "twice": (f"{HEADER},arrival_s\n", r":1: column 'arrival_s' is there 2 times"),
    "cells": (f"{HEADER}\n1,1,1\n", r":2: 3 cells in a table of 5 columns"),
    "quote": (f'{HEADER}\n"1,1,1\n', r": not valid CSV"),
    "nothing": ("", r":1: no column 'arrival_s'; there are none"),
    "no rows": (HEADER, r": no requests in it"),
}


@pytest.mark.parametrize(("content", "message"), BAD_LOGS.values(), ids=BAD_LOGS.keys())
def test_a_bad_log_is_told_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(content)
    with pytest.raises(TraceError, match=message) as told:
        read_log(path)
    assert "\n" not in str(told.value)


def test_files_that_are_no_logs_are_told(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "log.csv.gz").write_bytes(b"plain")
    for name, message in (
        ("log.csv", "not a text file in UTF-8"),
        ("log.csv.gz", "not a gzip file"),
        ("lag.csv", r"no such log \(did you mean 'log.csv'\?\)"),
        ("", "cannot be read"),
    ):
        with pytest.raises(TraceError, match=message):
            read_log(tmp_path / name)


BAD_COMMANDS = {
    "profile name": (["--profile", "rtx4090"], ProfileError, r"profile 'rtx4090': expected a profile file, or a name"),
    "device": (["--profile", "rtx4909/llama-3.1-8b"], ProfileError, r"unknown device 'rtx4909' \(did you mean"),
    "model": (["--profile", "rtx4090/llama-9"], ProfileError, "unknown model 'llama-9'"),
    "profile file": (["--profile", "none.yaml"], ProfileError, "none.yaml: no such profile file"),
    "setting": (["--set", "engine.num_blocks=3"], ScenarioError, r"engine.num_blocks: unknown key \(did you mean"),
    "section": (["--set", "engin.x=3"], ScenarioError, "engin: unknown key"),
    "value": (["--set", "engine.num_gpu_blocks=many"], ScenarioError, "engine.num_gpu_blocks: .* got 'many'"),
    "fraction": (["--fit-overhead", "0.01"], MosaicsimError, "of 2 requests that is 0"),
    "too small": (["--set", "engine.num_gpu_blocks=1"], MosaicsimError, r"log.csv: a call needs .*num_gpu_blocks=N sets them"),
}  # fmt: skip


@pytest.mark.parametrize(("args", "kind", "message"), BAD_COMMANDS.values(), ids=BAD_COMMANDS.keys())
def test_bad_commands_are_told(
    tmp_path: Path, args: list[str], kind: type[MosaicsimError], message: str
) -> None:
    log = tmp_path / "log.csv"
    log.write_text(f"{HEADER}\n0,100,4,1,2\n1,100,4,2,3\n")
    done = mosaicsim("validate", "--log", log, "--profile", "rtx4090/llama-3.1-8b", *args)
    assert isinstance(done.exception, kind)
    with pytest.raises(kind, match=message):
        raise done.exception
    assert "\n" not in str(done.exception)


def test_a_profile_of_an_unknown_device_needs_the_number_of_blocks(profile: str) -> None:
    with pytest.raises(ProfileError, match=r"unknown device 'mygpu'.*--set engine.num_gpu_blocks=N"):
        replay_engine(profile)
    named = replay_engine("rtx-pro-6000/llama-3.1-8b/operators")
    assert named.config.num_gpu_blocks > 2588
    assert named.host.base_s == named.host.per_sequence_s == 0
    assert replay_engine("rtx-pro-6000/meta-llama/Llama-3.1-8B-Instruct").source.startswith("composed")
