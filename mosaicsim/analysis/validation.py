"""The simulator held against real runs of the same scenario, in three ways.

``replay``: the recorded sessions with their calls, order, workers and lengths: what is left is the engine
model and the costs. ``plan``: the scheduler plans blind, as in the real run, and real lengths are replayed:
the simulator's prediction of a schedule. ``forecast``: lengths and answers drawn from calibration alone: what
could be said before anything ran. Engines have the settings that the real ones resolved; step and load times
are the profile's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from mosaicsim.analysis.comparison import (
    STAGE_FIGURES,
    STAGES,
    call_errors,
    percent,
    same_worker_share,
    session_errors,
    stage_errors,
    waits_s,
)
from mosaicsim.analysis.metrics import busy_s, call_columns, gpu_time, timeline, worker_intervals
from mosaicsim.analysis.ranking import rank
from mosaicsim.analysis.recorded import Engines, Recorded, complete, engines_of, read_recorded
from mosaicsim.analysis.result import Run
from mosaicsim.analysis.study import Replicate, any_fitted
from mosaicsim.errors import ScenarioError, TraceError, nearest
from mosaicsim.executors.fleet import Fleet
from mosaicsim.executors.simulated import SimulatedExecutor
from mosaicsim.policies import Policy, PolicyKind
from mosaicsim.runtime.replay import Replay, replayed_tokens
from mosaicsim.scenario import FailureSection, Scenario
from mosaicsim.streams import Streams
from mosaicsim.workload.asked import calibrated
from mosaicsim.workload.calls import Workload
from mosaicsim.workload.forecast import Forecast
from mosaicsim.workload.trace import Trace, read_trace

DRAWS = 10
"""Forecasts a run is the mean of."""

MODES = {
    "replay": "simulated: the recorded sessions, calls, order and workers, recorded lengths",
    "plan": "simulated: planned blind by the scheduler, recorded lengths",
    "forecast": "simulated: planned blind by the scheduler, lengths and answers drawn from calibration",
}

Key = tuple[str, str, int]
"""Scheduler, gate, replicate."""


@dataclass(frozen=True)
class Validation:
    """``figures`` is the content of validation.json; ``pairs`` the first repeat's runs, real and replayed."""

    figures: dict[str, Any]
    pairs: tuple[tuple[Run, Run], ...]
    workloads: tuple[Workload, ...]
    workers: tuple[str, ...]
    notes: tuple[str, ...]


def validate(scenario: Scenario, folders: Sequence[Path], *, draws: int = DRAWS) -> Validation:
    """Compare result folders of ``mosaicsim execute``, each a repeat, with their simulation.

    Raises UserInputError for a folder that holds another study, ScenarioError and TraceError for what the
    simulation lacks.
    """
    read = [read_recorded(folder, repeat) for repeat, folder in enumerate(folders)]
    recorded = [run for _, runs in read for run in runs]
    for folder, (result, runs) in zip(folders, read, strict=True):
        _require_same(scenario, result.scenario, runs, folder)
    bench = Bench(scenario, recorded)
    compared = [bench.compare(run) for run in recorded]
    rows = [row for row, _ in compared]
    groups = [bench.group(key, rows, draws) for key in dict.fromkeys(run.key for run in recorded)]
    pairs = [(run.run, again) for run, (_, again) in zip(recorded, compared, strict=True) if run.repeat == 0]
    figures = {
        "scenario": scenario.name,
        "repeats": len(folders),
        "forecast_draws": draws,
        "modes": MODES,
        "engines": bench.engines,
        "summary": _summary(groups),
        "groups": groups,
        "rankings": _rankings(groups),
        "runs": rows,
    }
    workloads = tuple(bench.workloads[number] for number in sorted(bench.workloads))
    return Validation(figures, tuple(pairs), workloads, bench.fleet.worker_names, tuple(bench.notes))


class Bench:
    """What the comparisons share: the fleet as the real engines were, the calibration, and the real runs."""

    def __init__(self, scenario: Scenario, recorded: Sequence[Recorded]) -> None:
        self.scenario = scenario.model_copy(update={"failures": FailureSection()})
        self.engines: Engines = engines_of(recorded)
        self.fleet = Fleet(self.scenario, self.engines)
        self.notes: list[str] = []
        self._recorded = list(recorded)
        self._trace = _calibration(scenario)
        self._schedulers = _by_label(scenario, PolicyKind.SCHEDULER)
        self._gates = _by_label(scenario, PolicyKind.GATE)
        self.workloads: dict[int, Workload] = {}
        for run in recorded:
            self.workloads.setdefault(run.run.replicate, self._calibrated(run.workload, run.run.replicate))
        # the real schedulers planned before any engine had settled its settings
        planner = Fleet(self.scenario)
        self._base = {
            number: Replicate(planner, workload, self._streams(number), number)
            for number, workload in self.workloads.items()
        }

    def compare(self, recorded: Recorded) -> tuple[dict[str, Any], Run]:
        """A real run beside its replay and its plan, and the replay itself."""
        real, again = recorded.run, self.replay(recorded)
        planned, unknown = self.plan(recorded)
        notes = list(recorded.notes)
        if unknown:
            notes.append(f"plan: {unknown} cancelled calls never finished: taken as long as they had come to")
        same = same_worker_share(real, planned)
        if same < 1:
            notes.append(
                f"plan: {1 - same:.0%} of the expert calls go to another worker than in the real run, "
                "which was planned with other costs or replanned"
            )
        row = {
            **dict(zip(("scheduler", "gate", "replicate"), recorded.key, strict=True)),
            "repeat": recorded.repeat,
            "notes": notes,
            "wait_between_sessions_s": _mean(waits_s(real).tolist()),
            "replay": {
                "stages": stage_errors(real, again),
                "calls": call_errors(real, again),
                "sessions": session_errors(real, again),
            },
            "plan": {
                "stages": stage_errors(real, planned),
                "calls": call_errors(real, planned),
                "same_worker_share": same,
            },
        }
        return row, again

    def replay(self, recorded: Recorded) -> Run:
        """The recorded sessions, carried out by the simulated executor."""
        streams = self._streams(recorded.run.replicate)
        handler = Replay(recorded.log, recorded.workload, self.fleet.pool.at_once)
        executor = SimulatedExecutor(self.fleet.simulated(streams), replayed_tokens(recorded.log))
        makespan = executor.run(handler)
        return describe_replay(handler, recorded, makespan, len(self.fleet.worker_names))

    def plan(self, recorded: Recorded) -> tuple[Run, int]:
        """The scheduler's own run in simulation, with real lengths; and how many of these are not known."""
        workload, unknown = complete(recorded, self._recorded)
        scheduler, gate, number = recorded.key
        replicate = self._base[number].with_outcomes(self._with_calibration(workload, number), self.fleet)
        return replicate.run(self._schedulers[scheduler], self._gates[gate]), unknown

    def forecast(self, key: Key, draws: int) -> list[Run]:
        """Runs with lengths and answers drawn from calibration; none where it has too little."""
        scheduler, gate, number = key
        try:
            forecast = Forecast(self.workloads[number], self._trace)
        except TraceError as error:
            self._note(f"no forecast: {error}")
            return []
        streams, runs = self._streams(number), []
        for draw in range(draws):
            workload = self._with_calibration(forecast.draw(streams(f"forecast.{draw}")), number)
            replicate = self._base[number].with_outcomes(workload, self.fleet)
            runs.append(replicate.run(self._schedulers[scheduler], self._gates[gate]))
        return runs

    def group(self, key: Key, rows: Sequence[dict[str, Any]], draws: int) -> dict[str, Any]:
        """All repeats of a run: what they differ by, and the errors, means over them."""
        runs = [run for run in self._recorded if run.key == key]
        own = [row for row in rows if (row["scheduler"], row["gate"], row["replicate"]) == key]
        forecasts = self.forecast(key, draws)
        return {
            **dict(zip(("scheduler", "gate", "replicate"), key, strict=True)),
            "stages": {name: _stage(name, runs, own, forecasts) for name in STAGE_FIGURES},
            "calls": _mean_calls([row["replay"]["calls"] for row in own]),
            "sessions": _mean_errors([row["replay"]["sessions"]["errors"] for row in own]),
            # errors of one repeat against another: what no simulation can be asked to beat
            "calls_between_repeats": _mean_calls(
                [call_errors(a.run, b.run) for a, b in combinations(runs, 2)]
            ),
        }

    def _calibrated(self, workload: Workload, number: int) -> Workload:
        return calibrated(
            workload,
            self._trace,
            router=self.scenario.policies(PolicyKind.ROUTER)[0].create(),
            rng_streams=self._streams(number),
            for_gates=any_fitted(self.scenario),
        )

    def _with_calibration(self, workload: Workload, number: int) -> Workload:
        known = self.workloads[number]
        return replace(
            workload,
            calls=known.calls,
            calibration=known.calibration,
            gate_calibration=known.gate_calibration,
        )

    def _streams(self, replicate: int) -> Streams:
        return Streams(self.scenario.seed, replicate)

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def describe_replay(handler: Replay, recorded: Recorded, makespan: float, n_workers: int) -> Run:
    """The figures of a replay that a comparison and a Gantt chart need."""
    log, workload = handler.log, recorded.workload
    stage_s = min(log.stage_end_s("expert"), makespan)
    busy = busy_s(worker_intervals(log, STAGES[0], n_workers))
    by_state = gpu_time(log, n_workers, makespan)
    scheduler, gate, replicate = recorded.key
    return Run(
        scheduler=scheduler,
        gate=gate,
        replicate=replicate,
        sees_lengths=False,
        metrics={
            "expert_stage_s": stage_s,
            "aggregator_stage_s": makespan - stage_s,
            "makespan_s": makespan,
            "idle_fraction": 1 - busy / (n_workers * stage_s) if stage_s else 0.0,
        },
        calls=call_columns(log, workload),
        timeline=timeline(log, workload.experts),
        gpu_time=by_state,
        plan_info={},
    )


def _stage(
    name: str, runs: Sequence[Recorded], rows: Sequence[dict[str, Any]], forecasts: Sequence[Run]
) -> dict[str, Any]:
    """A stage's seconds: real ones and their spread, each mode's mean and its error against the real mean."""
    real = [float(run.run.metrics[name]) for run in runs]
    mean = sum(real) / len(real)
    simulated = {
        mode: [row[mode]["stages"][name]["simulated"] for row in rows] for mode in ("replay", "plan")
    }
    simulated["forecast"] = [float(run.metrics[name]) for run in forecasts]
    spread = max(real) - min(real) if len(real) > 1 else None
    return {
        "real_s": real,
        "real_mean_s": mean,
        "real_spread_s": spread,
        "real_spread_pct": None if spread is None or not mean else 100 * spread / mean,
    } | {mode: _of_mode(values, mean) for mode, values in simulated.items()}


def _of_mode(values: Sequence[float], real: float) -> dict[str, Any]:
    mean = _mean(values)
    return {"simulated_s": list(values), "mean_s": mean, "error_pct": mean and percent(mean, real)}


def _summary(groups: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The worst of all runs: makespan errors (absolute) by mode, and the replay's per-call errors."""
    found: dict[str, float | None] = {}
    for mode in MODES:
        errors = [group["stages"]["makespan_s"][mode]["error_pct"] for group in groups]
        found[f"{mode}_makespan_error_pct"] = _worst([abs(e) for e in errors if e is not None])
    for figure in ("ttft", "tpot", "e2e"):
        errors = [group["calls"]["all"][figure]["mape_pct"] for group in groups]
        found[f"replay_{figure}_mape_pct"] = _worst([e for e in errors if e is not None])
    return found


def _rankings(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The order of the schedulers, for each gate and replicate, as planned and as forecast."""
    found = []
    for gate, replicate in dict.fromkeys((g["gate"], g["replicate"]) for g in groups):
        own = [g for g in groups if (g["gate"], g["replicate"]) == (gate, replicate)]
        makespans = {g["scheduler"]: g["stages"]["makespan_s"] for g in own}
        for mode in ("plan", "forecast"):
            simulated = {name: stage[mode]["mean_s"] for name, stage in makespans.items()}
            if len(own) > 1 and None not in simulated.values():
                real = {name: stage["real_s"] for name, stage in makespans.items()}
                found.append({"gate": gate, "replicate": replicate, "mode": mode, **rank(real, simulated)})
    return found


def _mean_calls(rows: Sequence[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Mean over repeats of each error of each figure, stage by stage."""
    stages = {stage for row in rows for stage in row}
    return {
        stage: _mean_errors([row[stage] for row in rows if stage in row])
        for stage in ("all", *STAGES)
        if stage in stages
    }


def _mean_errors(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        figure: {name: _mean([row[figure][name] for row in rows]) for name in rows[0][figure]}
        for figure in (rows[0] if rows else ())
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of what is known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _worst(values: Sequence[float]) -> float | None:
    return max(values, default=None)


def _calibration(scenario: Scenario) -> Trace:
    path = scenario.workload.calibration.trace
    if path is None:
        raise ScenarioError("workload.calibration: a validation needs {trace: FILE}, as the real run did")
    return read_trace(path)


def _by_label(scenario: Scenario, kind: PolicyKind) -> dict[str, Policy]:
    return {policy.label: policy for policy in scenario.policies(kind)}


def _require_same(scenario: Scenario, ran: dict[str, Any], runs: Sequence[Recorded], folder: Path) -> None:
    """Raise ScenarioError for a result of another study.

    Costs may have been measured after it, and an engine's settings come from the engine itself, so these
    sections may differ.
    """
    ours = scenario.model_dump(mode="json")
    for section in ("cluster", "seed"):
        if ours[section] != ran[section]:
            raise ScenarioError(f"{section}: {folder} was run with another: {ran[section]}")
    for name in ("k", "questions"):
        if ours["workload"][name] != ran["workload"][name]:
            raise ScenarioError(f"workload.{name}: {folder} was run with {ran['workload'][name]}")
    for kind, labels in (
        (PolicyKind.SCHEDULER, [run.run.scheduler for run in runs]),
        (PolicyKind.GATE, [run.run.gate for run in runs]),
    ):
        known = _by_label(scenario, kind)
        for label in labels:
            if label not in known:
                raise ScenarioError(
                    f"{kind.value}s: {folder} has runs of '{label}'{nearest(label, known)}; "
                    f"the scenario has {', '.join(known)}"
                )
