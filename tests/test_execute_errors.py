"""What can be found wrong with a real run is found before a model is loaded, in one line."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from engines import INSTALLED, build_tiny_models, needs_vllm
from real_scenario import write_scenario

from mosaicsim.analysis.execution import check_execution, open_work
from mosaicsim.errors import MosaicsimError, OutputError
from mosaicsim.scenario import load_scenario

Change = Callable[[dict[str, Any], Path], None]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    if INSTALLED:
        return build_tiny_models(folder)
    for name in ("tiny", "tiny-b"):  # folders are all that is looked at without the extra
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    return folder


def complaint(folder: Path, models: Path, change: Change) -> str:
    """The message about a scenario that was changed for the worse."""
    path = write_scenario(folder, models)
    scenario = yaml.safe_load(path.read_text())
    change(scenario, folder)
    path.write_text(yaml.safe_dump(scenario))
    with pytest.raises(MosaicsimError) as raised:
        check_execution(load_scenario(path))
    message = str(raised.value)
    assert "\n" not in message
    return message


def drop_execution(s: dict[str, Any], folder: Path) -> None:
    del s["execution"]


def drop_aggregator(s: dict[str, Any], folder: Path) -> None:
    del s["execution"]["models"]["aggregator"]


def no_such_model(s: dict[str, Any], folder: Path) -> None:
    s["execution"]["models"]["b"]["path"] = "./nowhere"


def unknown_variable(s: dict[str, Any], folder: Path) -> None:
    s["execution"]["models"]["a"]["template"] = "{qestion}"


def answers_to_an_expert(s: dict[str, Any], folder: Path) -> None:
    s["execution"]["models"]["a"]["template"] = "{question} {answers}"


def two_templates(s: dict[str, Any], folder: Path) -> None:
    s["execution"]["models"]["a"]["template_file"] = "a.txt"


def no_template_file(s: dict[str, Any], folder: Path) -> None:
    s["execution"]["models"]["a"] |= {"template": None, "template_file": "a.txt"}


def kv_beyond_memory(s: dict[str, Any], folder: Path) -> None:
    s["execution"]["models"]["a"]["engine"] = {"kv_cache_memory_bytes": 1 << 50}


def too_many_workers(s: dict[str, Any], folder: Path) -> None:
    s["cluster"]["hosts"][0]["gpus"] = 4000


def shared_worker(s: dict[str, Any], folder: Path) -> None:
    s["cluster"]["experts_per_worker"] = 2
    s["execution"]["executor"] = "ray"


def no_calibration(s: dict[str, Any], folder: Path) -> None:
    s["workload"]["calibration"] = {"share": 0.1}


def oracle(s: dict[str, Any], folder: Path) -> None:
    s["schedulers"] = ["oracle"]


def no_questions(s: dict[str, Any], folder: Path) -> None:
    s["execution"]["questions"] = "question.jsonl"


CASES: list[tuple[Change, str]] = [
    (drop_execution, "execution: required for a real run"),
    (drop_aggregator, "execution.models: no entry `aggregator`"),
    (no_such_model, "execution.models.b.path: "),
    (
        unknown_variable,
        "execution.models.a.template: unknown template variable '{qestion}' (did you mean 'question'?)",
    ),
    (answers_to_an_expert, "execution.models.a.template: unknown template variable '{answers}'"),
    (two_templates, "execution.models.a: give template or template_file, not both"),
    (no_template_file, "execution.models.a.template_file: "),
    (kv_beyond_memory, "execution.models.a: kv_cache_memory_bytes 1,125,899,906,842,624 on 2 workers"),
    (too_many_workers, "cluster.workers_at_once: 4000 workers may be busy at once, but this machine's"),
    (shared_worker, "cluster.experts_per_worker: 2; on Ray a worker runs one expert at a time"),
    (oracle, "schedulers.0.oracle: needs the true lengths"),
    (no_questions, "no such question file (did you mean 'questions.jsonl'?)"),
]


@pytest.mark.parametrize(("change", "expected"), CASES, ids=lambda x: getattr(x, "__name__", None))
def test_the_complaint_says_where_and_what(
    change: Change, expected: str, tmp_path: Path, models: Path
) -> None:
    assert expected in complaint(tmp_path, models, change)


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(tmp_path: Path, models: Path) -> None:
    def cuda(s: dict[str, Any], folder: Path) -> None:
        s["execution"]["device"] = "cuda"

    assert complaint(tmp_path, models, cuda).startswith(
        "execution.device: cuda, but no NVIDIA GPU is visible"
    )


@pytest.mark.skipif(importlib.util.find_spec("transformers") is not None, reason="transformers is here")
def test_without_the_extra_it_says_what_to_install(tmp_path: Path, models: Path) -> None:
    assert "not installed" in complaint(tmp_path, models, lambda s, folder: None)


@needs_vllm
def test_a_prompt_beyond_the_context(tmp_path: Path, models: Path) -> None:
    def long(s: dict[str, Any], folder: Path) -> None:
        s["execution"]["models"]["c"]["template"] = "{question}" * 200

    message = complaint(tmp_path, models, long)
    assert message.startswith("execution.models.c: the prompt of question 'q0' has ")
    assert "max_model_len 2,048 less max_tokens 240 leaves 1,808" in message


@needs_vllm
def test_an_argument_that_the_engine_does_not_have(tmp_path: Path, models: Path) -> None:
    def misspelt(s: dict[str, Any], folder: Path) -> None:
        s["execution"]["models"]["b"]["engine"] = {"max_model_length": 512}

    assert complaint(tmp_path, models, misspelt) == (
        "execution.models.b.engine: 'max_model_length' is no argument of vLLM's EngineArgs "
        "(did you mean 'max_model_len'?)"
    )


@needs_vllm
def test_an_expert_without_a_model(tmp_path: Path, models: Path) -> None:
    def fewer(s: dict[str, Any], folder: Path) -> None:
        del s["execution"]["models"]["c"]

    assert complaint(tmp_path, models, fewer).startswith("execution.models: no entry for expert 'c' of ")


@needs_vllm
def test_calibration_must_be_a_trace(tmp_path: Path, models: Path) -> None:
    assert complaint(tmp_path, models, no_calibration).startswith(
        "workload.calibration: a real run needs {trace: FILE}"
    )


@needs_vllm
def test_questions_without_gold_are_asked_and_said(tmp_path: Path, models: Path) -> None:
    path = write_scenario(tmp_path, models)
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "Why?"}\n' + questions.read_text())
    (note,) = check_execution(load_scenario(path))
    assert note.endswith("1 of 13 have no gold answer: accuracy is that of the others")


def test_an_unfinished_folder_is_gone_on_with_only_if_it_is_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "out.unfinished"
    open_work(folder, "one", resume=False)
    (folder / "kept").write_text("")
    open_work(folder, "one", resume=True)
    assert (folder / "kept").exists()
    with pytest.raises(MosaicsimError, match="it was begun with another scenario"):
        open_work(folder, "two", resume=True)
    open_work(folder, "two", resume=False)
    assert not (folder / "kept").exists()


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("")
    with pytest.raises(OutputError, match="is in the way; move it"):
        open_work(tmp_path, "one", resume=False)
    assert (tmp_path / "letter").exists()
