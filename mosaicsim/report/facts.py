"""Facts of a result's workloads that the table and the plots both state."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from mosaicsim.analysis.result import Result, Run
from mosaicsim.workload.calls import Bools, Floats, Ints
from mosaicsim.workload.dealing import popularity
from mosaicsim.workload.votes import vote_counts


def experts_of(result: Result) -> list[str]:
    """Every expert's name, in first-seen order of the first replicate."""
    return list(dict.fromkeys(name for workload in result.workloads for name in workload.experts))


def lengths_of(result: Result, expert: str) -> Ints:
    """Output tokens of all calls of an expert, over all replicates."""
    found = [
        workload.outcomes.output_tokens[workload.calls.expert == workload.experts.index(expert)]
        for workload in result.workloads
        if expert in workload.experts
    ]
    return np.concatenate(found)


@dataclass(frozen=True)
class CallCounts:
    """How often the router chose each expert: mean calls over the replicates, max/min and CV of them.

    ``max_min`` leaves out experts that were never called, as the paper does.
    """

    experts: list[str]
    calls: Floats
    max_min: float
    cv: float


def call_counts(result: Result) -> CallCounts:
    """Popularity of the experts."""
    names = experts_of(result)
    counts = np.zeros((len(result.workloads), len(names)))
    for row, workload in zip(counts, result.workloads, strict=True):
        row[[names.index(name) for name in workload.experts]] = workload.calls.counts(len(workload.experts))
    called = [popularity(row[row > 0].astype(np.int64)) for row in counts]
    return CallCounts(
        names,
        counts.mean(axis=0),
        float(np.mean([skew.max_min for skew in called])),
        float(np.mean([popularity(row.astype(np.int64)).cv for row in counts])),
    )


@dataclass(frozen=True)
class Bucket:
    """Questions on which equally many calls gave the plurality answer, over all replicates.

    ``votes`` of ``k`` calls agree; ``share`` is of all questions; ``tokens`` the mean output
    tokens of its calls; accuracies are of the plurality answer and of the aggregator. ``skipped`` is, by
    gate, the share of these questions that never reached the aggregator.
    """

    votes: int
    k: int
    questions: int
    share: float
    tokens: float
    plurality_right: float
    aggregator_right: float
    skipped: dict[str, float]

    @property
    def name(self) -> str:
        """As the paper writes it: 3:0, 2:1, 1:1:1."""
        if self.votes <= 1:
            return ":".join(["1"] * self.k) if self.votes else "no answer"
        return f"{self.votes}:{self.k - self.votes}"


def agreement(result: Result) -> list[Bucket]:
    """Agreement buckets, most agreement first."""
    facts = [_question_facts(result, replicate) for replicate in range(len(result.workloads))]
    votes = np.concatenate([f.votes for f in facts])
    k = len(result.workloads[0].calls) // result.workloads[0].n_questions
    asked = {gate: np.concatenate([f.asked[gate] for f in facts]) for gate in facts[0].asked}
    buckets = []
    for n, questions in sorted(Counter(votes.tolist()).items(), reverse=True):
        of = votes == n
        buckets.append(
            Bucket(
                votes=n,
                k=k,
                questions=questions,
                share=questions / len(votes),
                tokens=float(np.concatenate([f.tokens for f in facts])[of].mean()),
                plurality_right=float(np.concatenate([f.plurality_right for f in facts])[of].mean()),
                aggregator_right=float(np.concatenate([f.aggregator_right for f in facts])[of].mean()),
                skipped={gate: float(1 - column[of].mean()) for gate, column in asked.items()},
            )
        )
    return buckets


@dataclass(frozen=True)
class _QuestionFacts:
    """Columns of shape (questions,) of one replicate."""

    votes: Ints
    tokens: Floats
    plurality_right: Bools
    aggregator_right: Bools
    asked: dict[str, Bools]


def _question_facts(result: Result, replicate: int) -> _QuestionFacts:
    workload = result.workloads[replicate]
    outcomes = workload.outcomes
    votes = vote_counts(outcomes.answer.reshape(workload.n_questions, -1))
    plurality = votes.argmax(axis=1)[:, None]
    right = np.take_along_axis(outcomes.correct.reshape(votes.shape), plurality, axis=1)[:, 0]
    first_of_gate: dict[str, Run] = {}
    for run in result.of_replicate(replicate):
        first_of_gate.setdefault(run.gate, run)
    return _QuestionFacts(
        votes=votes.max(axis=1),
        tokens=outcomes.output_tokens.reshape(votes.shape).mean(axis=1),
        plurality_right=right,
        aggregator_right=workload.aggregator.correct,
        asked={gate: _asked(run, workload.n_questions) for gate, run in first_of_gate.items()},
    )


def _asked(run: Run, n_questions: int) -> Bools:
    """Whether a question went to the aggregator, shape (questions,)."""
    asked = np.zeros(n_questions, np.bool_)
    asked[run.calls["question"][run.calls["stage"] == "aggregator"]] = True
    return asked
