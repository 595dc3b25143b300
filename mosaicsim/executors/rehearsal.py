"""A rehearsal: a plan played on the simulated fleet, with calls that turn out as calibration questions did.

This is what lets a scheduler see the tails, preemptions and waits that no closed form has. It knows the
calls to come as the scheduler does, without their lengths: each question is given the lengths and answers
of a calibration question of its category, so that what belongs together (long, disputed) stays together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from mosaicsim.aggregation.base import ASK, Decision, Gate, GateOptions, Verdict
from mosaicsim.executors.runaways import Runaways, expected_makespan_s, runaway_ends_s, without
from mosaicsim.executors.simulated import SimulatedCluster, SimulatedExecutor
from mosaicsim.runtime.orchestrator import AGGREGATOR
from mosaicsim.runtime.pool import Pool
from mosaicsim.runtime.runlog import RunLog
from mosaicsim.runtime.steered import orchestrate
from mosaicsim.schedulers.base import Plan, Problem, Rehearsed, Scheduler, WorkerView
from mosaicsim.workload.ballots import Ballot, Ballots
from mosaicsim.workload.calls import (
    NO_ANSWER,
    AggregatorCalls,
    Calibration,
    CallTable,
    Ints,
    Outcomes,
    Workload,
)

ASKED_SCENES = 4
"""Scenes from which the calls that ask the aggregator are taken."""

LEAST_ASKED = 30
"""Fewer such calls say less of those to come than all calls do."""


class Rehearsal:
    """Plays plans; every *scene* is another draw of calibration questions, the same for all plans."""

    def __init__(
        self,
        cluster: Callable[[], SimulatedCluster],
        pool: Pool,
        experts: Sequence[str],
        categories: Sequence[str],
        calls: CallTable,
        calibration: Calibration,
        rng: Callable[[int], np.random.Generator],
    ) -> None:
        """``rng(scene)`` is the scene's random stream; ``cluster`` is the fleet without failures.

        ``categories`` has the name of each question's.
        """
        self._cluster, self._pool = cluster, pool
        self._experts, self._calls, self._calibration = tuple(experts), calls, calibration
        self._categories = tuple(categories)
        self._rng = rng
        self._runaways = Runaways.of(calibration)
        self._scenes: dict[int, Workload] = {}

    def play(self, scheduler: Scheduler, plan: Plan, problem: Problem, scene: int) -> Rehearsed:
        """Play a plan to its end under ``problem.gate``; without a gate the expert stage alone.

        No aggregator call of the play runs away; of a plan with a course the makespan is the mean over
        whether and which one does.
        """
        workload = self._scene(scene)
        gate = problem.gate if problem.gate is not None else _NoneAsks()

        def problem_of(call_ids: Ints, workers: tuple[WorkerView, ...]) -> Problem:
            return replace(problem, call_ids=call_ids)

        run = orchestrate(workload, self._pool, plan, scheduler, gate, problem_of, scheduler)
        lengths = np.concatenate([workload.outcomes.output_tokens, workload.aggregator.output_tokens])
        answers = np.concatenate(
            [workload.outcomes.answer, np.full(workload.n_questions, NO_ANSWER, np.int64)]
        )
        reactive = gate.cancels or plan.course is not None
        makespan = SimulatedExecutor(self._cluster(), lengths, answers, reactive=reactive).run(run)
        if plan.course is not None and self._runaways.chance:
            makespan = self._feared_s(makespan, run.log)
        ends = dict.fromkeys((w.index for w in self._pool.workers), 0.0)
        for row in run.log.sessions.values():
            if row.stage == "expert" and row.usage is not None:
                ends[row.spec.workers[0]] = max(ends[row.spec.workers[0]], row.usage.end_s)
        return Rehearsed(run.expert_stage_s, makespan, tuple(ends[w.index] for w in problem.workers))

    def asked(self, gate: Gate) -> tuple[Ints, Ints]:
        """Output and prompt tokens of the aggregator calls in a few scenes; of all calls where few ask.

        Which questions ask matters: disputed ones run longer, and so do the texts that are read. As in a
        play, no call runs away, and the gate is told no confidences.
        """
        outputs, prompts = [], []
        for scene in range(ASKED_SCENES):
            workload = self._scene(scene)
            k = len(self._calls) // workload.n_questions
            answers = workload.outcomes.answer.reshape(-1, k)
            ballots = Ballots(
                answers,
                self._calls.expert.reshape(-1, k),
                np.full(answers.shape, np.nan),
                workload.categories,
            )
            asks = gate.decide_all(ballots) == ASK
            outputs.append(workload.aggregator.output_tokens[asks])
            prompts.append(workload.aggregator.prompt_tokens[asks])
        if sum(map(len, outputs)) < LEAST_ASKED:
            return workload.aggregator.output_tokens, workload.aggregator.prompt_tokens
        return np.concatenate(outputs), np.concatenate(prompts)

    def _feared_s(self, makespan_s: float, log: RunLog) -> float:
        """The mean makespan over whether and which aggregator call of the play runs away."""
        n = len(self._calls)
        asked = np.flatnonzero(log.start_s[n:] >= 0)
        ends = runaway_ends_s(log, n + asked, self._alone_s, self._runaways.tokens)
        return expected_makespan_s(makespan_s, ends, self._runaways.chance)

    def _alone_s(self, group: tuple[int, ...]) -> float:
        """Mean seconds a token takes of an aggregator call that runs away on these workers, by itself.

        Of the engine, not of the profiled sweep, whose sessions of one call are too few and too short.
        """
        tables = self._cluster().engine_of(AGGREGATOR, group, 1).tables
        return tables.decode_s(1, self._runaways.tokens / 2)

    def _scene(self, number: int) -> Workload:
        if number not in self._scenes:
            self._scenes[number] = self._draw(self._rng(number))
        return self._scenes[number]

    def _draw(self, rng: np.random.Generator) -> Workload:
        """The calls with lengths and answers of calibration questions."""
        calls, seen = self._calls, self._calibration
        n = int(calls.question.max(initial=-1)) + 1
        k = len(calls) // n
        source = _alike(calls.category[::k], seen.question_category, rng)
        row = source[calls.question]
        sample = np.minimum(calls.sample, seen.lengths.shape[2] - 1)
        lengths, answers = seen.lengths[row, calls.expert, sample], seen.answers[row, calls.expert, sample]
        for m in np.unique(calls.expert[lengths == 0]).tolist():
            bare = (calls.expert == m) & (lengths == 0)
            lengths[bare] = rng.choice(seen.output_tokens[m], int(bare.sum()))
        return Workload(
            name="rehearsal",
            questions=("",) * n,
            categories=self._categories,
            experts=self._experts,
            calls=calls,
            outcomes=Outcomes(lengths, lengths, answers, np.zeros(len(calls), np.bool_)),
            aggregator=AggregatorCalls(
                seen.aggregator_prompt_tokens[source] + self._read(row, sample).reshape(n, k).sum(axis=1),
                without(seen.aggregator_output_tokens, seen.aggregator_output_tokens[source], rng),
                np.zeros(n, np.bool_),
            ),
            calibration=seen,
        )

    def _read(self, row: Ints, sample: Ints) -> Ints:
        """Tokens the aggregator reads of each call, shape (calls,): its expert's mean where not known."""
        seen, experts = self._calibration.visible_tokens, self._calls.expert
        if not len(seen):
            return np.zeros(len(experts), np.int64)
        profiled = self._calibration.lengths > 0
        means = seen.sum(axis=(0, 2)) // np.maximum(profiled.sum(axis=(0, 2)), 1)
        return np.where(profiled[row, experts, sample], seen[row, experts, sample], means[experts])


def _alike(wanted: Ints, known: Ints, rng: np.random.Generator) -> Ints:
    """A row of ``known`` of the same category for each of ``wanted``, each used about equally often."""
    source = np.zeros(len(wanted), np.int64)
    for category in np.unique(wanted).tolist():
        rows, here = np.flatnonzero(known == category), wanted == category
        rows = rows if len(rows) else np.arange(len(known))
        n = int(here.sum())
        rounds = [rng.permutation(rows) for _ in range(-(-n // len(rows)))]
        source[here] = np.concatenate(rounds)[:n]
    return source


class _NoneAsks:
    """Accepts whatever comes, so that a play ends with the expert stage."""

    name: ClassVar[str] = "none_asks"
    summary: ClassVar[str] = "no question asks the aggregator"
    Options: ClassVar[type[GateOptions]] = GateOptions
    label = "none_asks"
    cancels = False

    def decide(self, ballot: Ballot) -> Decision:
        """See Gate."""
        return Decision(Verdict.WAIT) if ballot.pending else Decision(Verdict.ACCEPT, NO_ANSWER)

    def decide_all(self, ballots: Ballots) -> Ints:
        """See Gate."""
        return np.full(len(ballots), NO_ANSWER, np.int64)
