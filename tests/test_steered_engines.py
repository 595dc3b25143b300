"""A steered run on real engines: calls held back, moved, cancelled and overlapped change no answer."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import worlds
from engines import KeepAll, arguments, build_tiny_models, crew_of, needs_vllm
from real_scenario import write_scenario
from test_steered import calibrated, run

from mosaicsim.executors.vllm_executor import VllmExecutor
from mosaicsim.runtime.runlog import FINISHED
from mosaicsim.schedulers import work_stealing

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
    for key, row in runs.items():
        finished = [
            r for r in rows if (r["scheduler"], r["gate"]) == key and r["finish_reason"] != "cancelled"
        ]
        assert len(finished) == row["calls_finished"]
        asked = round(10 * (1 - row["skip_rate"]))
        assert row["calls_finished"] + row["calls_cancelled"] == 30 + asked, "every call ends"
    assert 0 < runs["steered", "cancel"]["skip_rate"] == runs["round_robin", "plain"]["skip_rate"] < 1
    assert runs["steered", "cancel"]["calls_cancelled"] > 0


def test_experts_that_share_a_worker_on_engines(tmp_path: Path) -> None:
    scenario = write_scenario(
        tmp_path,
        build_tiny_models(tmp_path / "models"),
        n_questions=6,
        cluster={"hosts": [{"device": "cpu", "gpus": 1}], "experts_per_worker": 2},
        gates=[PLAIN],
    )
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mosaicsim", "execute", str(scenario), "-o", str(out), "--no-plots"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (run,) = json.loads((out / "summary.json").read_text())["runs"]
    assert run["calls_finished"] == 18 + round(6 * (1 - run["skip_rate"]))
    (journal,) = (out / "runs").glob("*.jsonl")
    facts = [json.loads(line) for line in journal.read_text().splitlines()]
    sessions = {fact["session"]: fact for fact in facts if fact["kind"] == "session"}
    ends = {fact["session"]: fact["usage"]["end_s"] for fact in facts if fact["kind"] == "end"}
    first, second, *_ = sessions
    assert sessions[first]["slots"] == sessions[second]["slots"] == 2
    assert sessions[second]["at_s"] < ends[first]


def test_started_calls_move_between_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker has the longest calls. The others, idle soon, load their model and go on with some of them."""
    monkeypatch.setattr(work_stealing, "LEAST_SAVING_S", 1e9)
    monkeypatch.setattr(work_stealing, "LEAST_SAVING_STARTED_S", 0.0)
    monkeypatch.setattr(worlds, "SPEC", replace(worlds.SPEC, load_s=0.0, disk_s=0.0))
    monkeypatch.setattr(worlds, "MEANS", (1500,))
    workload, models = (
        calibrated(worlds.make_workload(6, n_experts=2)),
        build_tiny_models(tmp_path / "models"),
    )
    lengths = np.where(workload.calls.expert, 3900, 800).tolist() + [5] * workload.n_questions
    recorder = KeepAll(lengths)
    with crew_of(tmp_path / "workers") as crew:
        executor = VllmExecutor(crew, 3, lambda expert, workers, slots: arguments(models, "a"), recorder)
        options = {"start": "round_robin", "scenes": 0, "overlap": False, "migrate": True}
        steered, _ = run(workload, ("always", {}), options, executor=executor)
    log = steered.log
    assert (log.status == FINISHED).all()
    np.testing.assert_array_equal(log.output_tokens, lengths)
    assert sorted(r.call_id for r in recorder.results) == list(range(log.n_calls)), "each call ended once"
    began = np.array([log.sessions[session].started_s for session in log.session.tolist()])
    moved = np.flatnonzero(log.start_s < began)
    assert len(moved) > 0
    assert set(moved.tolist()) <= set(steered.withdrawn)


def test_the_last_calls_of_an_engine_join_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker has one long call. Where aggregator calls wait behind it, it goes on beside another."""
    monkeypatch.setattr(work_stealing, "LEAST_SAVING_S", 1e9)
    monkeypatch.setattr(work_stealing.WorkStealing, "may_go", lambda *_, **__: 0)  # no idle worker takes any
    monkeypatch.setattr(work_stealing, "LEAST_SAVING_STARTED_S", 0.0)
    monkeypatch.setattr(worlds, "SPEC", replace(worlds.SPEC, load_s=0.0, disk_s=0.0))
    workload, models = (
        calibrated(worlds.make_workload(6, n_experts=1)),
        build_tiny_models(tmp_path / "models"),
    )
    lengths = np.where(workload.calls.question == 5, 3900, 20).tolist() + [5] * workload.n_questions
    recorder = KeepAll(lengths)
    with crew_of(tmp_path / "workers") as crew:
        executor = VllmExecutor(crew, 3, lambda expert, workers, slots: arguments(models, "a"), recorder)
        options = {"start": "data_parallel", "scenes": 0, "migrate": True}
        steered, _ = run(workload, ("always", {}), options, executor=executor)
    log = steered.log
    assert (log.status == FINISHED).all()
    np.testing.assert_array_equal(log.output_tokens, lengths)
    assert sorted(r.call_id for r in recorder.results) == list(range(log.n_calls)), "each call ended once"
    planned = {call: s.worker for s in steered.plan.sessions for call in s.call_ids.tolist()}
    joined = [c for c in steered.withdrawn if len(log.sessions[int(log.session[c])].spec.call_ids)]
    assert joined == steered.withdrawn
    assert len(joined) > 0
    assert all(log.sessions[int(log.session[c])].spec.workers[0] != planned[c] for c in joined)
