"""A user's profile file: the documented example, what it overrides, and its error messages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mosaicsim.errors import ProfileError
from mosaicsim.hardware.catalog import load_catalog
from mosaicsim.hardware.latency import HostOverhead, TabulatedLatency
from mosaicsim.hardware.profile_file import load_profile_file

DOCS = Path(__file__).parents[1] / "docs" / "hardware.md"


def fenced(language: str) -> str:
    """The first block of that language in docs/hardware.md."""
    found = re.search(rf"^```{language}\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.S | re.M)
    assert found
    return found[1]


@pytest.fixture
def documented(tmp_path: Path) -> Path:
    path = tmp_path / "my.yaml"
    path.write_text(fenced("yaml"))
    return path


def test_documented_example_loads_and_resolves(documented: Path) -> None:
    catalog = load_catalog(files=[documented])
    profile = catalog.profile("llama-3.2-3b", "H200-141g")
    assert isinstance(profile.latency, TabulatedLatency)
    assert profile.sources["latency"].startswith("measured")
    assert profile.load_s == pytest.approx(24 + 6.43e9 / 5.1e9, rel=0.01)
    tables = profile.latency.compile(256, 2048, catalog.host_overhead("my-engine"))
    assert tables.decode_s(16, 1000) == pytest.approx((2.5 + 2.6e-5 * 1000 + 0.4 + 0.16) * 1e-3)


def test_documented_python_runs() -> None:
    scope: dict[str, object] = {}
    exec(compile(fenced("python"), str(DOCS), "exec"), scope)
    assert "tables" in scope


def test_new_model_is_derived_on_the_package_devices(documented: Path) -> None:
    profile = load_catalog(files=[documented]).profile("llama-3.2-3b", "a100-80g")
    assert profile.sources["latency"].startswith("derived: llama-3.1-8b x 0.4")


def test_model_without_timing_or_reference_is_an_error(documented: Path) -> None:
    catalog = load_catalog(files=[documented])
    with pytest.raises(ProfileError, match=r"no timing for model 'qwen2\.5-7b' on device 'h200'; add one"):
        catalog.profile("qwen2.5-7b", "h200")


def test_references_in_a_circle_end(tmp_path: Path) -> None:
    shape = (
        "{layers: 1, hidden_size: 8, intermediate_size: 8, heads: 8, kv_heads: 8, head_dim: 1, vocab_size: 8}"
    )
    path = tmp_path / "circle.yaml"
    path.write_text(
        f"models:\n  a: {{source: 'published: a', architecture: {shape}, timing_reference: b}}\n"
        f"  b: {{source: 'published: b', architecture: {shape}, timing_reference: a}}\n"
    )
    with pytest.raises(ProfileError, match="no timing for model 'a'"):
        load_catalog(files=[path]).profile("a", "h100")


def test_extra_dir_is_read_and_the_package_catalog_stays_as_it_was(documented: Path) -> None:
    assert "h200" in load_catalog(documented.parent).devices
    assert "h200" not in load_catalog().devices


OWN_TIMING = """
timings:
  - device: h100
    model: qwen2.5-7b
    name: mine
    form: two_regime
    source: "measured: my run"
    decode_ms: {base: 1.0, per_sequence: 0.0, per_context_token: 0.0}
    mixed_ms: {base: 1.0, per_sequence: 0.0, per_prefill_token: 0.0, per_context_token: 0.0}
"""


def test_own_timing_becomes_the_default_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(OWN_TIMING)
    catalog = load_catalog(files=[path])
    own = catalog.profile("r1-distill-qwen-7b", "h100").latency.compile(8, 0, HostOverhead())
    assert own.decode_s(8, 10_000) == pytest.approx(1e-3)
    composed = catalog.profile("qwen2.5-7b", "h100", timing="two_regime")
    assert composed.latency == load_catalog().profile("qwen2.5-7b", "h100").latency


DEVICE = """
devices:
  x:
    memory_gb: {{value: {memory}, source: "{source}"}}
    activation_reserve_gb: {{value: 2, source: "measured: log"}}
    disk_gb_per_s: {{value: 2, source: "measured: log"}}
    engine_start_s: {{value: 2, source: "measured: log"}}
    pcie_gb_per_s: {{value: 2, source: "measured: log"}}
    wake_constant_s: {{value: 2, source: "measured: log"}}
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a profile is a mapping of sections, got an empty file"),
        ("- 1", "a profile is a mapping of sections, got a list"),
        ("devices: {x: [", "not valid YAML"),
        ("device: {}", "device: unknown key (did you mean 'devices'?)"),
        ("engines: {x: {base_ms: 1, per_seqence_ms: 2, source: 'measured: a'}}", "mean 'per_sequence_ms'?"),
        ("engines: {x: {base_ms: .nan, per_sequence_ms: 2, source: 'measured: a'}}", "engines.x.base_ms: "),
        ("engines: {x: {base_ms: -1, per_sequence_ms: 2, source: 'measured: a'}}", "got '-1'"),
        ("engines: {x: {base_ms: 1, per_sequence_ms: 2}}", "engines.x.source: Field required"),
        ("models: {x: {source: 'published: a'}}", "models.x: needs either 'architecture' or 'same_as'"),
        ("models: {x: {source: 'published: a', same_as: lama-3.1-8b}}", "did you mean 'llama-3.1-8b'?"),
        ("models: {x: {source: 'published: a', same_as: x}}", "same_as: 'x' must have an 'architecture'"),
        (OWN_TIMING.replace("h100", "h10"), "unknown device 'h10' (did you mean 'h100'?)"),
        (OWN_TIMING.replace("form: two_regime", "form: linear"), "timings.0"),
        (DEVICE.format(memory=80, source="I think so"), "must start with one of measured:, published:"),
        (DEVICE.format(memory="'80 GiB'", source="measured: a"), "devices.x.memory_gb.value"),
        (DEVICE.format(memory=0, source="measured: a"), "devices.x.memory_gb.value"),
    ],
)
def test_bad_files_are_said_in_one_line_with_the_path(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ProfileError, match=re.escape(message)) as caught:
        load_catalog(files=[path])
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


TABLE = {
    "batch": "[1, 2]",
    "decode_ms": "[1, 2]",
    "mixed_ms": "[1, 2]",
    "prefill_tokens": "[0, 9]",
    "prefill_ms": "[0, 1]",
}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batch", "[2, 1]", "must ascend"),
        ("batch", "[1]", "at least 2"),
        ("decode_ms", "[1, 2, 3]", "'batch', 'decode_ms' and 'mixed_ms' must have the same length"),
        ("prefill_ms", "[1, 2, 3]", "'prefill_tokens' and 'prefill_ms' must have the same length"),
    ],
)
def test_tables_must_line_up(tmp_path: Path, key: str, value: str, message: str) -> None:
    columns = ", ".join(f"{name}: {points}" for name, points in {**TABLE, key: value}.items())
    path = tmp_path / "table.yaml"
    path.write_text(
        f"timings: [{{device: h100, model: qwen2.5-7b, form: tabulated, source: 'measured: a', {columns}, "
        "decode_per_context_token_ms: 0, mixed_per_context_token_ms: 0}]"
    )
    with pytest.raises(ProfileError, match=message):
        load_profile_file(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="no such profile file"):
        load_profile_file(tmp_path / "missing.yaml")
    with pytest.raises(ProfileError, match="cannot be read"):
        load_profile_file(tmp_path)
    with pytest.raises(ProfileError, match="no such folder of profile files"):
        load_catalog(tmp_path / "missing")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ProfileError, match="not a text file"):
        load_profile_file(binary)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * 4_000_001)
    with pytest.raises(ProfileError, match="larger than"):
        load_profile_file(large)
