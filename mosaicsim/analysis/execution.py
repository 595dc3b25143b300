"""Run a scenario for real: the simulator's own schedulers, gates and orchestrator on vLLM engines."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mosaicsim import __version__
from mosaicsim.aggregation.base import ASK
from mosaicsim.analysis.result import Result, Run
from mosaicsim.analysis.study import (
    UNGATED,
    Progress,
    Replicate,
    add_speedups,
    any_fitted,
    baseline_label,
    label_of,
    summarise,
)
from mosaicsim.errors import MosaicsimError, OutputError, ScenarioError
from mosaicsim.execution import ExecutedModel, ExecutionSection
from mosaicsim.executors.crew import Crew, Place
from mosaicsim.executors.dialogue import Dialogue, Speaker
from mosaicsim.executors.fleet import Fleet
from mosaicsim.executors.ledger import Ledger
from mosaicsim.executors.link import Connect
from mosaicsim.executors.machine import Machine, free_memory_bytes, local
from mosaicsim.executors.messages import CallResult, EngineArguments, WarmUp
from mosaicsim.executors.ray_cluster import RayCluster, require_ray
from mosaicsim.executors.vllm_executor import Patience, VllmExecutor
from mosaicsim.installation import unknown_engine_argument
from mosaicsim.policies import Policy, PolicyKind
from mosaicsim.report.outputs import OutputParts
from mosaicsim.runtime.events import SessionSpec
from mosaicsim.runtime.journal import Journal
from mosaicsim.runtime.orchestrator import AGGREGATOR, Orchestrator
from mosaicsim.runtime.runlog import PENDING, RunLog
from mosaicsim.runtime.steered import SteeredRun, orchestrate
from mosaicsim.scenario import Scenario, resolved
from mosaicsim.schedulers.base import Plan, Scheduler
from mosaicsim.schedulers.registry import create
from mosaicsim.streams import Streams
from mosaicsim.workload.asked import ask, require_experts
from mosaicsim.workload.calls import Bools
from mosaicsim.workload.chat import Chat, require_model
from mosaicsim.workload.prompts import AggregatorTemplate, PromptTemplate
from mosaicsim.workload.questions import QuestionSet, read_questions
from mosaicsim.workload.trace import Trace, read_trace

STUDY = "study.json"
LEAST_FREE_BYTES = 100_000_000
RUNS, WORKERS, OUTPUTS, JOURNAL = "runs", "workers", "outputs", "journal.jsonl"


@dataclass(frozen=True)
class Execution:
    """What a real study came to: the Result, as of a simulation, and what only a real run has.

    ``engines`` holds the settings that each expert's engine chose itself; ``answers`` a row a question and
    run; ``given_up`` what became of calls that were set aside.
    """

    result: Result
    engines: dict[str, dict[str, object]]
    answers: list[dict[str, Any]]
    given_up: list[str]
    notes: list[str]


class Executed:
    """A scenario made ready to run for real: questions, models' tokenizers, calibration, engines' arguments.

    Raises UserInputError (and its subclasses) for whatever can be found wrong before a model is loaded.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.section = _section(scenario)
        self.notes: list[str] = []
        self.wall: defaultdict[str, float] = defaultdict(float)
        self.fleet = Fleet(scenario)
        self.machine = Machine.here()
        self.device = self._device()
        self._require_machine()
        self._require_engine_arguments()
        self.questions = read_questions(self.section.questions)
        if self.questions.grading_note:
            self.notes.append(self.questions.grading_note)
        self.experts = tuple(name for name in self.section.models if name != AGGREGATOR)
        for name, model in self.section.models.items():
            with _at(f"execution.models.{name}.path"):
                require_model(model.path)
        templates = {name: self._template(name, PromptTemplate) for name in self.experts}
        template = self._template(AGGREGATOR, AggregatorTemplate)
        self._require_no_oracle()
        self.speakers = {name: self._speaker(name, templates[name]) for name in self.experts}
        self.aggregator = self._speaker(AGGREGATOR, template)
        _require_vllm()

    @property
    def n_workers(self) -> int:
        """Workers of the cluster."""
        return len(self.fleet.pool.workers)

    def connect(self) -> Connect:
        """How workers are started."""
        if self.section.executor == "ray":
            hosts = [worker.host for worker in self.fleet.cluster.workers]
            return RayCluster(self.section, self.device, hosts)
        return local(self.machine, self.device, self.section)

    def engine_of(self, expert: str, workers: tuple[int, ...], slots: int = 1) -> EngineArguments:
        """vLLM's arguments for a model: the scenario's engine section, the execution's, the model's own.

        It gets one of ``slots`` parts of the memory that they say.
        """
        model, engine = self.section.models[expert], self.scenario.engine
        stated = {
            "max_num_seqs": engine.max_num_seqs,
            "max_num_batched_tokens": engine.batched_tokens,
            "block_size": engine.block_size if "block_size" in engine.model_fields_set else None,
            "num_gpu_blocks_override": engine.num_gpu_blocks,
            "enable_prefix_caching": engine.prefix_caching,
            "gpu_memory_utilization": engine.gpu_memory_utilization,
        }
        given = {
            "model": model.path,
            "tensor_parallel_size": len(workers),
            "trust_remote_code": model.trust_remote_code,
            "seed": self.scenario.seed,
            "enable_sleep_mode": self.keep_asleep,
            **{name: value for name, value in stated.items() if value is not None},
            **self.section.engine,
            **model.engine,
        }
        if slots > 1:
            given["gpu_memory_utilization"] = float(given["gpu_memory_utilization"]) / slots
            if given.get("kv_cache_memory_bytes") is not None:
                given["kv_cache_memory_bytes"] = int(given["kv_cache_memory_bytes"]) // slots
        return EngineArguments(expert, given)

    @property
    def keep_asleep(self) -> bool:
        """Whether engines sleep rather than stop; the CPU has no such thing."""
        return self.scenario.cluster.session_change == "sleep" and self.device == "cuda"

    def cores(self) -> list[tuple[int, ...]]:
        """Sets of cores to pin sessions to; none on GPUs, and none where the cores are other machines'."""
        if self.device == "cuda" or self.section.executor == "ray":
            return []
        return self.machine.core_sets(self.section.cores_per_worker)

    def _warm_up(self, place: Place, slots: int) -> WarmUp:
        """The first expert's engine; on a CPU, workers that start together take different cores."""
        cores, worker = self.cores(), place.workers[0]
        engine = self.engine_of(self.experts[0], place.workers, slots)
        return WarmUp(engine, cores[worker % len(cores)] if cores else None)

    def carry_out(self, orchestrator: Orchestrator | SteeredRun, crew: Crew, ledger: Ledger) -> float:
        """Run it to its end on the crew's engines; returns the last second."""
        section = self.section
        executor = VllmExecutor(
            crew,
            self.n_workers,
            self.engine_of,
            ledger,
            cores=self.cores(),
            keep_asleep=self.keep_asleep,
            patience=Patience(
                start_s=section.start_timeout_s,
                silence_s=section.silence_timeout_s,
                restarts=section.restarts,
            ),
            begin_s=orchestrator.log.end_s,
        )
        if (orchestrator.log.status == PENDING).any():
            course = orchestrator.plan.course
            slots = course.slots if course is not None else self.fleet.pool.slots
            crew.warm(
                (Place((w,), slot) for slot in range(slots) for w in range(self.n_workers)),
                section.start_timeout_s,
                (lambda place: self._warm_up(place, slots)) if section.warm_up else None,
                self.fleet.pool.at_once or self.n_workers,
            )
        cpu_s = time.process_time()
        end_s = executor.run(orchestrator)
        for name, seconds in (
            ("coordinator_cpu_s", time.process_time() - cpu_s),
            ("worker_steps_s", executor.steps_s),
            ("worker_between_steps_s", executor.between_s),
        ):
            self.wall[name] += seconds
        crew.unload()
        return end_s

    def asked(self, streams: Streams) -> QuestionSet:
        """The questions of a replicate: all, or so many of them drawn at random."""
        limit, total = self.scenario.workload.questions, len(self.questions)
        if limit is None:
            return self.questions
        if limit > total:
            raise ScenarioError(f"workload.questions: {limit:,}, but {self.questions.path} has {total:,}")
        kept = np.sort(streams("question_subset").permutation(total)[:limit]).tolist()
        return replace(self.questions, questions=tuple(self.questions.questions[i] for i in kept))

    def _device(self) -> str:
        """``cuda`` or ``cpu``: of this machine, or as the scenario says of a Ray cluster that is joined."""
        section = self.section
        if section.executor == "local" or section.ray_address is None:
            return self.machine.device(section)
        if section.device == "auto":
            raise ScenarioError(
                f"execution.device: auto, but the workers are on the Ray cluster {section.ray_address}; "
                "accepted with ray_address: cuda, cpu"
            )
        return section.device

    def _require_machine(self) -> None:
        cluster = self.scenario.cluster
        if cluster.experts_per_worker > 1 and self.section.executor == "ray":
            raise ScenarioError(
                f"cluster.experts_per_worker: {cluster.experts_per_worker}; on Ray a worker runs one expert "
                "at a time; accepted: 1, or execution.executor: local"
            )
        at_once = min(cluster.workers_at_once or self.n_workers, self.n_workers)
        if self.section.executor == "local":
            self.machine.require(self.section, self.n_workers, at_once)
            self._require_memory(at_once)
        else:
            require_ray(self.section, self.device, self.fleet.cluster, self.machine)
        if cluster.session_change == "sleep" and self.device == "cpu":
            self.notes.append("cluster.session_change: sleep does nothing on CPU; engines are started anew")

    def _require_engine_arguments(self) -> None:
        models = self.section.models.items()
        own = {f"execution.models.{name}.engine": model.engine for name, model in models}
        for where, given in {"execution.engine": self.section.engine, **own}.items():
            unknown = unknown_engine_argument(given)
            if unknown is not None:
                raise ScenarioError(f"{where}: {unknown}")

    def _require_memory(self, at_once: int) -> None:
        """On a CPU the KV cache is ordinary memory: as many as may be busy at once have to fit."""
        free = free_memory_bytes()
        for name in self.section.models if self.device == "cpu" and free is not None else ():
            kv = {**self.section.engine, **self.section.models[name].engine}.get("kv_cache_memory_bytes")
            if isinstance(kv, (int, float)) and kv * at_once > (free or 0):
                raise ScenarioError(
                    f"execution.models.{name}: kv_cache_memory_bytes {kv:,.0f} on {at_once} workers at once "
                    f"is more than the {free:,} bytes of memory that are free"
                )

    @cached_property
    def calibration(self) -> Trace:
        """The pool's answers to other questions. Raises ScenarioError, TraceError."""
        path = self.scenario.workload.calibration.trace
        if path is None:
            raise ScenarioError(
                "workload.calibration: a real run needs {trace: FILE} with the pool's answers to other "
                "questions; `mosaicsim trace record` makes one"
            )
        trace = read_trace(path)
        require_experts(trace, self.experts)
        return trace

    def _require_no_oracle(self) -> None:
        for i, scheduler in enumerate(self.scenario.policies(PolicyKind.SCHEDULER)):
            if scheduler.create().sees_lengths:
                raise ScenarioError(
                    f"schedulers.{i}.{scheduler.name}: needs the true lengths, which a real run does not have"
                )

    def _template(self, name: str, kind: type[Any]) -> Any:
        return _template(self.section.models[name], kind, f"execution.models.{name}")

    def _speaker(self, name: str, template: Any) -> Speaker[Any]:
        where = f"execution.models.{name}"
        model = self.section.models[name]
        with _at(f"{where}.path"):
            chat = Chat(model.path, model.trust_remote_code)
        given = {**self.section.engine, **model.engine}.get("max_model_len")
        longest = given if isinstance(given, int) else chat.max_model_len
        if longest is None:
            raise ScenarioError(
                f"{where}.engine.max_model_len: required, as the model's config.json has none"
            )
        sampling = {key: value for key, value in model.sampling.model_dump().items() if value != ()}
        sampling["stop"] = list(model.sampling.stop)
        return Speaker(name, chat, template, model.system, sampling, longest)


class RealReplicate(Replicate):
    """One routed set of questions, and its runs on engines."""

    def __init__(self, executed: Executed, number: int) -> None:
        streams = Streams(executed.scenario.seed, number)
        asked = executed.asked(streams)
        self.dialogue = Dialogue(
            asked.questions, executed.calibration.experts, executed.speakers, executed.aggregator, streams
        )
        workload = ask(
            asked,
            executed.calibration,
            k=executed.scenario.workload.k,
            router=executed.scenario.policies(PolicyKind.ROUTER)[0].create(),
            prompt_tokens=lambda question, expert: len(self.dialogue.prompt(question, expert)),
            rng_streams=streams,
            for_gates=any_fitted(executed.scenario),
        )
        super().__init__(executed.fleet, workload, streams, number)
        self.asked, self._executed = asked, executed
        self.dialogue.begin(workload.calls)
        self.dialogue.require_room()
        self.answered = workload
        self._aggregated: dict[int, bool] = {}
        self._k = executed.scenario.workload.k

    def execute(
        self, scheduler: Policy, gate: Policy, crew: Crew, folder: Path, tell: Callable[[int, int], None]
    ) -> tuple[Run, Ledger, list[dict[str, Any]]]:
        """One run; what ``folder`` has of it is not run again. ``tell`` is told calls done and in all."""
        journal = Journal(folder / JOURNAL)
        try:
            return self._execute(scheduler, gate, crew, journal, OutputParts(folder / OUTPUTS), tell)
        finally:
            journal.close()

    def _execute(
        self,
        scheduler: Policy,
        gate: Policy,
        crew: Crew,
        journal: Journal,
        outputs: OutputParts,
        tell: Callable[[int, int], None],
    ) -> tuple[Run, Ledger, list[dict[str, Any]]]:
        judge, workload = self.gate(gate), self.workload
        self.dialogue.begin(workload.calls)
        log = RunLog(len(workload.calls) + workload.n_questions)
        names = {"scheduler": scheduler.label, "gate": gate.label, "replicate": self._replicate}

        def report(spec: SessionSpec, results: Sequence[CallResult]) -> None:
            outputs.add(self._row(names, spec, result) for result in results)
            tell(len(self.dialogue.replies), len(workload.calls))

        ledger = Ledger(journal, self.dialogue, report)
        ledger.restore(log)
        policy, plan = self._plan_of_rest(scheduler, gate, log)
        orchestrator = orchestrate(
            workload,
            self._fleet.pool,
            plan,
            policy,
            judge,
            self._problem_for(policy, gate),
            fallback=create("greedy", {}),
            log=log,
        )
        makespan = self._executed.carry_out(orchestrator, crew, ledger)
        outputs.flush()
        run = self._describe_real(orchestrator, scheduler, gate, makespan)
        return run, ledger, self._answers(names, orchestrator)

    def _plan_of_rest(self, scheduler: Policy, gate: Policy, log: RunLog) -> tuple[Scheduler, Plan]:
        """The scheduler and its plan for the calls that have not ended."""
        if not log.sessions:
            return self.planned(scheduler, gate)
        policy: Scheduler = scheduler.create()
        left = np.flatnonzero(log.status[: len(self.workload.calls)] == PENDING)
        return policy, self.plan_of(policy, left, gate)

    def _describe_real(
        self, orchestrator: Orchestrator | SteeredRun, scheduler: Policy, gate: Policy, makespan: float
    ) -> Run:
        aggregator = self.dialogue.aggregator_calls()
        answered = replace(self.workload, outcomes=self.dialogue.outcomes(), aggregator=aggregator)
        asked = np.flatnonzero(orchestrator.accepted == ASK).tolist()
        self._aggregated |= {q: bool(aggregator.correct[q]) for q in asked}
        self.answered = answered
        # a bound computed from a profile says nothing certain of real engines
        return self.describe(orchestrator, scheduler, gate, makespan, answered, self._reference(), None)

    def _reference(self) -> Bools | None:
        """Whether the aggregator is right on each question, where runs so far have asked it about all."""
        n = self.workload.n_questions
        return np.array([self._aggregated[q] for q in range(n)]) if len(self._aggregated) == n else None

    def _row(self, names: dict[str, Any], spec: SessionSpec, result: CallResult) -> dict[str, Any]:
        call, n = result.call_id, len(self.workload.calls)
        question = int(self.workload.calls.question[call]) if call < n else call - n
        asked, reply = self.asked.questions[question], self.dialogue.replies[call]
        prompt = (
            int(self.workload.calls.prompt_tokens[call]) if call < n else self.dialogue.asked_tokens(call)
        )
        return {
            **names,
            "question_id": asked.id,
            "category": asked.category,
            "stage": "expert" if call < n else AGGREGATOR,
            "expert": spec.expert,
            "slot": call % self._k if call < n else None,
            "sample": int(self.workload.calls.sample[call]) if call < n else 0,
            "worker": self._fleet.worker_names[spec.workers[0]],
            "session": spec.session,
            "start_s": result.start_s,
            "first_token_s": result.first_token_s,
            "finish_s": result.finish_s,
            "prompt_tokens": prompt,
            "output_tokens": result.output_tokens,
            "visible_tokens": self.dialogue.visible_tokens(call),
            "preemptions": result.preemptions,
            "finish_reason": result.finish_reason,
            "text": result.text,
            "answer": reply.answer,
            "correct": None if asked.gold is None else reply.answer == asked.gold,
            "confidence": result.confidence,
            "error": result.error or None,
        }

    def _answers(
        self, names: dict[str, Any], orchestrator: Orchestrator | SteeredRun
    ) -> list[dict[str, Any]]:
        """The answer to every question, and whose it is."""
        rows, k, n = [], len(self.workload.calls) // self.workload.n_questions, len(self.workload.calls)
        for q, question in enumerate(self.asked):
            votes = [self._vote(call) for call in range(q * k, (q + 1) * k)]
            code = int(orchestrator.accepted[q])
            answer = self._vote(n + q) if code == ASK else self.dialogue.answer_of(code)
            rows.append(
                {
                    **names,
                    "question_id": question.id,
                    "category": question.category,
                    "answer": answer,
                    "source": AGGREGATOR if code == ASK else "experts",
                    "votes": votes,
                    "gold": question.gold,
                    "correct": None if question.gold is None else answer == question.gold,
                }
            )
        return rows

    def _vote(self, call_id: int) -> str | None:
        reply = self.dialogue.replies.get(call_id)
        return None if reply is None else reply.answer


def execute(scenario: Scenario, folder: Path, progress: Progress, *, resume: bool = False) -> Execution:
    """Execute ``scenario``; ``folder`` keeps what has to survive a crash, and ``resume`` goes on with it.

    Raises UserInputError before a model is loaded for what can be found by then, MosaicsimError for what
    cannot go on later; nothing that finished is lost.
    """
    began = time.perf_counter()
    executed = Executed(scenario)
    schedulers, gates = scenario.policies(PolicyKind.SCHEDULER), scenario.policies(PolicyKind.GATE)
    replicates = [RealReplicate(executed, number) for number in range(scenario.replicates)]
    for replicate in replicates:
        for i, scheduler in enumerate(schedulers):
            replicate.plan(scheduler, where=f"schedulers.{i}.{scheduler.name}")
        for gate in gates:
            replicate.gate(gate)
    open_work(folder, identity_of(executed), resume=resume)

    crew = Crew(executed.connect(), folder / WORKERS)
    runs: list[Run] = []
    answers: list[dict[str, Any]] = []
    engines: dict[str, dict[str, object]] = {}
    given_up: list[str] = []
    finished = False
    try:
        for replicate in replicates:
            for scheduler in schedulers:
                for gate in gates:
                    name = f"{len(runs):03d}-{scheduler.name}-{gate.name}"
                    what = f"{scheduler.label}, {gate.label}"

                    def tell(done: int, total: int, what: str = what) -> None:
                        progress(done, total, what)

                    run, ledger, rows = replicate.execute(scheduler, gate, crew, folder / RUNS / name, tell)
                    runs.append(run)
                    answers += rows
                    engines |= ledger.resolved
                    given_up += [f"{what}: call {c}: {error}" for c, error in sorted(ledger.errors.items())]
        finished = True
    finally:
        crew.close(at_once=not finished)
    workloads = [replicate.answered for replicate in replicates]
    add_speedups(runs, baseline_label(schedulers), label_of(gates, UNGATED))
    summary = summarise(scenario, runs, workloads)
    summary["labels"]["times"] = _times_label(engines)
    result = Result(
        scenario=resolved(scenario),
        summary=summary,
        workloads=tuple(workloads),
        workers=executed.fleet.worker_names,
        runs=tuple(runs),
        wall={"execute_s": time.perf_counter() - began, **executed.wall},
    )
    return Execution(result, engines, answers, given_up, executed.notes)


def check_execution(scenario: Scenario) -> list[str]:
    """Everything ``execute`` does before it loads a model; returns notes."""
    executed = Executed(scenario)
    replicate = RealReplicate(executed, 0)
    for i, scheduler in enumerate(scenario.policies(PolicyKind.SCHEDULER)):
        replicate.plan(scheduler, where=f"schedulers.{i}.{scheduler.name}")
    for gate in scenario.policies(PolicyKind.GATE):
        replicate.gate(gate)
    return executed.notes


def _section(scenario: Scenario) -> ExecutionSection:
    section = scenario.execution
    if section is None:
        raise ScenarioError("execution: required for a real run, but missing; docs/real_hardware.md has one")
    if AGGREGATOR not in section.models:
        raise ScenarioError(f"execution.models: no entry `{AGGREGATOR}`")
    return section


def _template(model: ExecutedModel, kind: type[Any], where: str) -> Any:
    if model.template is not None and model.template_file is not None:
        raise ScenarioError(f"{where}: give template or template_file, not both")
    if model.template_file is not None:
        try:
            text = Path(model.template_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ScenarioError(f"{where}.template_file: {model.template_file}: {error}") from None
        return kind(text, f"{where}.template_file")
    given = {} if model.template is None else {"text": model.template}
    return kind(**given, where=f"{where}.template")


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Say where in the scenario what an error speaks of stands."""
    try:
        yield
    except MosaicsimError as error:
        raise type(error)(f"{where}: {error}") from None


def _require_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise MosaicsimError("vllm is not installed here; `mosaicsim doctor` says how to install it")


def require_space(folder: Path) -> None:
    """Raise OutputError where the disk is about full; a run would lose its last calls."""
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE_BYTES:
        raise OutputError(
            f"{folder}: {free / 1e6:.0f} MB are free on its disk; a run needs at least "
            f"{LEAST_FREE_BYTES / 1e6:.0f} MB for journals and outputs"
        )


def open_work(folder: Path, identity: str, *, resume: bool) -> None:
    """Begin a folder, or go on with one of the same scenario. Raises ScenarioError, OutputError."""
    mark = folder / STUDY
    if folder.exists():
        if not mark.is_file():
            raise OutputError(f"{folder}: is no unfinished execution of mosaicsim and is in the way; move it")
        if resume and mark.read_text() != identity:
            raise ScenarioError(
                f"{folder}: --resume: it was begun with another scenario, question file, calibration, "
                "profile or version; without --resume the execution starts anew"
            )
        if not resume:
            shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(identity)
        require_space(folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}") from None


def identity_of(executed: Executed) -> str:
    """What the calls of an execution depend on, as text."""
    files = [executed.questions.path, *map(Path, executed.scenario.profiles)]
    return json.dumps(
        {
            "version": __version__,
            "calibration": executed.calibration.metadata.content_hash,
            "files": [hashlib.sha256(path.read_bytes()).hexdigest() for path in files],
            "scenario": resolved(executed.scenario),
        }
    )


def _times_label(engines: dict[str, dict[str, object]]) -> str:
    kinds = sorted({f"vLLM {e.get('vllm')} on {e.get('device')}" for e in engines.values()})
    return f"measured: {', '.join(kinds)}"
