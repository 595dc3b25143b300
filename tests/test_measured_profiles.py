"""The `measured` section of a profile file: stated capacity, load and host time instead of derived ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mosaicsim.errors import ProfileError
from mosaicsim.executors.fleet import Fleet
from mosaicsim.hardware.catalog import Catalog, load_catalog
from mosaicsim.scenario import load_scenario

PAPER = Path(__file__).parents[1] / "scenarios" / "paper_gpqa.yaml"

FILE = """
devices: {core: {description: one core}}
measured:
  - {device: core, model: gemma-2-9b, source: "measured: today", load_s: 4.0, disk_s: 1.0, process_start_s: 12,
     kv_capacity_tokens: 5000, host_base_ms: 0.5, host_per_sequence_ms: 0.25, engine: {block_size: 128}}
  - {device: a100-80g, model: gemma-2-9b, tp: 2, source: "measured: today", load_s: 30, wake_s: 0.5,
     kv_capacity_tokens: 700000}
timings:
  - device: core
    model: gemma-2-9b
    form: two_regime
    source: "measured: today"
    decode_ms: {base: 1.0, per_sequence: 0.0, per_context_token: 0.0}
    mixed_ms: {base: 1.0, per_sequence: 0.0, per_prefill_token: 0.0, per_context_token: 0.0}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture
def catalog(path: Path) -> Catalog:
    return load_catalog(files=[path])


def test_stated_costs_replace_derived_ones(catalog: Catalog) -> None:
    found = catalog.profile("gemma-2-9b", "core")
    assert (found.kv_capacity_tokens, found.load_s, found.disk_s) == (5000, 4.0, 1.0)
    assert found.wake_s == found.load_s  # it cannot sleep
    assert found.host is not None
    assert found.host.per_sequence_s == pytest.approx(0.25e-3)
    assert found.sources["kv_capacity_tokens"] == "measured: today"


def test_given_load_time_keeps_the_disk_share(catalog: Catalog) -> None:
    found = catalog.profile("gemma-2-9b", "core", load_s=8.0)
    assert (found.load_s, found.disk_s, found.wake_s) == (8.0, 2.0, 8.0)


def test_only_the_degree_that_was_measured_is_replaced(catalog: Catalog) -> None:
    assert catalog.profile("gemma-2-9b", "a100-80g", tp=2).kv_capacity_tokens == 700_000
    assert catalog.profile("gemma-2-9b", "a100-80g", tp=2).wake_s == 0.5
    package = load_catalog()
    assert catalog.profile("gemma-2-9b", "a100-80g") == package.profile("gemma-2-9b", "a100-80g")


def test_a_share_of_a_device_was_not_measured(catalog: Catalog) -> None:
    with pytest.raises(ProfileError, match=r"measured alone on its device, and this is 0\.5 of one"):
        catalog.profile("gemma-2-9b", "core", memory_share=0.5)


def test_a_device_without_rates_knows_what_was_measured_on_it(catalog: Catalog) -> None:
    with pytest.raises(
        ProfileError, match="'qwen3-8b' was not measured on it at tp=1; measured there are gemma-2-9b"
    ):
        catalog.profile("qwen3-8b", "core")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "{description: one core}",
            "{memory_gb: {value: 8, source: 'measured: a'}}",
            "devices.core: needs all of memory_gb",
        ),
        ("load_s: 4.0", "load_s: 0.5", "measured.0: disk_s (1.0) is a part of load_s (0.5)"),
        ("kv_capacity_tokens: 5000", "kv_capacity_token: 5000", "did you mean 'kv_capacity_tokens'?"),
        ("model: gemma-2-9b, source", "model: gema-2-9b, source", "unknown model 'gema-2-9b'"),
        (
            'source: "measured: today", load_s: 4.0',
            'source: "mine", load_s: 4.0',
            "measured.0.source: must start with",
        ),
    ],
)
def test_bad_entries_are_said_in_one_line(path: Path, old: str, new: str, message: str) -> None:
    assert old in FILE
    path.write_text(FILE.replace(old, new))
    with pytest.raises(ProfileError, match=re.escape(message)) as caught:
        load_catalog(files=[path])
    assert "\n" not in str(caught.value)


def test_measured_host_time_is_used_unless_the_scenario_names_an_engine_version(tmp_path: Path) -> None:
    path = tmp_path / "host.yaml"
    path.write_text(
        "measured: [{device: a100-80g, model: gemma-2-9b, source: 'measured: today', load_s: 4, "
        "kv_capacity_tokens: 90000, host_base_ms: 0.5, host_per_sequence_ms: 0.25}]"
    )
    overrides = ["engine={}", f"profiles=[{path}]"]
    scenario = load_scenario(PAPER, overrides)
    name = next(name for name, section in scenario.experts.items() if section.model == "gemma-2-9b")
    measured = Fleet(scenario).engine_of(name, (0,)).tables
    named = Fleet(load_scenario(PAPER, [*overrides, "engine.version=none"])).engine_of(name, (0,)).tables
    assert measured.decode_s(4, 0) - named.decode_s(4, 0) == pytest.approx(1.5e-3)
