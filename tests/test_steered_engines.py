"""A steered run on real engines: calls held back, moved, cancelled and overlapped change no answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from engines import build_tiny_models, needs_vllm
from real_scenario import write_scenario

pytestmark = [pytest.mark.engine, needs_vllm]

STEERED = {"work_stealing": {"start": "greedy", "scenes": 0, "label": "steered"}}
CANCEL = {"plurality": {"tau": "2/3", "cancel_pending": True, "label": "cancel"}}
PLAIN = {"plurality": {"tau": "2/3", "label": "plain"}}


def test_a_steered_run_on_engines_gives_the_paper_s_answers(tmp_path: Path) -> None:
    scenario = write_scenario(
        tmp_path,
        build_tiny_models(tmp_path / "models"),
        n_questions=10,
        schedulers=["round_robin", STEERED],
        gates=[PLAIN, CANCEL],
    )
    open_ended = [{"question": f"How many are {n}?", "gold": "7", "category": "low"} for n in range(10)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, open_ended)))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mosaicsim", "execute", str(scenario), "-o", str(out), "--no-plots"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers: dict[tuple[str, str], dict[str, str | None]] = {}
    for row in pq.read_table(out / "answers.parquet").to_pylist():
        answers.setdefault((row["scheduler"], row["gate"]), {})[row["question_id"]] = row["answer"]
    assert len(answers) == 4
    paper = answers["round_robin", "plain"]
    assert len(paper) == 10
    assert all(given == paper for given in answers.values())
    rows = pq.read_table(out / "outputs.parquet").to_pylist()
    calls = [(r["scheduler"], r["gate"], r["stage"], r["question_id"], r["slot"]) for r in rows]
    assert len(calls) == len(set(calls)), "no call is there twice"
    runs = {(r["scheduler"], r["gate"]): r for r in json.loads((out / "summary.json").read_text())["runs"]}
    for key, run in runs.items():
        finished = [
            r for r in rows if (r["scheduler"], r["gate"]) == key and r["finish_reason"] != "cancelled"
        ]
        assert len(finished) == run["calls_finished"]
        asked = round(10 * (1 - run["skip_rate"]))
        assert run["calls_finished"] + run["calls_cancelled"] == 30 + asked, "every call ends"
    assert 0 < runs["steered", "cancel"]["skip_rate"] == runs["round_robin", "plain"]["skip_rate"] < 1
    assert runs["steered", "cancel"]["calls_cancelled"] > 0
