"""Fitting latency models to measured steps, and how far they are off on steps they were not fitted to.

Every fit is of relative errors: a millisecond matters in a step of ten, not in one of a thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mosaicsim.hardware.latency import (
    HostOverhead,
    LatencyModel,
    OperatorLatency,
    StepTables,
    TwoRegimeLatency,
)
from mosaicsim.profiling.samples import StepSample, medians

Floats = npt.NDArray[np.float64]
Fit = Callable[[Sequence[StepSample]], LatencyModel]

ROUNDS = 12
"""Of reweighting: enough for the weights to settle."""

SIMPLER_WITHIN = 1.1
"""Two straight lines are kept where tables are not better by more than this factor."""


@dataclass(frozen=True)
class FitError:
    """Mean absolute percentage error on samples that were not fitted, by kind of step, and their number."""

    decode_pct: float
    mixed_pct: float
    decodes: int
    mixed: int

    @property
    def pct(self) -> float:
        """Both kinds alike."""
        return (self.decode_pct + self.mixed_pct) / 2


def best_fit(samples: Sequence[StepSample]) -> tuple[LatencyModel, dict[str, FitError]]:
    """Fit both forms to the samples that are not held out; return the better, and both errors by form.

    Raises ValueError where there are too few samples to fit or to hold out.
    """
    points = medians(samples)
    fitted = [s for s in points if not s.held_out]
    others = [s for s in points if s.held_out]
    models: dict[str, LatencyModel] = {
        "two_regime": fit_two_regime(fitted),
        "operators": fit_operators(fitted),
    }
    errors = {form: held_out_error(model, others) for form, model in models.items()}
    simple = errors["two_regime"].pct <= SIMPLER_WITHIN * errors["operators"].pct
    return models["two_regime" if simple else "operators"], errors


def fit_host(samples: Sequence[StepSample]) -> HostOverhead:
    """Host seconds of a step as a line in the number of sequences, from decode-only steps."""
    points = [s for s in medians(samples) if not s.prefill_tokens]
    columns = np.array([[1.0, s.batch] for s in points])
    base, each = _least(columns, np.array([s.host_s for s in points]))
    return HostOverhead(base, each)


def fit_two_regime(samples: Sequence[StepSample]) -> TwoRegimeLatency:
    """Two lines: decode-only steps in (1, B, C), steps with prefill in (1, B, P, C). Seconds of the model."""
    decodes, mixed = _split(samples, least=2)
    base, batch, context = _fit(decodes, lambda s: [1.0, s.batch, s.context_tokens])
    fixed, beside, token, seen = _fit(mixed, lambda s: [1.0, s.batch, s.prefill_tokens, s.context_tokens])
    return TwoRegimeLatency(base, batch, context, fixed, beside, token, seen)


def fit_operators(samples: Sequence[StepSample]) -> OperatorLatency:
    """Tables: decode-only steps by B, steps with prefill by B + P and a line in B; attention by its tokens.

    The points of a table are those that were measured. Seconds of the model.
    """
    decodes, mixed = _split(samples, least=2)
    batches = _knots([s.batch for s in decodes])
    *decode_s, context = _fit(decodes, lambda s: [*_hats(batches, s.batch), s.context_tokens])
    tokens = _knots([s.batch + s.prefill_tokens for s in mixed])
    *tokens_s, beside, seen, pair = _fit(
        mixed,
        lambda s: [*_hats(tokens, s.batch + s.prefill_tokens), s.batch, s.context_tokens, s.pairs],
    )
    return OperatorLatency(
        batch=(0.0, *batches),
        decode_s=(decode_s[0], *decode_s),
        mixed_s=(0.0, *(beside * b for b in batches)),
        tokens=(0.0, *tokens),
        tokens_s=(tokens_s[0], *tokens_s),
        decode_per_context_token_s=context,
        mixed_per_context_token_s=seen,
        mixed_per_pair_s=pair,
    )


def held_out_error(model: LatencyModel, samples: Sequence[StepSample]) -> FitError:
    """How far ``model`` is off on ``samples``, none of which it may have been fitted to."""
    decodes, mixed = _split(samples, least=1)
    tables = model.compile(
        max(s.batch for s in samples), max(s.prefill_tokens for s in samples), HostOverhead()
    )
    return FitError(_mape(tables, decodes), _mape(tables, mixed), len(decodes), len(mixed))


def step_s(tables: StepTables, s: StepSample) -> float:
    """What ``tables`` say of a step like ``s``."""
    if s.prefill_tokens:
        return tables.mixed_s(s.batch, s.prefill_tokens, s.context_tokens, s.pairs)
    return tables.decode_s(s.batch, s.context_tokens)


def _mape(tables: StepTables, samples: Sequence[StepSample]) -> float:
    return float(np.mean([abs(step_s(tables, s) / s.model_s - 1) for s in samples]) * 100)


def _split(samples: Sequence[StepSample], least: int) -> tuple[list[StepSample], list[StepSample]]:
    """Decode-only steps, and those with prefill. Raises ValueError for fewer than ``least`` of either."""
    decodes = [s for s in samples if not s.prefill_tokens]
    mixed = [s for s in samples if s.prefill_tokens]
    if min(len(decodes), len(mixed)) < least:
        raise ValueError(f"{len(decodes)} decode-only steps and {len(mixed)} with prefill are too few to fit")
    return decodes, mixed


def _fit(samples: Sequence[StepSample], row: Callable[[StepSample], list[float]]) -> list[float]:
    columns = np.array([row(s) for s in samples], np.float64)
    return _least(columns, np.array([s.model_s for s in samples]))


def _least(columns: Floats, seconds: Floats) -> list[float]:
    """Non-negative coefficients of least absolute relative error, by reweighted least squares.

    Absolute errors, so that a few disturbed steps do not pull the rest along.
    """
    weights = 1 / seconds
    for _ in range(ROUNDS):
        found = _non_negative(columns * weights[:, None], seconds * weights)
        relative = np.abs(columns @ found / seconds - 1)
        weights = 1 / (seconds * np.sqrt(np.maximum(relative, 0.005)))
    return [float(x) for x in found]


def _non_negative(columns: Floats, target: Floats) -> Floats:
    """Least squares without negative coefficients: what comes out below 0 is left out, worst first."""
    found = np.zeros(columns.shape[1])
    scale = np.abs(columns).max(axis=0)
    kept = [j for j in range(columns.shape[1]) if scale[j] > 0]
    while kept:
        values = np.linalg.lstsq(columns[:, kept] / scale[kept], target, rcond=None)[0]
        if values.min() >= 0:
            found[kept] = values / scale[kept]
            break
        del kept[int(values.argmin())]
    return found


def _knots(values: Sequence[int]) -> list[float]:
    """Ascending points of a table, no two of them nearer than a fifth: nearer ones only share the noise."""
    knots: list[float] = []
    for value in sorted(set(values)):
        if not knots or value >= 1.2 * knots[-1] or value <= knots[-1] + 1:
            knots.append(float(value))
    knots[-1] = float(max(values))
    return knots


def _hats(knots: Sequence[float], at: float) -> list[float]:
    """Weights of linear interpolation at ``at``, one a knot; flat beyond the ends."""
    return [float(np.interp(at, knots, unit)) for unit in np.eye(len(knots))]
