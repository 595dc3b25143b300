"""Scenarios: what is accepted, what is said of what is not, and that resolving is a fixed point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mosaicsim.errors import ScenarioError
from mosaicsim.policies import PolicyKind
from mosaicsim.scenario import Scenario, dump_scenario, json_schema, load_scenario

ROOT = Path(__file__).parent.parent
SCENARIOS = sorted((ROOT / "scenarios").glob("*.yaml"))

MINIMAL: dict[str, Any] = {
    "name": "small",
    "workload": {"trace": "t.parquet"},
    "cluster": {"hosts": [{"device": "a100-80g", "gpus": 2}]},
    "experts": {"A": {"model": "llama-3.1-8b"}},
    "aggregator": {"model": "llama-3.1-8b"},
    "schedulers": ["round_robin", {"ilp": {"max_models_per_worker": 3}}],
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(MINIMAL | changes))
    return path


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message or message.startswith("--set")
    return message


def test_defaults(tmp_path: Path) -> None:
    scenario = load_scenario(write(tmp_path))
    assert scenario.replicates == 1
    assert [p.label for p in scenario.policies(PolicyKind.SCHEDULER)] == ["round_robin", "ilp"]
    assert [p.label for p in scenario.policies(PolicyKind.GATE)] == ["always"]
    assert scenario.workload.trace == str(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sede": 1}, "sede: unknown key (did you mean 'seed'?); accepted: name, "),
        ({"seed": "x"}, "seed: input should be a valid integer"),
        ({"seed": True}, "seed: expected a number or a text; YAML reads yes, no, on and off as true and false, got True"),
        ({"gates": [{"plurality": {"tau": True}}]}, "gates.0.plurality.tau: expected a number or a text"),
        ({"name": ".."}, "name: string should match pattern"),
        ({"name": "."}, "name: string should match pattern"),
        ({"experts": {"A": "llama"}}, "experts.A: input should be a mapping of keys, got 'llama'"),
        ({"seed": -1}, "seed: input should be greater than or equal to 0, got -1"),
        ({"replicates": 0}, "replicates: input should be greater than 0, got 0"),
        ({"name": "a/b"}, "name: string should match pattern"),
        ({"schedulers": []}, "schedulers: value should have at least 1 item"),
        ({"schedulers": "greedy"}, "schedulers: expected a list, each a name or one `name: {options}`, got 'greedy'"),
        ({"schedulers": [{"ilp": 3}]}, "schedulers.0.ilp: expected options as a mapping, got 3"),
        ({"schedulers": [3]}, "schedulers.0: expected a name or one `name: {options}`, got 3"),
        ({"schedulers": [{"greedy": {"label": "round_robin"}}]}, "schedulers.0.greedy.label: 'round_robin' is another scheduler's name"),
        ({"experts": {"A": {"modle": "x"}}}, "experts.A.modle: unknown key (did you mean 'model'?)"),
        ({"engine": {"max_num_seqs": 10**9}}, "engine.max_num_seqs: input should be less than or equal to 65536"),
        ({"schedulers": ["ilpp"]}, "schedulers.0: unknown scheduler 'ilpp' (did you mean 'ilp'?); accepted: round_robin"),
        (
            {"schedulers": [{"ilp": {"time_limit": 3}}]},
            "schedulers.0.ilp.time_limit: unknown key (did you mean 'time_limit_s'?)",
        ),
        ({"schedulers": [{"ilp": {"time_limit_s": "soon"}}]}, "schedulers.0.ilp.time_limit_s: input should be a valid number"),
        ({"schedulers": [{"ilp": {"gap": float("nan")}}]}, "schedulers.0.ilp.gap: "),
        ({"schedulers": ["ilp", "ilp"]}, "schedulers.1: 'ilp' is there twice; give one of them a label"),
        ({"schedulers": [{"ilp": {}, "greedy": {}}]}, "schedulers.0: expected a name or one `name: {options}`"),
        ({"gates": ["plurallity"]}, "gates.0: unknown gate 'plurallity' (did you mean 'plurality'?)"),
        ({"gates": [{"plurality": {"tau": 1.5}}]}, "gates.0.plurality.tau: input should be less than or equal to 1, got 1.5"),
        ({"gates": [{"plurality": {"tau": "2/0"}}]}, "gates.0.plurality.tau: "),
        ({"cluster": {"hosts": []}}, "cluster.hosts: tuple should have at least 1 item"),
        ({"cluster": {"hosts": [{"device": "a100-80g", "gpus": 0}]}}, "cluster.hosts.0.gpus: input should be greater than 0, got 0"),
        (
            {"cluster": {"hosts": [{"device": "a100-80g"}], "experts_per_wroker": 2}},
            "cluster.experts_per_wroker: unknown key (did you mean 'experts_per_worker'?)",
        ),
        ({"workload": {}}, "workload.trace: required, but missing"),
        ({"workload": {"trace": "t", "k": float("nan")}}, "workload.k: "),
        ({"workload": {"trace": "t", "routing": "skil"}}, "workload.routing: unknown router 'skil' (did you mean 'skill'?)"),
        ({"workload": {"trace": "t", "calibration": {"share": 0.1, "questions": 3}}}, "exactly one of trace, questions and share"),
        ({"engine": {"max_num_seqs": 64, "max_num_batched_tokens": 32}}, "max_num_batched_tokens (32) must be at least max_num_seqs (64)"),
        ({"engine": {"policy": "v2"}}, "engine.policy: input should be 'v0' or 'v1', got 'v2'"),
        ({"failures": {"mtbf_s": 0}}, "failures.mtbf_s: input should be greater than 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in complaint(write(tmp_path, **changes))


def test_files_that_are_no_scenarios(tmp_path: Path) -> None:
    assert "no such scenario file" in complaint(tmp_path / "missing.yaml")
    path = tmp_path / "x.yaml"
    path.write_text("name: [")
    assert "line 2, column 1: not valid YAML" in complaint(path)
    path.write_text("- a\n- b\n")
    assert "a scenario is a mapping of sections, got a list" in complaint(path)
    path.write_text("name: a\nname: b\n")
    assert "line 2, column 1: not valid YAML: key 'name' is given twice" in complaint(path)
    path.write_text("[a]: 1\n")
    assert "line 1, column 1: not valid YAML: key ['a'] is no name" in complaint(path)
    path.write_bytes(b"\xff\xfe\x00")
    assert "x.yaml: " in complaint(path)
    assert "cannot be read" in complaint(tmp_path)


def test_overrides(tmp_path: Path) -> None:
    scenario = load_scenario(
        write(tmp_path),
        [
            "seed=7",
            "cluster.hosts.0.gpus=8",
            "schedulers.0.round_robin.label=rr",
            "schedulers.1.ilp.gap=0.05",
            "gates=[{plurality: {tau: 2/3}}]",
            "engine.block_size=32",
            "workload.routing=uniform",
            "workload.routing.uniform.replacement=false",
        ],
    )
    assert (scenario.seed, scenario.cluster.hosts[0].gpus, scenario.engine.block_size) == (7, 8, 32)
    ilp = scenario.policies(PolicyKind.SCHEDULER)[1].options.model_dump()
    assert (ilp["gap"], ilp["max_models_per_worker"]) == (0.05, 3)
    assert scenario.policies(PolicyKind.SCHEDULER)[0].label == "rr"
    assert not scenario.policies(PolicyKind.ROUTER)[0].options.model_dump()["replacement"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "expected path=value"),
        ("=1", "expected path=value"),
        ("seed=[", "the value is not valid YAML"),
        ("cluster.hosts.3.gpus=1", "'3' is no index of a list of 1"),
        ("name.x=1", "holds nothing to set"),
        ("sede=1", "sede: unknown key (did you mean 'seed'?)"),
    ],
)
def test_wrong_overrides(tmp_path: Path, override: str, said: str) -> None:
    assert said in complaint(write(tmp_path), override)


def test_resolving_is_a_fixed_point(tmp_path: Path) -> None:
    """The saved scenario has every option, can be loaded, and resolves to itself."""
    scenario = load_scenario(write(tmp_path))
    text = dump_scenario(scenario)
    assert "time_limit_s" in text
    again = tmp_path / "elsewhere" / "resolved.yaml"
    again.parent.mkdir()
    again.write_text(text)
    assert dump_scenario(load_scenario(again)) == text


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda p: p.stem)
def test_shipped_scenarios_load_and_match_the_schema(path: Path) -> None:
    scenario = load_scenario(path)
    assert isinstance(scenario, Scenario)
    assert path.read_text().startswith("# yaml-language-server: $schema=scenario.schema.json")
    jsonschema.validate(yaml.safe_load(path.read_text()), json_schema())
    jsonschema.validate(yaml.safe_load(dump_scenario(scenario)), json_schema())


def test_the_shipped_schema_is_current() -> None:
    shipped = json.loads((ROOT / "scenarios" / "scenario.schema.json").read_text())
    assert shipped == json_schema(), "run: mosaicsim schema > scenarios/scenario.schema.json"


def test_the_schema_rejects_what_validation_rejects() -> None:
    for wrong in ({"schedulers": ["ilpp"]}, {"schedulers": [{"ilp": {"time_limit": 3}}]}, {"sede": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(MINIMAL | wrong, json_schema())
