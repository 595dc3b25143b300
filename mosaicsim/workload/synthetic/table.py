"""From a generated block to a trace's columns, and to the provenance that its metadata carries."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mosaicsim.workload.calls import NO_ANSWER, Bools, Floats, Ints
from mosaicsim.workload.synthetic.agreement import CORRECT, routed_samples
from mosaicsim.workload.synthetic.answers import sigmoid
from mosaicsim.workload.synthetic.block import Block
from mosaicsim.workload.synthetic.report import report
from mosaicsim.workload.synthetic.spec import VisibleSpec
from mosaicsim.workload.trace import SCHEMA, Provenance, TraceMetadata

AGGREGATOR = "aggregator"
_LETTERS = np.array([chr(ord("A") + i) for i in range(26)])
_AGGREGATOR_FOLLOWS = 0.7
_NO_SLOT = -1


def build_table(name: str, block: Block, rng: np.random.Generator) -> pa.Table:
    """Lay the block out question by question: each expert's samples, then the aggregator's row.

    Adds what is cosmetic to scheduling: prompt lengths, letters, confidences, the visible part of an output.
    """
    n, experts, samples = block.answers.shape
    rows = experts * samples + 1
    prompt, aggregator_prompt = _prompts(block, rng)
    letters = rng.permuted(np.tile(np.arange(block.spec.answers.options), (n, 1)), axis=1)
    codes = _beside(block.answers, _aggregator_codes(block, rng))
    tokens = _beside(block.tokens, block.aggregator_tokens)
    cut = _beside(block.cut, block.aggregator_cut)
    confidence = _beside(_confidence(block, rng), np.full(n, np.nan))
    slot = _beside(_slots(block), np.full(n, _NO_SLOT))
    answered = codes != NO_ANSWER
    answer = _LETTERS[np.take_along_axis(letters, np.where(answered, codes, 0), axis=1)]
    category = np.array(list(block.spec.categories))[block.questions.category]
    columns: dict[str, npt.NDArray[Any]] = {
        "question_id": np.repeat([f"{name}/{i:05d}" for i in range(n)], rows),
        "dataset": np.repeat([block.spec.name], n * rows),
        "category": np.repeat(category, rows),
        "expert": np.tile([*np.repeat(list(block.spec.experts), samples), AGGREGATOR], n),
        "sample": np.tile([*np.tile(np.arange(samples), experts), 0], n),
        "prompt_tokens": _beside(np.repeat(prompt[:, None], rows - 1, axis=1), aggregator_prompt),
        "output_tokens": tokens,
        "visible_tokens": _visible(block, tokens, cut, rng),
        "answer": answer,
        "confidence": confidence,
        "correct": codes == CORRECT,
        "finish_reason": np.where(cut, "length", "stop"),
        "slot": slot,
    }
    null = {"answer": ~answered, "confidence": np.isnan(confidence), "slot": slot == _NO_SLOT}
    return pa.table([_array(f, columns[f.name], null.get(f.name)) for f in SCHEMA], schema=SCHEMA)


def _beside(calls: npt.NDArray[Any], aggregator: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Calls (n, experts, samples), or flat (n, calls), and aggregator (n,) -> (n, calls + 1)."""
    return np.concatenate([calls.reshape(len(calls), -1), aggregator[:, None]], axis=1)


def _array(column: pa.Field, values: npt.NDArray[Any], null: Bools | None) -> pa.Array:
    return pa.array(values.ravel(), type=column.type, mask=None if null is None else null.ravel())


def build_metadata(block: Block) -> TraceMetadata:
    """Provenance: what is published and what is modelled, the fit, and targets beside what came out."""
    spec = block.spec
    return TraceMetadata(
        provenance=Provenance(
            sources=tuple(f"{figure}: {source}" for figure, source in spec.sources.items()),
            notes=(
                "synthetic: no row is a recorded generation; distributions are calibrated to the sources",
                "aggregator rows hold the prompt without the proposers' visible text",
            ),
            labels=dict.fromkeys(
                ("prompt_tokens", "output_tokens", "visible_tokens", "answer", "confidence", "aggregator"),
                "modelled",
            ),
            caps={name: e.lengths.cap for name, e in spec.experts.items()}
            | {AGGREGATOR: spec.aggregator.lengths.cap},
            reasoning={name: e.reasoning for name, e in spec.experts.items()},
            first_seen=tuple(spec.experts),
            report=report(block),
        ),
        aggregator=AGGREGATOR,
    )


def _prompts(block: Block, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Prompt tokens of an expert's call and of the aggregator's, without proposals; both of shape (n,)."""
    spec = block.spec
    mean = np.array([c.prompt_tokens for c in spec.categories.values()])[block.questions.category]
    question = np.maximum(np.rint(_lognormal(mean, spec.prompt.log_sd, rng)), 10).astype(np.int64)
    return question + spec.prompt.template_tokens, question + spec.aggregator.template_tokens


def _lognormal(mean: Floats, log_sd: float, rng: np.random.Generator) -> Floats:
    return np.asarray(mean * np.exp(log_sd * rng.standard_normal(mean.shape) - log_sd**2 / 2))


def _aggregator_codes(block: Block, rng: np.random.Generator) -> Ints:
    """The aggregator's answers, shape (n,): when wrong mostly the popular distractor, or none if cut off."""
    n, options = len(block.aggregator_right), block.spec.answers.options
    other = rng.integers(2, options, n)
    wrong = np.where(rng.random(n) < _AGGREGATOR_FOLLOWS, 1, other)
    wrong = np.where(block.aggregator_cut, NO_ANSWER, wrong)
    return np.where(block.aggregator_right, CORRECT, wrong)


def _confidence(block: Block, rng: np.random.Generator) -> Floats:
    """A noisy, overconfident reading of the chance to be right; in (0, 1), shape as the answers.

    The published traces hold no confidences: this column lets confidence gates be tried, no more.
    """
    right = block.answers == CORRECT
    reading = 0.9 * block.questions.logit[:, :, None] + np.where(right, 1.5, 0.0)
    noisy = sigmoid(reading + 0.8 * rng.standard_normal(right.shape))
    return np.clip(np.round(noisy, 2), 0.01, 1.0)


def _visible(block: Block, tokens: Ints, cut: Bools, rng: np.random.Generator) -> Ints:
    """Tokens the aggregator reads, shape (n, experts * samples + 1).

    All of an instruction model's output; of a reasoning one's the text after ``</think>``, never more than
    half the output; all of it when it was cut off, because then there is no ``</think>``.
    """
    spec, samples = block.spec, block.answers.shape[2]
    thinks = np.array([*np.repeat([e.reasoning for e in spec.experts.values()], samples), True])
    after = np.minimum(np.rint(_visible_draw(spec.visible, tokens.shape, rng)).astype(np.int64), tokens // 2)
    return np.where(thinks & ~cut, np.maximum(after, 1), tokens)


def _visible_draw(spec: VisibleSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    return _lognormal(np.full(shape, spec.mean), float(np.sqrt(np.log1p(spec.cv**2))), rng)


def _slots(block: Block) -> Ints:
    """Slot each call fills in the recorded routing, -1 where it was not drawn; shape as the answers."""
    slots = np.full(block.answers.shape, _NO_SLOT, dtype=np.int64)
    if block.deal is not None:
        n, k = block.deal.shape
        slots[np.arange(n)[:, None], block.deal, routed_samples(block.deal)] = np.arange(k)
    return slots
