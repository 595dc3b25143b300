"""Wrong costs: what schedulers are told of lengths, off by a factor, to see what that does to plans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mosaicsim.workload.calls import Calibration, Floats, Ints, Workload


def with_cost_error(workload: Workload, factor: float, rng: np.random.Generator) -> Workload:
    """The workload with calibration lengths ``factor`` times too long or too short, by expert at random.

    As many experts err one way as the other, within one: an error all share would change no plan. What
    comes of the calls stays as it is, and so do the tokens that the aggregator is told to read of them.
    """
    if factor == 1:
        return workload
    n = len(workload.experts)
    signs = rng.permutation(np.resize([1.0, -1.0], n))
    scale = factor**signs
    told = workload.calibration
    return replace(
        workload,
        calibration=replace(
            told,
            output_tokens=tuple(
                _scaled(own, s) for own, s in zip(told.output_tokens, scale.tolist(), strict=True)
            ),
            lengths=_lengths(told, scale),
        ),
    )


def _scaled(lengths: Ints, scale: float) -> Ints:
    return np.asarray(np.maximum(np.rint(lengths * scale), 1), np.int64)


def _lengths(told: Calibration, scale: Floats) -> Ints:
    """Lengths by (question, expert, sample); 0 stays 0: nothing was profiled there."""
    if not len(told.lengths):
        return told.lengths
    scaled = np.maximum(np.rint(told.lengths * scale[:, None]), 1).astype(np.int64)
    return np.asarray(np.where(told.lengths > 0, scaled, 0), np.int64)
