"""The simulated executor: the conformance suite, and what only a simulation promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from executor_conformance import Conformance, Script, session, sessions_ended
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaicsim.errors import InfeasibleError, MosaicsimError
from mosaicsim.executors.base import Executor
from mosaicsim.executors.engine import EngineConfig
from mosaicsim.executors.session import EngineSpec
from mosaicsim.executors.simulated import (
    Failure,
    SessionCache,
    SimulatedCluster,
    SimulatedExecutor,
)
from mosaicsim.hardware.latency import HostOverhead, TwoRegimeLatency
from mosaicsim.runtime.events import (
    Event,
    SessionEnded,
    SessionReady,
    SessionUsage,
    WorkerBack,
    WorkerLost,
)

LATENCY = TwoRegimeLatency(0.01, 1e-4, 1e-7, 0.008, 1e-4, 5e-5, 1e-7)
CONFIG = EngineConfig("v1", 2, 512, 16, 4000, prefix_caching=True)
SPEC = EngineSpec(CONFIG, LATENCY.compile(2, 512, HostOverhead()), load_s=10.0, disk_s=6.0, wake_s=1.5)


def at_once(expert: str, workers: tuple[int, ...], slots: int) -> EngineSpec:
    """Engines that take no time to load."""
    return replace(SPEC, load_s=0.0, disk_s=0.0)


def cluster(**changes: object) -> SimulatedCluster:
    return replace(SimulatedCluster(lambda expert, workers, slots: SPEC, hosts=(0, 0)), **changes)  # type: ignore[arg-type]


class TestConformance(Conformance):
    def executor(
        self, lengths: list[int], *, failures: dict[int, tuple[float, float | None]] | None = None
    ) -> SimulatedExecutor:
        planned = {w: [Failure(at, down)] for w, (at, down) in (failures or {}).items()}
        return SimulatedExecutor(cluster(failures=planned), np.array(lengths), reactive=True)

    def session_seconds(self) -> float:
        return 12.0


class TestConformanceOfLanes(TestConformance):
    """The same with two experts to a GPU."""

    def executor(
        self, lengths: list[int], *, failures: dict[int, tuple[float, float | None]] | None = None
    ) -> SimulatedExecutor:
        planned = {w: [Failure(at, down)] for w, (at, down) in (failures or {}).items()}
        return SimulatedExecutor(cluster(failures=planned, slots=2), np.array(lengths), reactive=True)


def usages(script: Script) -> list[SessionUsage]:
    return [e.usage for e in script.events if isinstance(e, SessionEnded)]


lengths_lists = st.lists(st.integers(1, 300), min_size=2, max_size=30)


@settings(max_examples=60, deadline=None)
@given(lengths_lists, st.one_of(st.none(), st.floats(1.0, 30.0)))
def test_running_through_equals_stepping(lengths: list[int], fails_at: float | None) -> None:
    """A session run in one go, the same stepped with SimPy, and the same from the cache."""
    n = len(lengths)
    specs = [session(0, (0,), "a", range(n // 2)), session(1, (1,), "b", range(n // 2, n))]
    failures = {} if fails_at is None else {0: [Failure(fails_at, None)]}
    cache: SessionCache = {}
    outcomes = []
    for reactive in (False, True, False):
        over = sessions_ended(0, 1)
        if failures:
            over = lambda s: 1 in s.ended() and (0 in s.ended() or bool(s.of(WorkerLost)))  # noqa: E731
        script = Script(specs, over)
        executor = SimulatedExecutor(
            cluster(failures=failures), np.array(lengths), reactive=reactive, cache=cache
        )
        executor.run(script)
        outcomes.append({c: (f["start"], f["first"], f["finish"]) for c, f in script.calls().items()})
    assert set(outcomes[0]) == set(outcomes[1])
    for call, times in outcomes[0].items():
        assert outcomes[1][call] == pytest.approx(times, rel=1e-9)
    assert outcomes[2] == outcomes[0]
    if not failures:
        assert set(outcomes[0]) == set(range(n))


def test_one_call_alone_takes_what_the_formula_says() -> None:
    script = Script([session(0, (0,), "a", range(1))], sessions_ended(0))
    end = SimulatedExecutor(cluster(), np.array([50])).run(script)
    prefill = 0.008 + 5e-5 * 20
    decode = sum(0.01 + 1e-4 + 1e-7 * (20 + g) for g in range(1, 50))
    assert end == pytest.approx(10.0 + prefill + decode, rel=1e-12)
    assert script.calls()[0]["first"] == pytest.approx(10.0 + prefill, rel=1e-12)


def test_loads_share_a_host_disk() -> None:
    """Two loads at once on a disk that feeds one: each reads at half speed, so 4 + 12 s instead of 4 + 6 s."""
    specs = [session(0, (0,), "a", range(1)), session(1, (1,), "b", range(1, 2))]
    script = Script(specs, sessions_ended(0, 1))
    SimulatedExecutor(cluster(disk_streams=(1.0,)), np.array([5, 5])).run(script)
    assert [e.at_s for e in script.of(SessionReady)] == pytest.approx([16.0, 16.0])


def test_loads_on_two_hosts_do_not() -> None:
    specs = [session(0, (0,), "a", range(1)), session(1, (1,), "b", range(1, 2))]
    script = Script(specs, sessions_ended(0, 1))
    SimulatedExecutor(cluster(hosts=(0, 1), disk_streams=(1.0, 1.0)), np.array([5, 5])).run(script)
    assert [e.at_s for e in script.of(SessionReady)] == pytest.approx([10.0, 10.0])


def loads_read_ahead(
    tokens: int, ahead: list[tuple[float, str]], **changes: object
) -> tuple[SessionUsage, SessionUsage]:
    """Session a of one call, then b on the same worker; ``ahead``: what is read so long after a is ready."""

    def react(executor: SimulatedExecutor, event: object) -> None:
        if isinstance(event, SessionReady) and event.session == 0:
            for wait_s, expert in ahead:
                moment = executor.env.timeout(wait_s)
                moment.callbacks.append(lambda _, e=expert: executor.prefetch(e, (0,)))
        if isinstance(event, SessionEnded) and event.session == 0:
            executor.start_session(session(1, (0,), "b", range(1, 2)))

    script = Script([session(0, (0,), "a", range(1))], sessions_ended(1), react)  # type: ignore[arg-type]
    SimulatedExecutor(cluster(**changes), np.array([tokens, 5])).run(script)
    first, second = usages(script)
    return first, second


@pytest.mark.parametrize(
    ("ahead", "load_s"),
    [
        ([], 10.0),
        ([(0.0, "b")], 4.0),  # read in time: the engine's start is left
        ([(0.0, "c")], 10.0),  # another's weights
        ([(0.0, "b"), (7.0, "c")], 10.0),  # the worker's last word counts, also of what had been read
        ([(0.0, "c"), (0.5, "b")], 4.0),
        ([(0.0, "a"), (0.0, "b")], 4.0),
    ],
)
def test_weights_read_ahead_need_no_disk(ahead: list[tuple[float, str]], load_s: float) -> None:
    """a generates for 10 s; reading takes 6 s of the load's 10 s."""
    first, second = loads_read_ahead(900, ahead)
    assert first.end_s - first.ready_s > 9.0
    assert second.ready_s - second.load_start_s == pytest.approx(load_s)


def test_what_is_left_to_read_is_read_by_the_session() -> None:
    first, second = loads_read_ahead(200, [(0.5, "b")])
    spent_s = first.end_s - first.ready_s
    assert 1.0 < spent_s < 6.0
    assert second.ready_s - second.load_start_s == pytest.approx(4.0 + 6.0 - (spent_s - 0.5))


def test_reading_ahead_takes_its_share_of_the_disk() -> None:
    """b's 6 s of reading for worker 0 begin with d's on worker 1, on a disk that feeds one: both take 12 s."""

    def react(executor: object, event: object) -> None:
        if isinstance(event, SessionReady) and event.session == 0:
            executor.prefetch("b", (0,))  # type: ignore[attr-defined]
            executor.start_session(session(1, (1,), "d", range(1, 2)))  # type: ignore[attr-defined]

    script = Script([session(0, (0,), "a", range(1))], sessions_ended(0, 1), react)
    SimulatedExecutor(cluster(disk_streams=(1.0,)), np.array([5000, 5])).run(script)
    loads = {u.load_start_s: u.ready_s - u.load_start_s for u in usages(script)}
    # alone from second 4 of its load; b had read for 4 s by then, and its last 2 s take 4 s
    assert loads == pytest.approx({0.0: 10.0, 10.0: 4.0 + 4.0 + 4.0})


def test_a_lost_worker_s_weights_are_read_again() -> None:
    def react(executor: object, event: object) -> None:
        if isinstance(event, SessionReady) and event.session == 0:
            executor.prefetch("b", (0,))  # type: ignore[attr-defined]
        if isinstance(event, WorkerBack):
            executor.start_session(session(1, (0,), "b", range(1, 2)))  # type: ignore[attr-defined]

    for lost_at in (12.0, 18.0):  # while it reads, and after
        script = Script([session(0, (0,), "a", range(1))], sessions_ended(1), react)
        failures = {0: [Failure(lost_at, 1.0)]}
        SimulatedExecutor(cluster(failures=failures), np.array([5000, 5])).run(script)
        assert [u.ready_s - u.load_start_s for u in usages(script)] == pytest.approx([10.0])


def chain(experts: str, **changes: object) -> list[SessionUsage]:
    """Sessions of one short call each, one after another on worker 0."""

    def react(executor: object, event: object) -> None:
        if isinstance(event, SessionEnded) and event.session + 1 < len(experts):
            n = event.session + 1
            executor.start_session(session(n, (0,), experts[n], range(n, n + 1)))  # type: ignore[attr-defined]

    script = Script([session(0, (0,), experts[0], range(1))], sessions_ended(len(experts) - 1), react)
    SimulatedExecutor(cluster(**changes), np.array([5] * len(experts))).run(script)
    return usages(script)


def test_a_model_that_is_still_there_is_not_loaded_again() -> None:
    loads = [u.ready_s - u.load_start_s for u in chain("aab")]
    assert loads == pytest.approx([10.0, 0.0, 10.0])


def test_an_engine_in_the_way_is_closed_first() -> None:
    slow = replace(SPEC, unload_s=3.0)
    usage = chain("aab", engine_of=lambda expert, workers, slots: slow)
    assert [u.ready_s - u.load_start_s for u in usage] == pytest.approx([10.0, 0.0, 13.0])


def test_a_model_that_had_to_go_is_loaded_again() -> None:
    loads = [u.ready_s - u.load_start_s for u in chain("aba")]
    assert loads == pytest.approx([10.0, 10.0, 10.0])


def test_sleeping_engines_are_woken() -> None:
    loads = [u.ready_s - u.load_start_s for u in chain("abab", keep_asleep=True)]
    assert loads == pytest.approx([10.0, 10.0, 1.5, 1.5])


def test_a_second_copy_of_a_running_expert_is_loaded_not_woken() -> None:
    specs = [session(0, (0,), "a", range(1)), session(1, (0,), "a", range(1, 2))]
    script = Script(specs, sessions_ended(0, 1))
    SimulatedExecutor(cluster(slots=2, keep_asleep=True), np.array([5, 5])).run(script)
    assert [u.ready_s for u in usages(script)] == pytest.approx([10.0, 20.0])


def test_two_experts_on_one_gpu_share_its_time() -> None:
    """Alone a session takes T; together each runs at half speed, so both end after 2T."""
    alone = Script([session(0, (0,), "a", range(1))], sessions_ended(0))
    SimulatedExecutor(cluster(), np.array([100])).run(alone)
    seconds = usages(alone)[0].end_s - usages(alone)[0].ready_s

    specs = [session(0, (0,), "a", range(1)), session(1, (0,), "b", range(1, 2))]
    together = Script(specs, sessions_ended(0, 1))
    SimulatedExecutor(cluster(slots=2, engine_of=at_once), np.array([100, 100])).run(together)
    assert [u.end_s - u.ready_s for u in usages(together)] == pytest.approx([2 * seconds] * 2)
    calls = together.calls()
    assert calls[0]["finish"] == pytest.approx(2 * seconds)


def test_engines_that_share_a_worker_start_one_after_the_other() -> None:
    """The first one generates at full speed until the second has been loaded."""
    specs = [session(0, (0,), "a", range(1)), session(1, (0,), "b", range(1, 2))]
    script = Script(specs, sessions_ended(0, 1))
    SimulatedExecutor(cluster(slots=2), np.array([600, 5])).run(script)
    first, second = usages(script)
    assert (first.ready_s, second.ready_s) == (10.0, 20.0)
    work = {n: 0.008 + 5e-5 * 20 + sum(0.0101 + 1e-7 * (20 + g) for g in range(1, n)) for n in (600, 5)}
    assert first.end_s == pytest.approx(10.0 + work[600])
    assert second.end_s == pytest.approx(20.0 + work[5])


def test_a_worker_that_is_lost_while_an_engine_waits_to_start_can_start_others() -> None:
    specs = [session(0, (0,), "a", range(1)), session(1, (0,), "b", range(1, 2))]
    failing = cluster(slots=2, failures={0: [Failure(5.0, 2.0)]})

    def again(executor: Executor, event: Event) -> None:
        if isinstance(event, WorkerBack):
            for n, spec in enumerate(specs):
                executor.start_session(replace(spec, session=2 + n))

    script = Script(specs, sessions_ended(2, 3), again)
    SimulatedExecutor(failing, np.array([5, 5])).run(script)
    assert [u.ready_s for u in usages(script)] == pytest.approx([17.0, 27.0])


def test_one_expert_s_host_time_is_another_s_gpu_time() -> None:
    """Each decodes at 1 / (1 + u u), u the GPU's part of an iteration; both prefill at half speed."""
    host = HostOverhead(base_s=0.01)
    spec = replace(SPEC, tables=LATENCY.compile(2, 512, host), host=host, load_s=0.0, disk_s=0.0)
    specs = [session(0, (0,), "a", range(1)), session(1, (0,), "b", range(1, 2))]
    script = Script(specs, sessions_ended(0, 1))
    busy = cluster(slots=2, engine_of=lambda expert, workers, slots: spec)
    SimulatedExecutor(busy, np.array([400, 400])).run(script)
    prefill_s = 0.018 + 5e-5 * 20
    decode_s = sum(0.0201 + 1e-7 * (20 + g) for g in range(1, 400))
    part = 1 - 0.01 / (decode_s / 399)
    took = [u.end_s - u.ready_s for u in usages(script)]
    assert took == pytest.approx([2 * prefill_s + (1 + part**2) * decode_s] * 2, rel=2e-3)


def test_an_engine_that_waits_for_calls_takes_nothing_of_the_gpu() -> None:
    alone = Script([session(0, (0,), "a", range(1))], sessions_ended(0))
    SimulatedExecutor(cluster(), np.array([100])).run(alone)
    waiting = replace(session(1, (0,), "b", range(0)), open=True)
    beside = Script([session(0, (0,), "a", range(1)), waiting], sessions_ended(0))
    SimulatedExecutor(cluster(slots=2), np.array([100]), reactive=True).run(beside)
    assert usages(beside)[0].end_s == pytest.approx(usages(alone)[0].end_s)


def test_the_rest_runs_at_full_speed_once_alone() -> None:
    specs = [session(0, (0,), "a", range(1)), session(1, (0,), "b", range(1, 2))]
    script = Script(specs, sessions_ended(0, 1))
    SimulatedExecutor(cluster(slots=2, engine_of=at_once), np.array([50, 100])).run(script)
    short, long = usages(script)
    work = {n: 0.008 + 5e-5 * 20 + sum(0.0101 + 1e-7 * (20 + g) for g in range(1, n)) for n in (50, 100)}
    assert short.end_s == pytest.approx(2 * work[50])
    assert long.end_s == pytest.approx(work[50] + work[100])


def test_a_call_that_cannot_fit_is_refused_before_anything_loads() -> None:
    script = Script([session(0, (0,), "a", range(1))], sessions_ended(0))
    with pytest.raises(InfeasibleError, match=r"a on worker \(0,\): a call needs 70019 tokens .* has 64000"):
        SimulatedExecutor(cluster(), np.array([70_000])).run(script)
    assert script.events == []


def test_work_left_and_no_worker_is_an_error() -> None:
    failing = cluster(failures={0: [Failure(12.0, None)]})
    script = Script([session(0, (0,), "a", range(1))], sessions_ended(0))
    with pytest.raises(
        MosaicsimError, match=r"calls are left at 12\.0 s and too few workers: of 2, 1 are lost"
    ):
        SimulatedExecutor(failing, np.array([10_000])).run(script)
