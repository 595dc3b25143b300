"""The vLLM executor on real engines with tiny random models: the conformance suite, and what kills a worker."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engines import KeepAll, RealConformance, arguments, build_tiny_models, crew_of, needs_vllm
from executor_conformance import Script, session, sessions_ended
from test_weights import cached, evict
from worlds import make_workload, problem_maker

from mosaicsim.aggregation.registry import create as create_gate
from mosaicsim.errors import MosaicsimError
from mosaicsim.executors.base import Executor
from mosaicsim.executors.crew import Crew, Place
from mosaicsim.executors.messages import EngineArguments, Message, Submitted
from mosaicsim.executors.process import ProcessLink
from mosaicsim.executors.vllm_executor import Patience, VllmExecutor
from mosaicsim.runtime.events import (
    CallsFinished,
    CallsWithdrawn,
    Event,
    SessionEnded,
    SessionReady,
    SessionSpec,
    WorkerBack,
    WorkerLost,
)
from mosaicsim.runtime.orchestrator import Orchestrator
from mosaicsim.runtime.pool import Pool
from mosaicsim.runtime.runlog import FAILED, FINISHED
from mosaicsim.schedulers.base import WorkerView
from mosaicsim.schedulers.registry import create

pytestmark = [pytest.mark.engine, needs_vllm]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    with crew_of(tmp_path_factory.mktemp("workers")) as crew:
        yield crew


def kill(crew: Crew, worker: int) -> None:
    link = crew.link(Place((worker,)))
    assert isinstance(link, ProcessLink)
    os.kill(link.pid, signal.SIGKILL)


class TestConformance(RealConformance):
    @pytest.fixture(autouse=True)
    def _world(self, models: Path, crew: Crew) -> Iterator[None]:
        self.models, self.crew = models, crew
        yield
        crew.unload()

    def kill(self, worker: int) -> None:
        kill(self.crew, worker)


def test_a_busy_worker_reads_the_weights_of_the_next_model(models: Path, crew: Crew) -> None:
    """Those of "b" leave the page cache as "a" is ready; a prefetch brings them back while "a" generates."""
    weights = next((models / "tiny-b").glob("*.safetensors"))

    def react(executor: Executor, event: Event) -> None:
        if isinstance(event, SessionReady):
            evict(weights)
            if cached(weights):
                pytest.skip("this file system keeps no pages on a disk")
            executor.prefetch("b", (0,))

    recorder = KeepAll([500])
    executor = VllmExecutor(crew, 1, lambda expert, workers, slots: arguments(models, expert), recorder)
    executor.run(Script([session(0, (0,), "a", range(1))], sessions_ended(0), react))
    deadline = time.monotonic() + 20
    while not cached(weights) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert cached(weights)
    crew.unload()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_call_that_moves_goes_on_with_what_it_had(models: Path, crew: Crew, temperature: float) -> None:
    """At temperature 0 it is as likely as one that stayed; sampled, it draws other numbers from there on."""

    def react(executor: Executor, event: Event) -> None:
        if isinstance(event, CallsFinished) and 0 in event.records.call_ids:
            executor.withdraw_calls(0, np.array([1]), started=True)
        if isinstance(event, CallsWithdrawn):
            executor.start_session(session(1, (1,), "a", range(1, 2)))
            executor.start_session(session(2, (0,), "a", range(2, 3)))

    recorder = KeepAll([30, 600, 600], more={"temperature": temperature, "seed": 5})
    recorder.prompts = {1: (9, 8, 7), 2: (9, 8, 7)}
    executor = VllmExecutor(crew, 2, lambda e, w, s: arguments(models, e), recorder)
    executor.run(Script([session(0, (0,), "a", range(2))], sessions_ended(1, 2), react))
    crew.unload()
    results = {r.call_id: r for r in recorder.results}
    moved, stayed = results[1], results[2]
    assert moved.output_tokens == stayed.output_tokens == 600
    assert moved.finish_reason == "length"
    # random weights write bytes that are no text, and how those are shown depends on where a text begins
    assert moved.text[:20] == stayed.text[:20]
    if temperature == 0:
        assert moved.logprob == pytest.approx(stayed.logprob, rel=1e-3)
    else:
        assert moved.logprob != pytest.approx(stayed.logprob, rel=1e-3)


def pair() -> list[SessionSpec]:
    """Two sessions that share a worker."""
    one, other = session(0, (0,), "a", range(1)), session(1, (0,), "b", range(1, 2))
    return [replace(one, slots=2), replace(other, slots=2)]


def test_two_engines_share_a_worker(models: Path, crew: Crew) -> None:
    """The second one loads once the first generates; then both do; a third goes where its model is."""

    def react(executor: Executor, event: Event) -> None:
        if isinstance(event, SessionEnded) and event.session == 1:
            executor.start_session(replace(session(2, (0,), "b", range(2, 3)), slots=2))

    asked: list[tuple[str, int]] = []

    def engine_of(expert: str, workers: tuple[int, ...], slots: int) -> EngineArguments:
        asked.append((expert, slots))
        return arguments(models, expert)

    crew.warm([Place((0,)), Place((0,), 1)], 300)
    script = Script(pair(), sessions_ended(0, 1, 2), react)
    VllmExecutor(crew, 1, engine_of, KeepAll([4000, 300, 30])).run(script)
    crew.unload()
    assert asked == [("a", 2), ("b", 2), ("b", 2)]
    usage = {e.session: e.usage for e in script.events if isinstance(e, SessionEnded)}
    assert usage[0].ready_s <= usage[1].ready_s < usage[1].end_s < usage[0].end_s
    assert usage[2].ready_s - usage[2].load_start_s < 0.5 * (usage[1].ready_s - usage[0].ready_s)
    calls = script.calls()
    assert calls[1]["first"] < calls[0]["finish"]


def test_a_session_that_needs_the_whole_worker_waits_for_the_other_engine_to_go(
    models: Path, crew: Crew
) -> None:
    def react(executor: Executor, event: Event) -> None:
        if isinstance(event, SessionEnded) and script.ended() == {0, 1}:
            executor.start_session(session(2, (0,), "a", range(2, 3)))

    script = Script(pair(), sessions_ended(2), react)
    VllmExecutor(crew, 1, lambda e, w, s: arguments(models, e), KeepAll([30, 30, 30])).run(script)
    assert crew.beside(Place((0,))) == [] or crew.beside(Place((0,), 1)) == []
    crew.unload()
    assert script.calls()[2]["tokens"] == 30


def test_an_engine_that_dies_takes_its_worker_down(models: Path, crew: Crew) -> None:
    """Both sessions end with it, one event tells so, and both can start again."""
    recorder = KeepAll([4000, 4000, 30, 30])

    def react(executor: Executor, event: Event) -> None:
        if isinstance(event, SessionReady) and event.session == 1:
            crew.kill(Place((0,), 1))
        if isinstance(event, WorkerBack):
            for n, spec in enumerate(pair()):
                executor.start_session(replace(spec, session=2 + n, call_ids=spec.call_ids + 2))

    crew.warm([Place((0,)), Place((0,), 1)], 300)
    script = Script(pair(), sessions_ended(2, 3), react)
    patience = Patience(restart_s=0.5)
    VllmExecutor(crew, 1, lambda e, w, s: arguments(models, e), recorder, patience=patience).run(script)
    crew.unload()
    (lost,) = script.of(WorkerLost)
    assert isinstance(lost, WorkerLost)
    assert set(lost.ended) == {0, 1}
    assert {call: facts["tokens"] for call, facts in script.calls().items()} == {2: 30, 3: 30}


def test_a_call_that_stops_at_some_text_stays(models: Path, crew: Crew) -> None:
    def react(executor: Executor, event: Event) -> None:
        if isinstance(event, CallsFinished) and 0 in event.records.call_ids:
            executor.withdraw_calls(0, np.array([1]), started=True)

    recorder = KeepAll([30, 600], more={"stop": ["never written"]})
    executor = VllmExecutor(crew, 1, lambda e, w, s: arguments(models, e), recorder)
    script = Script([session(0, (0,), "a", range(2))], sessions_ended(0), react)
    executor.run(script)
    crew.unload()
    (withdrawn,) = script.of(CallsWithdrawn)
    assert isinstance(withdrawn, CallsWithdrawn)
    assert not len(withdrawn.call_ids)
    assert script.calls()[1]["tokens"] == 600


class Deadly(VllmExecutor):
    """Kills the worker whenever the engine gets one certain call, as a call that crashes it would."""

    deadly = 7

    def _take(self, place: Place, message: Message) -> None:
        super()._take(place, message)
        if isinstance(message, Submitted) and self.deadly in message.call_ids:
            self._crew.kill(place)


def test_a_call_that_kills_its_worker_three_times_is_set_aside(models: Path, crew: Crew) -> None:
    """The calls that happened to be in the engine with it run to their end."""
    workload = make_workload(6, seed=3)
    n = len(workload.calls)
    lengths = [4 + i % 30 for i in range(n + workload.n_questions)]
    lengths[Deadly.deadly] = 1500  # still under way when the kill arrives, however busy the machine
    policy = create("round_robin", {})
    pool = Pool(tuple(WorkerView(i, f"cpu{i}", "made") for i in range(2)), 1, 1, ((0, 1),), (1.0,))
    problem_of = problem_maker(workload, policy)
    orchestrator = Orchestrator(
        workload,
        pool,
        policy.plan(problem_of(np.arange(n), pool.workers)),
        policy,
        create_gate("always", {}),
        problem_of,
        fallback=create("greedy", {}),
    )
    recorder = KeepAll(lengths)
    executor = Deadly(
        crew,
        2,
        lambda expert, workers, slots: arguments(models, "b" if expert == "e1" else "a", max_num_seqs=4),
        recorder,
        patience=Patience(restart_s=0.1),
    )
    executor.run(orchestrator)
    crew.unload()
    status = orchestrator.log.status
    assert status[Deadly.deadly] == FAILED
    assert (np.delete(status, Deadly.deadly) == FINISHED).all()
    (failed,) = (r for r in recorder.results if r.failed)
    assert failed.error.startswith("its worker died 3 times")
    ended = [r.call_id for r in recorder.results]
    assert sorted(ended) == list(range(n + workload.n_questions)), "each call ended once"


def test_a_worker_that_hangs_is_lost(models: Path, crew: Crew) -> None:
    def freeze(spec: SessionSpec) -> None:
        link = crew.link(Place((0,)))
        assert isinstance(link, ProcessLink)
        os.kill(link.pid, signal.SIGSTOP)

    script = Script([session(0, (0,), "a", range(1))], lambda s: bool(s.of(WorkerLost)))
    recorder = KeepAll([3000], freeze)
    patience = Patience(silence_s=2.0, restarts=1)
    VllmExecutor(crew, 2, lambda e, w, s: arguments(models, "a"), recorder, patience=patience).run(script)
    assert "no word from it for 2 s" in recorder.notes


def test_an_engine_that_does_not_start_ends_the_run_and_says_why(models: Path, crew: Crew) -> None:
    script = Script([session(0, (0,), "a", range(1))], sessions_ended(0))
    recorder = KeepAll([5])
    executor = VllmExecutor(
        crew,
        2,
        lambda e, w, s: arguments(models, "a", no_such_argument=1),
        recorder,
        patience=Patience(failed_starts=1),
    )
    with pytest.raises(
        MosaicsimError, match=r"^a: the engine does not start: .*no_such_argument.*worker-0\.log$"
    ):
        executor.run(script)
    crew.unload()


def test_a_call_the_engine_refuses_fails_alone(models: Path, crew: Crew) -> None:
    """One whose prompt does not fit into the context."""
    script = Script([session(0, (0,), "a", range(3))], sessions_ended(0))
    recorder = KeepAll([5, 5, 5])
    recorder.prompts[1] = (7,) * 5000
    VllmExecutor(crew, 2, lambda e, w, s: arguments(models, "a"), recorder).run(script)
    crew.unload()
    assert sorted((r.call_id, r.failed) for r in recorder.results) == [(0, False), (1, True), (2, False)]


def test_the_engine_s_own_settings_are_recorded(models: Path, crew: Crew) -> None:
    script = Script([session(0, (0,), "a", range(1))], sessions_ended(0))
    recorder = KeepAll([5])
    VllmExecutor(crew, 2, lambda e, w, s: arguments(models, "a", max_num_seqs=3), recorder).run(script)
    crew.unload()
    (resolved,) = recorder.resolved
    assert resolved["max_num_seqs"] == 3
    assert resolved["num_gpu_blocks"] > 0  # type: ignore[operator]  # a number
    assert resolved["device"] == "cpu"
