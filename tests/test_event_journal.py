"""The journal of a real run, and the log it is turned back into, wherever the run was cut."""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scribe import Cut, Scribe
from worlds import SPEC, make_workload, problem_maker

from mosaicsim.aggregation.base import ASK
from mosaicsim.aggregation.registry import create as create_gate
from mosaicsim.errors import OutputError
from mosaicsim.executors.ledger import Ledger
from mosaicsim.executors.messages import CallRequest, CallResult
from mosaicsim.executors.simulated import Failure, SimulatedCluster, SimulatedExecutor
from mosaicsim.runtime.events import SessionSpec
from mosaicsim.runtime.journal import Journal
from mosaicsim.runtime.orchestrator import Orchestrator
from mosaicsim.runtime.pool import Pool
from mosaicsim.runtime.runlog import FINISHED, PENDING, RunLog
from mosaicsim.schedulers.base import WorkerView
from mosaicsim.schedulers.registry import create
from mosaicsim.workload.calls import NO_ANSWER, Workload

texts = st.dictionaries(st.text(min_size=1).filter(lambda key: key != "kind"), st.text(), max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(texts, min_size=1, max_size=8), st.data())
def test_what_was_written_whole_is_found_wherever_the_file_ends(
    facts: list[Any], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        journal = Journal(path)
        ends = []
        for fact in facts:
            journal.write("said", content=fact)
            ends.append(path.stat().st_size)
        journal.close()
        cut = data.draw(st.integers(0, ends[-1]))
        with path.open("r+b") as file:
            file.truncate(cut)
        whole = sum(end <= cut for end in ends)
        again = Journal(path)
        assert [fact["content"] for fact in again.found] == facts[:whole]
        again.write("said", content={"after": "the cut"})
        again.close()
        last = Journal(path)
        assert [fact["content"] for fact in last.found] == [*facts[:whole], {"after": "the cut"}]
        last.close()


def test_another_s_file_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"kind": "a"}\n[1, 2]\n')
    with pytest.raises(OutputError, match=r"journal\.jsonl: line 2 is no fact of a journal"):
        Journal(path)
    assert path.read_text().endswith("[1, 2]\n")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/journal\.jsonl: cannot be written: "):
        Journal(tmp_path / "file" / "journal.jsonl")


@dataclass
class Known:
    """A conversation whose answers are the workload's."""

    workload: Workload
    taken: list[int] = field(default_factory=list)

    def request(self, call_id: int) -> CallRequest:
        return CallRequest(call_id, (), {})

    def take(self, result: CallResult) -> int:
        self.taken.append(result.call_id)
        known = self.workload.outcomes.answer
        return int(known[result.call_id]) if result.finished and result.call_id < len(known) else NO_ANSWER


def orchestrated(workload: Workload, scheduler: str, gate: Any, log: RunLog) -> Orchestrator:
    policy = create(scheduler, {})
    pool = Pool(tuple(WorkerView(i, f"gpu{i}", "made") for i in range(3)), 1, 1, ((0, 1, 2),), (1.0,))
    problem_of = problem_maker(workload, policy)
    left = np.flatnonzero(log.status[: len(workload.calls)] == PENDING)
    plan = policy.plan(problem_of(left, pool.workers))
    return Orchestrator(
        workload,
        pool,
        plan,
        policy,
        create_gate(*gate),
        problem_of,
        fallback=create("greedy", {}),
        log=log,
    )


def world(workload: Workload, failures: dict[int, list[Failure]]) -> SimulatedExecutor:
    return SimulatedExecutor(
        SimulatedCluster(lambda name, workers, slots: SPEC, hosts=(0, 0, 0), failures=failures),
        np.concatenate([workload.outcomes.output_tokens, workload.aggregator.output_tokens]),
        np.concatenate([workload.outcomes.answer, np.full(workload.n_questions, NO_ANSWER)]),
        np.linspace(0.2, 0.9, len(workload.calls) + workload.n_questions),
        reactive=True,
    )


COLUMNS = (
    "start_s",
    "first_token_s",
    "finish_s",
    "output_tokens",
    "preemptions",
    "session",
    "answer",
    "status",
)
GATES = [("always", {}), ("plurality", {"tau": "2/3", "cancel_pending": True})]


def test_the_journal_tells_whose_weights_were_read_ahead(tmp_path: Path) -> None:
    workload, calls = make_workload(1), np.arange(1)
    journal = Journal(tmp_path / "journal.jsonl")
    written = Ledger(journal, Known(workload))
    for number, prefetched in enumerate([False, True]):
        written.started(SessionSpec(number, (0,), "e0", calls, calls, calls), 1.0, prefetched=prefetched)
    journal.close()
    log = RunLog(4)
    Ledger(Journal(tmp_path / "journal.jsonl"), Known(workload)).restore(log)
    assert [log.sessions[number].prefetched for number in (0, 1)] == [False, True]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["round_robin", "data_parallel", "ilp"]),
    st.sampled_from(GATES),
    st.integers(0, 80),
    st.floats(1.0, 30.0),
)
def test_a_run_goes_on_from_its_journal(scheduler: str, gate: Any, events: int, fails_at: float) -> None:
    """Cut anywhere, with a worker lost on the way: each call ends once, and the gate decides the same."""
    workload = make_workload(15)
    n = len(workload.calls)
    total = n + workload.n_questions
    whole = orchestrated(workload, scheduler, gate, RunLog(total))
    world(workload, {}).run(whole)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        journal, log = Journal(path), RunLog(total)
        first = orchestrated(workload, scheduler, gate, log)
        with suppress(Cut):
            world(workload, {0: [Failure(fails_at, 5.0)]}).run(
                Scribe(first, Ledger(journal, Known(workload)), events)
            )
        journal.close()

        journal, restored, known, told = Journal(path), RunLog(total), Known(workload), []
        ledger = Ledger(journal, known, lambda spec, results: told.extend(r.call_id for r in results))
        ledger.restore(restored)
        journalled = [r["call_id"] for fact in journal.found for r in fact.get("results", ())]
        assert sorted(journalled) == sorted(known.taken) == sorted(told) == sorted(set(journalled))
        ids = np.array(sorted(journalled), np.int64)
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(restored, name)[ids], getattr(log, name)[ids], name)
        np.testing.assert_allclose(restored.confidence[ids], log.confidence[ids], rtol=1e-12)
        assert all(row.usage is not None for row in restored.sessions.values())

        again = orchestrated(workload, scheduler, gate, restored)
        world(workload, {}).run(Scribe(again, ledger))
        journal.close()
        ended = [
            r["call_id"]
            for line in path.read_text().splitlines()
            for r in json.loads(line).get("results", ())
        ]
        assert len(ended) == len(set(ended)), "no call is reported twice"
        assert (restored.status[:n] != PENDING).all()
        np.testing.assert_array_equal(again.accepted, whole.accepted)
        asked = n + np.flatnonzero(again.accepted == ASK)
        assert (restored.status[asked] == FINISHED).all()
