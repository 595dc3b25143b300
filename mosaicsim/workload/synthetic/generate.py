"""Generate a synthetic trace: a full block of calls with a recorded routing, calibrated to published figures.

The steps are draw a pool of candidate questions from the answer model, couple lengths to their disagreement,
choose the questions whose random redraws meet the targets on average, and record one routing that meets
them exactly. What was wanted and what came out stand side by side in the metadata's ``report``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from mosaicsim.workload.calls import Bools, Floats, Ints
from mosaicsim.workload.synthetic import aggregator
from mosaicsim.workload.synthetic.agreement import SLOTS, Expected, buckets, expect, routed_samples
from mosaicsim.workload.synthetic.answers import AnswerModel, Candidates, Draws, draw_answers
from mosaicsim.workload.synthetic.block import Block
from mosaicsim.workload.synthetic.coupling import (
    LengthDraws,
    cut_calls,
    disagreement,
    fit_coupling,
    length_scores,
    lose_answers,
    place_lengths,
)
from mosaicsim.workload.synthetic.recorded import record_routing
from mosaicsim.workload.synthetic.spec import SyntheticSpec, apportion
from mosaicsim.workload.synthetic.table import build_metadata, build_table
from mosaicsim.workload.synthetic.targets import choose_questions, fit_answers
from mosaicsim.workload.trace import TraceMetadata

_POOL = 6000
_SURPLUS = 2


@dataclass(frozen=True)
class Pool:
    """Candidate questions with the scores and the cuts of their calls; ``split`` (n,) is the disagreement."""

    questions: Candidates
    split: Floats
    scores: Floats
    cut: Bools
    expected: Expected


def generator(seed: int) -> np.random.Generator:
    """The stream ``mosaicsim trace generate`` draws from."""
    return np.random.default_rng(np.random.SeedSequence([seed, 0x7472616365]))


def generate(
    spec: SyntheticSpec, rng: np.random.Generator, *, calibration: bool = False
) -> tuple[pa.Table, TraceMetadata]:
    """Generate a trace's table and metadata; the same spec and generator state give the same bytes.

    ``calibration`` generates ``spec.calibration_questions`` other questions from the same fitted model, with
    no recorded routing and no targets met exactly: what an offline profiling run would see.
    """
    fit_rng, results_rng, calibration_rng = rng.spawn(3)
    block_rng, cosmetics_rng = (calibration_rng if calibration else results_rng).spawn(2)
    block = build_block(spec, fit_rng, block_rng, calibration=calibration)
    name = f"{spec.name}.calibration" if calibration else spec.name
    return build_table(name, block, cosmetics_rng), build_metadata(block)


def build_block(
    spec: SyntheticSpec, fit_rng: np.random.Generator, rng: np.random.Generator, *, calibration: bool = False
) -> Block:
    """Fit the model, draw the questions and everything that was generated on them."""
    model = fit_answers(spec, fit_rng)
    fitting = _draw(spec, model, _POOL, fit_rng)
    draws = LengthDraws.make(fitting.answers.shape, fit_rng)
    split = disagreement(expect(fitting.answers, spec.slot_counts), draws)
    tie = fit_coupling(spec, fitting, split, draws)
    wanted = spec.calibration_questions if calibration else spec.targets.questions
    pool = _pool(spec, model, tie, max(_POOL, _SURPLUS * wanted), rng)
    if calibration:
        return _calibration_block(spec, pool, model, tie, rng)
    return _results_block(spec, pool, model, tie, rng)


def _draw(spec: SyntheticSpec, model: AnswerModel, n: int, rng: np.random.Generator) -> Candidates:
    return draw_answers(spec, model, Draws.make(spec, n, rng))


def _pool(spec: SyntheticSpec, model: AnswerModel, tie: float, n: int, rng: np.random.Generator) -> Pool:
    """Candidates with length scores; a cut-off generation loses its answer with ``missing_if_cut``."""
    questions = _draw(spec, model, n, rng)
    draws = LengthDraws.make(questions.answers.shape, rng)
    split = disagreement(expect(questions.answers, spec.slot_counts), draws)
    scores = length_scores(spec, questions, split, draws, tie)
    cut = cut_calls(spec, scores)
    questions = replace(questions, answers=lose_answers(spec, questions.answers, cut, draws))
    return Pool(questions, split, scores, cut, expect(questions.answers, spec.slot_counts))


def _results_block(
    spec: SyntheticSpec, pool: Pool, model: AnswerModel, tie: float, rng: np.random.Generator
) -> Block:
    sizes = apportion([c.weight for c in spec.categories.values()], spec.targets.questions)
    rows = choose_questions(spec, pool.questions.category, pool.expected, pool.cut, sizes, rng)
    pool = _take(pool, rows)
    answers = pool.questions.answers
    tokens = place_lengths(spec, pool.scores, pool.cut)
    deal = record_routing(spec, answers, tokens, rng)
    drawn = answers[np.arange(len(deal))[:, None], deal, routed_samples(deal)]
    right = aggregator.answer(spec.targets, pool.expected, *buckets(drawn), rng, rng)
    length, cut = aggregator.lengths(spec, pool.split, right, rng)
    return Block(spec, pool.questions, pool.expected, tokens, pool.cut, deal, right, length, cut, model, tie)


def _calibration_block(
    spec: SyntheticSpec, pool: Pool, model: AnswerModel, tie: float, rng: np.random.Generator
) -> Block:
    """Random candidates with the lengths they have within the whole pool: an honest sample of the model.

    The aggregator is right where it would be were the whole pool evaluated: a gate is fitted to these
    questions.
    """
    tokens = place_lengths(spec, pool.scores, pool.cut)
    deal_rng, swap_rng = rng.spawn(2)
    whole = spec.scaled(len(tokens))
    deal = deal_rng.permutation(np.repeat(np.arange(len(whole.slot_counts)), whole.slot_counts)).reshape(
        -1, SLOTS
    )
    drawn = pool.questions.answers[np.arange(len(deal))[:, None], deal, routed_samples(deal)]
    right = aggregator.answer(whole.targets, pool.expected, *buckets(drawn), rng, swap_rng)
    length, cut = aggregator.lengths(spec, pool.split, right, rng)
    rows = rng.permutation(len(tokens))[: spec.calibration_questions]
    pool = _take(pool, rows)
    return Block(
        spec,
        pool.questions,
        pool.expected,
        tokens[rows],
        pool.cut,
        None,
        right[rows],
        length[rows],
        cut[rows],
        model,
        tie,
    )


def _take(pool: Pool, rows: Ints) -> Pool:
    """The pool's questions at ``rows``, in that order."""
    q = pool.questions
    questions = Candidates(q.category[rows], q.difficulty[rows], q.logit[rows], q.answers[rows])
    expected = Expected(pool.expected.share[rows], pool.expected.correct[rows])
    return Pool(questions, pool.split[rows], pool.scores[rows], pool.cut[rows], expected)
