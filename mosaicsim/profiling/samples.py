"""One engine iteration as it was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median


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
    context_tokens: int
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
    groups: dict[tuple[int, int, int, float], list[StepSample]] = {}
    for s in samples:
        groups.setdefault((s.point, s.batch, s.prefill_tokens, s.pairs), []).append(s)
    return [_median(group) for group in groups.values()]


def _median(group: Sequence[StepSample]) -> StepSample:
    return replace(
        group[0],
        context_tokens=round(median(s.context_tokens for s in group)),
        seconds=median(s.seconds for s in group),
        host_s=median(s.host_s for s in group),
    )
