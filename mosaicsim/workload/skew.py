"""The length-skew knob: longer, more uneven or looping outputs, as a what-if on a trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from mosaicsim.errors import ScenarioError, nearest
from mosaicsim.validation import StrictModel
from mosaicsim.workload.calls import Floats, Ints
from mosaicsim.workload.validate import MAX_TOKENS

PositiveFloat = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class LengthSkew(StrictModel):
    """What to do to output lengths: one number for the whole pool, or a number an expert (others unchanged).

    Lengths only: answers and grades stay as they are, so that a comparison isolates the lengths.
    """

    mean_ratio: PositiveFloat | dict[str, PositiveFloat] = 1.0
    """New mean over old, before loops and the cap."""

    cv: PositiveFloat | dict[str, PositiveFloat] | None = None
    """Standard deviation over mean, before loops and the cap: log-lengths are stretched around their mean."""

    loop_share: Share | dict[str, Share] = 0.0
    """Share of an expert's calls that run into the cap (generation loops); those that already do count."""

    cap: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    """max_tokens of the skewed lengths; unless given, the trace's caps, else each expert's longest output."""

    def expert_names(self) -> set[str]:
        """Experts named by some option."""
        return {n for v in (self.mean_ratio, self.cv, self.loop_share) if isinstance(v, dict) for n in v}


@dataclass(frozen=True)
class Lengths:
    """Expert rows of a trace, shape (rows,): who, how long, how much of it visible; ``caps`` is by expert."""

    experts: tuple[str, ...]
    expert: Ints
    output_tokens: Ints
    visible_tokens: Ints
    caps: dict[str, int]


def skew_lengths(lengths: Lengths, skew: LengthSkew, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Skewed (output_tokens, visible_tokens), each of shape (rows,).

    Text that was all visible stays all visible; a reasoning call keeps its visible text, cut to the new
    length; a loop that never ends its reasoning is visible as a whole, as a truncated trace is.
    Raises ScenarioError: an expert is not in the pool, or a CV cannot be reached.
    """
    for name in sorted(skew.expert_names() - set(lengths.experts)):
        raise ScenarioError(f"length skew: no expert '{name}' in the trace{nearest(name, lengths.experts)}")
    output = lengths.output_tokens.copy()
    visible = lengths.visible_tokens.copy()
    for index, name in enumerate(lengths.experts):
        rows = np.flatnonzero(lengths.expert == index)
        if len(rows):
            old = lengths.output_tokens[rows]
            new = _of_expert(name, old, skew, skew.cap or lengths.caps.get(name), rng)
            whole = (visible[rows] == old) | (new.loop & (new.tokens != old))
            visible[rows] = np.where(whole, new.tokens, np.minimum(visible[rows], new.tokens))
            output[rows] = new.tokens
    return output, visible


@dataclass(frozen=True)
class _Skewed:
    tokens: Ints
    loop: np.typing.NDArray[np.bool_]


def _of_expert(name: str, old: Ints, skew: LengthSkew, cap: int | None, rng: np.random.Generator) -> _Skewed:
    ratio = _of(skew.mean_ratio, name, 1.0)
    cv = _of(skew.cv, name, None)
    loops = _of(skew.loop_share, name, 0.0)
    exact: Floats = old.astype(np.float64)
    if cv is not None:
        exact = _stretch(name, exact, cv)
    limit = cap or (MAX_TOKENS if not loops else int(old.max()))
    tokens = np.clip(np.rint(exact * (ratio or 1.0)), 1, limit).astype(np.int64)
    short = np.flatnonzero(tokens < limit)
    missing = round((loops or 0.0) * len(old)) - (len(old) - len(short))
    if missing > 0:
        tokens[rng.choice(short, missing, replace=False)] = limit
    return _Skewed(tokens, tokens == limit)


def _stretch(name: str, lengths: Floats, cv: float) -> Floats:
    """Lengths with their CV set to ``cv`` and their mean kept, by one factor on the log-lengths."""
    logs = np.log(lengths)
    logs -= logs.max()

    def stretched(factor: float) -> Floats:
        return np.asarray(np.exp(logs * factor))

    low, high = 0.0, 1.0
    while _cv(stretched(high)) < cv:
        high *= 2
        if high > 1e3:
            raise ScenarioError(
                f"length skew: cv = {cv:g} cannot be reached by stretching the {len(lengths):,} lengths "
                f"of '{name}'"
            )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _cv(stretched(middle)) < cv else (low, middle)
    new = stretched(high)
    return np.asarray(new * (lengths.mean() / new.mean()))


def _cv(lengths: Floats) -> float:
    return float(lengths.std() / lengths.mean())


def _of(option: float | dict[str, float] | None, name: str, default: float | None) -> float | None:
    return option.get(name, default) if isinstance(option, dict) else option
