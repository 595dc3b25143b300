"""From operator tables to a profile: the sums are the law's, and bad tables are told by file and line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from operator_samples import (
    DENSE_US,
    SEQUENCE_US,
    decode_us,
    dense_us,
    mixed_us,
    table_texts,
    write_tables,
)

from mosaicsim.cli import cli
from mosaicsim.errors import MosaicsimError, OutputError, ProfileError
from mosaicsim.hardware.catalog import load_catalog
from mosaicsim.hardware.latency import HostOverhead
from mosaicsim.hardware.operators import compose_timing, profile_from_operators, read_operators
from mosaicsim.hardware.profile_file import load_profile_file, write_profile_file

LAYERS = 32


def matrices_us(tokens: int) -> float:
    times = {"embedding": 1, "final_layernorm": 1, "layernorm": 2 * LAYERS}
    return sum(times.get(layer, LAYERS) * dense_us(layer, tokens) for layer in DENSE_US)


def sequences_us(sequences: int) -> float:
    return sum(base + slope * sequences for base, slope in SEQUENCE_US.values())


@pytest.mark.parametrize("packed", [False, True])
def test_a_step_is_the_sum_of_its_operators(tmp_path: Path, packed: bool) -> None:
    folder = write_tables(tmp_path / "tables", packed=packed)
    timing = compose_timing(
        read_operators(folder), LAYERS, device="gpu", model="m", source="composed: by a test"
    )
    steps = timing.latency().compile(256, 2048, HostOverhead())
    for batch, kv in ((1, 1024), (16, 300), (64, 2000), (256, 700)):
        decode = matrices_us(batch) + sequences_us(batch) + LAYERS * decode_us(batch, kv)
        assert steps.decode_s(batch, batch * kv) == pytest.approx(decode * 1e-6, rel=1e-4)
        mixed = matrices_us(batch + 1024) + sequences_us(batch) + LAYERS * mixed_us(1024, 2048, batch, kv)
        pairs = 1024 * (2048 + 512)
        assert steps.mixed_s(batch, 1024, batch * kv + 2048, pairs) == pytest.approx(mixed * 1e-6, rel=1e-4)
    assert timing.mape_pct["decode"] < 0.01
    assert timing.mape_pct["mixed"] < 0.01


def test_a_profile_is_made_from_the_folder_and_can_be_used(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "A100_Llama-3.1-8B_bf16_tp1")
    path = tmp_path / "mine.yaml"
    write_profile_file(path, profile_from_operators(folder, origin="my bench"))
    (timing,) = load_profile_file(path).timings
    assert (timing.device, timing.model, timing.form) == ("a100-80g", "llama-3.1-8b", "operators")
    assert timing.source.startswith("composed: measured operator times (my bench)")
    profile = load_catalog(files=[path]).profile("llama-3.1-8b", "a100-80g")
    assert profile.latency == timing.latency()


def test_shipped_profiles_are_composed_of_operator_times() -> None:
    """Step times that LLMServingSim's tables (MIT) give by hand, summed for these two points."""
    catalog = load_catalog()
    four, six = (
        catalog.profile("llama-3.1-8b", device, timing="operators") for device in ("rtx-4090", "rtx-pro-6000")
    )
    for profile in (four, six):
        assert "nothing fitted to a run" in profile.sources["latency"]
        assert "LLMServingSim's profiler, MIT" in profile.sources["latency"]
    # 40 sequences of 1024 tokens: 18.28 ms of dense, lm_head and sampler and 7.02 ms of attention; 11.54 + 4.63
    steps = [p.latency.compile(256, 2048, HostOverhead()) for p in (four, six)]
    assert steps[0].decode_s(40, 40 * 1024) == pytest.approx(25.30e-3, rel=0.02)
    assert steps[1].decode_s(40, 40 * 1024) == pytest.approx(16.17e-3, rel=0.02)
    # a prompt of 2048 tokens alone: 181.13 ms + 10.76 ms, and 76.68 ms + 5.52 ms
    assert steps[0].mixed_s(0, 2048, 0, 2048**2 / 2) == pytest.approx(191.9e-3, rel=0.02)
    assert steps[1].mixed_s(0, 2048, 0, 2048**2 / 2) == pytest.approx(82.2e-3, rel=0.03)
    assert four.kv_capacity_tokens // 16 == 2588


BAD_TABLES = {
    "dense unknown layer": ("dense", "act_fn,8,", "actfn,8,", r"layer 'actfn' \(did you mean 'act_fn'\?\)"),
    "dense twice": ("dense", "act_fn,8,", "act_fn,1,", r"act_fn at 1 tokens is there twice"),
    "dense no number": (
        "dense",
        "act_fn,8,3.0",
        "act_fn,8,fast",
        r"time_us: expected a finite .* got 'fast'",
    ),
    "dense no tokens": ("dense", "act_fn,8,", "act_fn,0,", r"tokens: expected a whole number, 1 or more"),
    "sequences": ("per_sequence", "sampler,16,", "sampler,1.5,", r"sequences: expected a whole number"),
    "attention": ("attention", "0,0,4,16,", "0,0,-4,16,", r"n_decode: expected a whole number, 0 or more"),
    "short row": ("attention", "0,0,4,16,", "0,0,4,", r"4 cells in a table of 5 columns"),
}


@pytest.mark.parametrize(("name", "text", "bad", "message"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_a_bad_table_is_told_by_file_and_line(
    tmp_path: Path, name: str, text: str, bad: str, message: str
) -> None:
    folder = write_tables(tmp_path / "tables")
    content = table_texts()[name]
    line = content[: content.index(text)].count("\n") + 1
    (folder / f"{name}.csv").write_text(content.replace(text, bad, 1))
    with pytest.raises(ProfileError, match=rf"/{name}\.csv:{line}: {message}"):
        read_operators(folder)


def test_missing_tables_rows_and_names_are_told(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "tables")
    with pytest.raises(ProfileError, match="does not say <device>_<model>; give --device and --model"):
        profile_from_operators(folder)
    with pytest.raises(ProfileError, match="unknown model 'no-such'"):
        profile_from_operators(folder, device="x", model="no-such")
    text = table_texts()["dense"]
    (folder / "dense.csv").write_text("\n".join(x for x in text.splitlines() if "o_proj" not in x))
    with pytest.raises(ProfileError, match=r"dense\.csv: o_proj: needs 2 or more points, got 0"):
        read_operators(folder)
    (folder / "dense.csv").unlink()
    with pytest.raises(ProfileError, match=r"no dense\.csv or dense\.csv\.gz"):
        read_operators(folder)
    with pytest.raises(ProfileError, match="no such folder of operator times"):
        read_operators(tmp_path / "nowhere")


def mosaicsim(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in args])


def test_the_verb_prints_or_writes_a_profile(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "MyGPU_Llama-3.1-8B")
    printed = mosaicsim("profile", "--from-operators", folder)
    assert printed.exit_code == 0
    assert yaml.safe_load(printed.stdout)["timings"][0]["device"] == "mygpu"
    path = tmp_path / "mine.yaml"
    assert mosaicsim("profile", "--from-operators", folder, "-o", path).exit_code == 0
    assert path.read_text() == printed.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["MyGPU_Llama-3.1-8B", "mine.yaml"]


def test_a_profile_replaces_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path / "notes.txt", tmp_path / "no" / "folder.yaml"):
        with pytest.raises(OutputError) as told:
            write_profile_file(path, "timings: []\n")
        assert isinstance(told.value, MosaicsimError)
    assert (tmp_path / "notes.txt").read_text() == "mine"
