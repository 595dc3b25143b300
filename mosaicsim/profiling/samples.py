"""One engine iteration as it was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median


@dataclass(frozen=True)
class StepSample:
    """What was in a step and how long it took; the words are those of :mod:`mosaicsim.hardware.latency`.

    ``batch`` decode sequences; ``prefill_tokens`` computed of prompts; ``context_tokens`` that either finds
    in the cache (a decode's own token included); ``pairs`` of a prefilled token and one before it. ``host_s``
    of the ``seconds`` were not the model's. ``point`` is the point of the design it belongs to.
    """

    point: int
    held_out: bool
    batch: int
    prefill_tokens: int
    context_tokens: float
    pairs: float
    seconds: float
    host_s: float

    @property
    def model_s(self) -> float:
        """Seconds of the model alone."""
        return self.seconds - self.host_s


def medians(samples: Iterable[StepSample]) -> list[StepSample]:
    """One sample for all that repeat a step: the same point, batch and prefill, at much the same context.

    A step that the machine disturbed is one of several, and a median does not see it.
    """
    return [_median(group) for group in _groups(samples)]


def spread_pct(samples: Iterable[StepSample]) -> float:
    """Mean distance of repeated steps from their median, in percent: how quiet the machine was."""
    far = [
        abs(s.seconds / middle - 1)
        for group in _groups(samples)
        if len(group) > 1
        for middle in [median(s.seconds for s in group)]
        for s in group
    ]
    return 100 * mean(far) if far else 0.0


def _groups(samples: Iterable[StepSample]) -> list[list[StepSample]]:
    groups: dict[tuple[int, int, int, float], list[StepSample]] = {}
    for s in samples:
        groups.setdefault((s.point, s.batch, s.prefill_tokens, s.pairs), []).append(s)
    return list(groups.values())


def _median(group: Sequence[StepSample]) -> StepSample:
    return replace(
        group[0],
        context_tokens=median(s.context_tokens for s in group),
        seconds=median(s.seconds for s in group),
        host_s=median(s.host_s for s in group),
    )
