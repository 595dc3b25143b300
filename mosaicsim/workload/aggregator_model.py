"""A model of the aggregator, for workloads whose trace did not record it.

The aggregator is taken to pick one of the answers proposed to it, so it is right only where some proposer
is. Every figure that depends on it is labelled "modelled".
"""

from __future__ import annotations

import numpy as np

from mosaicsim.workload.calls import NO_ANSWER, AggregatorCalls, Bools, Ints
from mosaicsim.workload.votes import vote_counts

TEMPLATE_TOKENS = 120
"""Instructions around the proposals in the aggregator's prompt: our estimate of such a template."""

LENGTH_MEDIAN, LENGTH_LOG_SD = 1.17, 0.4
"""Aggregator output over the proposers' mean output, lognormal: medians of 1.10 to 1.24 and a log-sd of 0.4
were measured over public mixture-of-agents outputs."""

MAX_OUTPUT_TOKENS = 32_768
"""max_tokens of the aggregator, as for Symbolic-MoE's reasoning models."""

KEEPS_UNANIMOUS = 0.9937
"""Chance that a right unanimous answer survives: MOSAIC (arXiv 2606.03014) reports 82.92 % right for the
unanimous MMLU-Pro questions and 82.40 % after the aggregator; 82.40 / 82.92."""

VOTE_LOGIT, RIGHT_LOGIT = 2.0, 0.8
"""Where answers differ, each is picked with weight exp(VOTE_LOGIT x votes + RIGHT_LOGIT if right). Set by
hand to the rest of MOSAIC's MMLU-Pro table: on 2:1 questions the aggregator wins 2 points over the plurality
(it reads the texts), and on 1:1:1 questions it finds a right answer, where there is one, half the time."""


def model_aggregator(
    question_tokens: Ints,
    answers: Ints,
    correct: Bools,
    output_tokens: Ints,
    visible_tokens: Ints,
    rng: np.random.Generator,
) -> AggregatorCalls:
    """One modelled aggregator call a question.

    ``question_tokens``, the question's own prompt, is (questions,); the other columns are (questions, k).
    """
    noise = rng.lognormal(np.log(LENGTH_MEDIAN), LENGTH_LOG_SD, size=len(question_tokens))
    length = np.rint(output_tokens.mean(axis=1) * noise)
    return AggregatorCalls(
        prompt_tokens=question_tokens + TEMPLATE_TOKENS + visible_tokens.sum(axis=1),
        output_tokens=np.clip(length, 1, MAX_OUTPUT_TOKENS).astype(np.int64),
        correct=pick_right(answers, correct, rng),
    )


def pick_right(answers: Ints, correct: Bools, rng: np.random.Generator) -> Bools:
    """Whether the modelled aggregator is right, shape (questions,).

    ``answers`` and ``correct`` are (questions, k); a call without an answer proposes nothing.
    """
    votes = vote_counts(answers)
    # An answer with v votes stands in v slots, so each slot carries a v-th of its weight.
    weight = np.exp(VOTE_LOGIT * votes + RIGHT_LOGIT * correct) / np.maximum(votes, 1)
    weight[answers == NO_ANSWER] = 0.0
    total = weight.sum(axis=1)
    right = np.where(correct, weight, 0.0).sum(axis=1) / np.maximum(total, 1e-300)
    proposed = (answers != NO_ANSWER).sum(axis=1)
    unanimous = (proposed > 0) & (votes.max(axis=1) == proposed)
    chance = np.where(unanimous, KEEPS_UNANIMOUS * right, right)
    return np.asarray(rng.random(len(answers)) < chance)
