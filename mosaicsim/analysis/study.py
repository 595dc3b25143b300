"""Run a scenario in simulation: every scheduler under every gate, for each replicate."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from mosaicsim.aggregation.base import ASK, FittedGate, Gate, fit_gate
from mosaicsim.analysis.bound import bound_of_run
from mosaicsim.analysis.journal import Journal
from mosaicsim.analysis.metrics import (
    agreement,
    busy_s,
    call_columns,
    down_s,
    gpu_time,
    paired_delta,
    popularity,
    question_correct,
    timeline,
    worker_intervals,
)
from mosaicsim.analysis.result import BASELINE, Result, Run
from mosaicsim.errors import InfeasibleError, ProfileError, ScenarioError, nearest
from mosaicsim.executors.fleet import Fleet
from mosaicsim.executors.profiling import profile_sessions
from mosaicsim.executors.rehearsal import Rehearsal
from mosaicsim.executors.simulated import SessionCache, SimulatedExecutor
from mosaicsim.policies import Policy, PolicyKind
from mosaicsim.runtime.orchestrator import AGGREGATOR, Orchestrator
from mosaicsim.runtime.runlog import CANCELLED, FAILED, FINISHED
from mosaicsim.runtime.steered import SteeredRun, orchestrate
from mosaicsim.scenario import Scenario, resolved
from mosaicsim.schedulers.base import (
    Instances,
    OracleProblem,
    Plan,
    Problem,
    Scheduler,
    SessionCost,
    Sharing,
    Steering,
    WorkerView,
    check_plan,
)
from mosaicsim.schedulers.registry import create
from mosaicsim.streams import Streams
from mosaicsim.workload.ballots import GateCalibration
from mosaicsim.workload.build import build_workload
from mosaicsim.workload.calls import NO_ANSWER, Bools, Floats, Ints, Workload
from mosaicsim.workload.cost_error import with_cost_error
from mosaicsim.workload.trace import Trace, read_trace

UNGATED = "always"
"""The gate that end-to-end speedups are measured without."""

Progress = Callable[[int, int, str], None]
"""Told (runs done, runs in all, what is next)."""

Costs = dict[tuple[int, str], SessionCost]
"""Session costs by expert and device."""


def simulate(
    scenario: Scenario,
    progress: Progress = lambda done, total, what: None,
    journal: Journal | None = None,
) -> Result:
    """Simulate ``scenario`` and return every run and the summary; runs the ``journal`` has are not repeated.

    Raises MosaicsimError (and its subclasses) for anything the scenario asks for that cannot be done.
    """
    began = time.perf_counter()
    fleet = Fleet(scenario)
    trace = read_trace(scenario.workload.trace)
    schedulers, gates = scenario.policies(PolicyKind.SCHEDULER), scenario.policies(PolicyKind.GATE)
    total = scenario.replicates * len(schedulers) * len(gates)
    workloads: list[Workload] = []
    runs: list[Run] = []
    for replicate in range(scenario.replicates):
        progress(len(runs), total, f"replicate {replicate}: routing and profiling")
        replicated = _replicate(scenario, fleet, trace, replicate)
        workloads.append(replicated.workload)
        for scheduler in schedulers:
            for gate in gates:
                progress(len(runs), total, f"replicate {replicate}: {scheduler.label}, {gate.label}")
                run = journal.find(len(runs)) if journal is not None else None
                if run is None:
                    run = replicated.run(scheduler, gate)
                    if journal is not None:
                        journal.keep(len(runs), run)
                runs.append(run)
    progress(total, total, "done")
    add_speedups(runs, baseline_label(schedulers), label_of(gates, UNGATED))
    return Result(
        scenario=resolved(scenario),
        summary=summarise(scenario, runs, workloads),
        workloads=tuple(workloads),
        workers=fleet.worker_names,
        runs=tuple(runs),
        wall={"simulate_s": time.perf_counter() - began},
    )


def check(scenario: Scenario) -> None:
    """Go as far as the plans of the first replicate and run nothing; raises what ``simulate`` would."""
    _replicate(scenario, Fleet(scenario), read_trace(scenario.workload.trace), 0)


def _replicate(scenario: Scenario, fleet: Fleet, trace: Trace, number: int) -> Replicate:
    """Route, profile and plan one replicate; a scheduler that has no plan stops the study here."""
    streams = Streams(scenario.seed, number)
    workload = build_workload(
        trace,
        k=scenario.workload.k,
        router=scenario.policies(PolicyKind.ROUTER)[0].create(),
        calibration=scenario.workload.calibration,
        skew=scenario.workload.length_skew,
        limit_questions=scenario.workload.questions,
        aggregator_calls=scenario.workload.aggregator_calls,
        rng_streams=streams,
        for_gates=any_fitted(scenario),
    )
    workload = with_cost_error(workload, scenario.workload.cost_error, streams("cost_error"))
    for name in scenario.experts:
        if name not in workload.experts:
            raise ScenarioError(
                f"experts.{name}: the trace has no such expert{nearest(name, workload.experts)}; "
                f"it has {', '.join(workload.experts)}"
            )
    replicate = Replicate(fleet, workload, streams, number)
    gate = scenario.policies(PolicyKind.GATE)[0]
    for i, scheduler in enumerate(scenario.policies(PolicyKind.SCHEDULER)):
        replicate.plan(scheduler, where=f"schedulers.{i}.{scheduler.name}", gate=gate)
    for gate in scenario.policies(PolicyKind.GATE):
        replicate.gate(gate)
    return replicate


def any_fitted(scenario: Scenario) -> bool:
    """Whether a gate of the scenario is to be fitted to calibration questions."""
    return any(isinstance(gate.create(), FittedGate) for gate in scenario.policies(PolicyKind.GATE))


class Replicate:
    """One routed workload on the fleet, and what its runs share."""

    def __init__(
        self,
        fleet: Fleet,
        workload: Workload,
        streams: Streams,
        replicate: int,
        engines: Fleet | None = None,
    ) -> None:
        """``engines`` is the fleet that runs are on, where it is not the one that schedulers are told of."""
        self._engines = engines or fleet
        self._fleet, self.workload, self._streams = fleet, workload, streams
        self._replicate = replicate
        self._sessions: SessionCache = {}
        self._bounds: dict[tuple[bytes, bool], float] = {}
        self._planned: dict[tuple[str, str], tuple[Scheduler, Plan]] = {}
        self._gates: dict[str, Gate] = {}
        self._profiled: dict[int, Costs] = {}
        self._aggregators: dict[tuple[int, str], tuple[Instances, ...]] = {}

    def run(self, scheduler: Policy, gate: Policy) -> Run:
        """One scheduler under one gate."""
        judge = self.gate(gate)
        policy, plan = self.planned(scheduler, gate)
        orchestrator = orchestrate(
            self.workload,
            self._fleet.pool,
            plan,
            policy,
            judge,
            self._problem_for(policy, gate),
            fallback=create("greedy", {}),
        )
        executor = SimulatedExecutor(
            self._engines.simulated(self._streams),
            np.concatenate([self.workload.outcomes.output_tokens, self.workload.aggregator.output_tokens]),
            np.concatenate([self.workload.outcomes.answer, np.full(self.workload.n_questions, NO_ANSWER)]),
            self._confidences(),
            reactive=judge.cancels or plan.course is not None,
            cache=self._sessions,
        )
        makespan = executor.run(orchestrator)
        finished = orchestrator.log.status[: len(self.workload.calls)] == FINISHED
        bound = self._bound(finished, orchestrator.plan)
        return self.describe(
            orchestrator, scheduler, gate, makespan, self.workload, self.workload.aggregator.correct, bound
        )

    def _confidences(self) -> Floats | None:
        known = self.workload.outcomes.confidence
        return None if known is None else np.append(known, np.full(self.workload.n_questions, np.nan))

    def plan(self, scheduler: Policy, where: str = "", gate: Policy | None = None) -> Plan:
        """The scheduler's plan for the whole run. Raises InfeasibleError that starts with ``where``."""
        return self.planned(scheduler, gate, where)[1]

    def planned(
        self, scheduler: Policy, gate: Policy | None = None, where: str = ""
    ) -> tuple[Scheduler, Plan]:
        """The scheduler and its plan; made once, for each gate where it steers and the gate is given."""
        policy = scheduler.create()
        key = scheduler.label, gate.label if gate is not None and isinstance(policy, Steering) else ""
        if key not in self._planned:
            calls = np.arange(len(self.workload.calls))
            try:
                self._planned[key] = policy, self.plan_of(policy, calls, gate)
            except InfeasibleError as error:
                raise InfeasibleError(f"{where}: {error}") from None
        return self._planned[key]

    def plan_of(self, policy: Scheduler, calls: Ints, gate: Policy | None) -> Plan:
        """A plan for some of the calls, checked; one that steers is told of the gate and the aggregator."""
        problem = replace(
            self._problem_for(policy, gate)(calls, self._fleet.pool.workers), rehearsal=self._rehearsal
        )
        if gate is not None and isinstance(policy, Steering):
            problem = replace(problem, gate=self.gate(gate), instances=self._instances(1, gate))
        plan = policy.plan(problem)
        check_plan(plan, problem, policy.name)
        return plan

    @cached_property
    def _rehearsal(self) -> Rehearsal | None:
        """Plays plans on calibration questions; None where they are not known as such."""
        calibration = self.workload.calibration
        if not len(calibration.lengths) or not len(calibration.aggregator_output_tokens):
            return None
        return Rehearsal(
            lambda: replace(self._fleet.simulated(self._streams), failures={}),
            self._fleet.pool,
            self.workload.experts,
            self.workload.categories,
            self.workload.calls,
            calibration,
            lambda scene: self._streams(f"rehearsal.{scene}"),
        )

    def _instances(self, slots: int, gate: Policy) -> tuple[Instances, ...]:
        """The ways to run the aggregator, with a sweep over its calls for each kind of device."""
        key = slots, gate.label
        if key not in self._aggregators:
            self._aggregators[key] = tuple(self._sweep_aggregator(slots, *self._asking_calls(gate)))
        return self._aggregators[key]

    def _asking_calls(self, gate: Policy) -> tuple[Ints, Ints]:
        """Output and prompt tokens of calibration calls of the aggregator, where known those that ask."""
        if self._rehearsal is not None:
            return self._rehearsal.asked(self.gate(gate))
        calibration = self.workload.calibration
        return calibration.aggregator_output_tokens, calibration.aggregator_prompt_tokens

    def _sweep_aggregator(self, slots: int, output: Ints, prompt: Ints) -> Iterator[Instances]:
        for tp, groups in self._fleet.aggregator_groups():
            sharing = slots if tp == 1 else 1
            costs: dict[str, SessionCost] = {}
            devices = [self._fleet.cluster.workers[group[0]].device for group in groups]
            for group, device in zip(groups, devices, strict=True):
                if device not in costs:
                    costs[device] = profile_sessions(
                        self._fleet.engine_of(AGGREGATOR, group, sharing),
                        output,
                        prompt,
                        self.workload.n_questions,
                        self._fleet.profile_of(AGGREGATOR, device, tp).reasoning,
                        self._streams(f"profiling.{AGGREGATOR}.{tp}.{device}"),
                        slots=sharing,
                    )
            yield Instances(tp, groups, tuple(costs[device] for device in devices), float(prompt.mean()))

    def gate(self, gate: Policy) -> Gate:
        """The gate, fitted to the calibration questions if it is such a one; once, whatever the scheduler."""
        if gate.label not in self._gates:
            self._gates[gate.label] = fit_gate(gate.create(), self._gate_calibration)
        return self._gates[gate.label]

    def _gate_calibration(self) -> GateCalibration:
        assert self.workload.gate_calibration is not None  # it is built where a gate is to be fitted
        return self.workload.gate_calibration

    def with_outcomes(self, workload: Workload, engines: Fleet) -> Replicate:
        """The same calls with other outcomes, run on other engines than schedulers are told of.

        What blind schedulers are shown still holds, and so do fitted gates.
        """
        other = Replicate(self._fleet, workload, self._streams, self._replicate, engines)
        other._gates = self._gates
        other._profiled = self._profiled
        return other

    def _costs(self, slots: int) -> Costs:
        """The profiling sweep of each expert on each kind of device, over its calibration calls."""
        if slots not in self._profiled:
            calibration = self.workload.calibration
            self._profiled[slots] = self._sweep(
                lambda m: (calibration.output_tokens[m], calibration.prompt_tokens[m]),
                slots,
                longest_first=False,
            )
        return self._profiled[slots]

    @cached_property
    def _true(self) -> Costs:
        """The same over the very calls to come, longest first: for schedulers that are shown lengths."""
        calls, lengths = self.workload.calls, self.workload.outcomes.output_tokens

        def own_calls(m: int) -> tuple[Ints, Ints]:
            return lengths[calls.expert == m], calls.prompt_tokens[calls.expert == m]

        return self._sweep(own_calls, self._fleet.pool.slots, longest_first=True)

    def _sweep(
        self, calls_of: Callable[[int], tuple[Ints, Ints]], slots: int, *, longest_first: bool
    ) -> Costs:
        costs = {}
        most = self.workload.calls.counts(len(self.workload.experts))
        for m, name in enumerate(self.workload.experts):
            for device in self._fleet.cluster.devices:
                worker = next(w.index for w in self._fleet.pool.workers if w.device == device)
                known = self._costs(slots).get((m, device)) if longest_first and not most[m] else None
                try:
                    costs[m, device] = known or profile_sessions(
                        self._fleet.engine_of(name, (worker,), slots),
                        *calls_of(m),
                        int(most[m]),
                        self._fleet.profile_of(name, device).reasoning,
                        self._streams(f"profiling.{name}.{device}"),
                        longest_first=longest_first,
                        slots=slots,
                    )
                except InfeasibleError as error:
                    raise InfeasibleError(f"experts.{name} on {device}: {error}") from None
        return costs

    def _problem_for(
        self, scheduler: Scheduler, gate: Policy | None
    ) -> Callable[[Ints, tuple[WorkerView, ...]], Problem]:
        """What the scheduler is shown; only one that says so is shown lengths."""
        workload = self.workload

        def problem_of(call_ids: Ints, workers: tuple[WorkerView, ...]) -> Problem:
            def on_these(known: Costs) -> tuple[tuple[SessionCost, ...], ...]:
                experts = range(len(workload.experts))
                return tuple(tuple(known[m, w.device] for w in workers) for m in experts)

            slots = self._fleet.pool.slots
            whole = slots > 1 and isinstance(scheduler, Steering) and gate is not None
            costs = on_these(self._true if scheduler.sees_lengths else self._costs(1 if whole else slots))
            shown = (workload.experts, workload.calls, call_ids, workers, costs, workload.calibration)
            if scheduler.sees_lengths:
                return OracleProblem(*shown, output_tokens=workload.outcomes.output_tokens)
            if gate is None or not whole:
                return Problem(*shown)
            ways = [Sharing(1, on_these(self._costs(1)), self._instances(1, gate))]
            with suppress(ProfileError, InfeasibleError):  # of less memory some model may need more
                ways.append(Sharing(slots, on_these(self._costs(slots)), self._instances(slots, gate)))
            return replace(Problem(*shown), costs=ways[-1].costs, sharings=tuple(ways))

        return problem_of

    def _bound(self, finished: Bools, plan: Plan) -> float:
        """The lower bound for these calls; runs that finish the same calls share it."""
        stay = plan.course is None or not plan.course.migrate
        key = finished.tobytes(), stay
        if key not in self._bounds:
            self._bounds[key] = bound_of_run(self._engines, self.workload, finished, calls_stay=stay)
        return self._bounds[key]

    def describe(
        self,
        orchestrator: Orchestrator | SteeredRun,
        scheduler: Policy,
        gate: Policy,
        makespan: float,
        workload: Workload,
        aggregated: Bools | None,
        bound: float | None,
    ) -> Run:
        """A run's figures. ``workload`` holds what came of its calls.

        ``aggregated``, shape (questions,), says where the aggregator is right, and ``bound`` what no run can
        beat; None where they are not known.
        """
        policy, judge = scheduler.create(), self.gate(gate)
        log, plan = orchestrator.log, orchestrator.plan
        n_workers = len(self._fleet.pool.workers)
        stage_s = orchestrator.expert_stage_s
        correct = question_correct(workload, orchestrator.accepted, log.status)
        delta, interval = (None, None) if aggregated is None else paired_delta(correct, aggregated)
        if (orchestrator.accepted == ASK).all():
            delta, interval = 0.0, (0.0, 0.0)  # compared with itself
        busy = busy_s(worker_intervals(log, "expert", n_workers))
        by_state = gpu_time(log, n_workers, makespan)
        metrics: dict[str, Any] = {
            "scheduler": scheduler.label,
            "gate": gate.label,
            "replicate": self._replicate,
            "sees_lengths": policy.sees_lengths,
            "expert_stage_s": stage_s,
            "aggregator_stage_s": makespan - stage_s,
            "makespan_s": makespan,
            "idle_fraction": 1 - busy / (n_workers * stage_s - down_s(log, stage_s)),
            "lower_bound_s": bound,
            "bound_distance": bound and stage_s / bound - 1,
            "predicted_expert_stage_s": plan.predicted_s,
            # a plan for all calls says nothing of a run that cancels some
            "prediction_error": None if judge.cancels else plan.predicted_s / stage_s - 1,
            "skip_rate": float((orchestrator.accepted != ASK).mean()),
            "accuracy": float(correct.mean()),
            "delta_pp": delta,
            "delta_pp_ci95": interval and list(interval),
            "calls_finished": int((log.status == FINISHED).sum()),
            "calls_cancelled": int((log.status == CANCELLED).sum()),
            "calls_failed": int((log.status == FAILED).sum()),
            "output_tokens": int(log.output_tokens.sum()),
            "preemptions": int(log.preemptions.sum()),
            "gpu_time": by_state,
            "replanned": log.notes,
        }
        return Run(
            scheduler=scheduler.label,
            gate=gate.label,
            replicate=self._replicate,
            sees_lengths=policy.sees_lengths,
            metrics=metrics,
            calls=call_columns(log, workload),
            timeline=timeline(log, workload.experts),
            gpu_time=by_state,
            plan_info=plan.info,
            gate_info=judge.info if isinstance(judge, FittedGate) else {},
        )


def label_of(policies: Sequence[Policy], name: str) -> str | None:
    """What the first policy of that name is called in this study."""
    return next((p.label for p in policies if p.name == name), None)


def baseline_label(schedulers: Sequence[Policy]) -> str | None:
    """What the scheduler that speedups are measured against is called in this study."""
    return label_of(schedulers, BASELINE)


def add_speedups(runs: Sequence[Run], scheduler: str | None, ungated_gate: str | None) -> None:
    """Ratios over the baseline of the same replicate: expert stage, same gate, and without any gate."""
    baseline = {(r.replicate, r.gate): r.metrics for r in runs if r.scheduler == scheduler}
    for run in runs:
        same = baseline.get((run.replicate, run.gate))
        ungated = baseline.get((run.replicate, ungated_gate or ""))
        run.metrics["expert_stage_speedup"] = same and same["expert_stage_s"] / run.metrics["expert_stage_s"]
        run.metrics["speedup"] = same and same["makespan_s"] / run.metrics["makespan_s"]
        run.metrics["end_to_end_speedup"] = ungated and ungated["makespan_s"] / run.metrics["makespan_s"]


def summarise(scenario: Scenario, runs: Sequence[Run], workloads: Sequence[Workload]) -> dict[str, Any]:
    """Content of summary.json: figures of the runs and nothing that depends on the machine or the hour."""
    labels: dict[str, str] = {}
    for workload in workloads:
        labels.update(workload.labels)
    return {
        "scenario": scenario.name,
        "seed": scenario.seed,
        "replicates": scenario.replicates,
        "labels": labels,
        "workloads": [
            {
                "questions": w.n_questions,
                "calls": len(w.calls),
                "popularity": popularity(w),
                "agreement": agreement(w),
            }
            for w in workloads
        ],
        "runs": [run.metrics for run in runs],
        "plans": [
            {"scheduler": r.scheduler, "replicate": r.replicate, **r.plan_info}
            for r in runs
            if r.gate == runs[0].gate
        ],
        "means": _means(runs),
    } | _fitted(runs)


def _fitted(runs: Sequence[Run]) -> dict[str, Any]:
    """What each fitted gate chose in each replicate; nothing where the scenario has none."""
    rows = [
        {"gate": r.gate, "replicate": r.replicate, **r.gate_info}
        for r in runs
        if r.gate_info and r.scheduler == runs[0].scheduler
    ]
    return {"gates": rows} if rows else {}


def _means(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each scheduler and gate, the mean of every figure over the replicates."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        groups[run.scheduler, run.gate].append(run.metrics)
    return [
        {"scheduler": scheduler, "gate": gate, "replicates": len(rows)}
        | {
            name: float(np.mean([row[name] for row in rows]))
            for name, value in rows[0].items()
            if isinstance(value, (int, float)) and name not in ("replicate", "sees_lengths")
        }
        for (scheduler, gate), rows in groups.items()
    ]
