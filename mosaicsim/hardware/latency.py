"""How long one engine iteration takes, as a function of what is in it.

An iteration is described by B decode sequences, P prefill tokens and C context tokens: those that the
decode sequences attend to (the token being computed included), and those that the chunks being prefilled
find computed already. For a fixed B every form here is affine in C, so n equal decode iterations, in which
C grows by B each time, cost an arithmetic series in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class HostOverhead:
    """CPU time the engine spends between iterations, in seconds: ``base_s + per_sequence_s * B``."""

    base_s: float = 0.0
    per_sequence_s: float = 0.0

    def seconds(self, batch: int) -> float:
        """Of an iteration with so many decode sequences."""
        return self.base_s + self.per_sequence_s * batch


NO_OVERHEAD = HostOverhead()


@dataclass(frozen=True)
class StepTables:
    """A latency model compiled for one engine: plain lists, because the engine's inner loop indexes them.

    A decode-only step of B sequences over C context tokens takes ``decode_base[B] + decode_context * C``
    seconds. A step that also prefills P tokens takes ``mixed_base[B] + prefill[P] + tokens[B + P] +
    mixed_context * C + mixed_pair * pairs``. B counts the decode sequences of the step; a pair is a prefilled
    token and a token before it that it attends to, c (h + c / 2) of them in a chunk of c tokens after h.
    ``decode_base`` and ``mixed_base`` have max_num_seqs + 1 entries, ``prefill`` max_prefill_tokens + 1 and
    ``tokens`` the sum of both + 1 (zeros where a form leaves it out); host overhead is inside the bases.
    """

    decode_base: list[float]
    decode_context: float
    mixed_base: list[float]
    prefill: list[float]
    mixed_context: float
    tokens: list[float] = field(default_factory=list)
    mixed_pair: float = 0.0

    def __post_init__(self) -> None:
        """Fill in ``tokens`` where a form has none."""
        if not self.tokens:
            self.tokens.extend([0.0] * (len(self.mixed_base) + len(self.prefill) - 1))

    @cached_property
    def prefill_alone(self) -> list[float]:
        """``prefill[P] + tokens[P]``: of a step that decodes nothing, as all prefills of V0. Made once."""
        return [s + tokens for s, tokens in zip(self.prefill, self.tokens[: len(self.prefill)], strict=True)]

    def decode_s(self, batch: int, context_tokens: float) -> float:
        """Seconds of one decode-only step."""
        return self.decode_base[batch] + self.decode_context * context_tokens

    def mixed_s(self, batch: int, prefill_tokens: int, context_tokens: float, pairs: float = 0.0) -> float:
        """Seconds of one step that decodes ``batch`` sequences and prefills ``prefill_tokens``."""
        attention_s = self.mixed_context * context_tokens + self.mixed_pair * pairs
        tokens_s = self.prefill[prefill_tokens] + self.tokens[batch + prefill_tokens]
        return self.mixed_base[batch] + tokens_s + attention_s

    def decode_span_s(self, batch: int, context_tokens: float, steps: int) -> float:
        """Seconds of ``steps`` equal decode-only steps, the first of which sees ``context_tokens``.

        Each step adds ``batch`` tokens of context, so the sum is an arithmetic series.
        """
        context_sum = steps * context_tokens + batch * steps * (steps - 1) / 2
        return steps * self.decode_base[batch] + self.decode_context * context_sum


class LatencyModel(Protocol):
    """Seconds of one iteration; anything that compiles to :class:`StepTables` can drive the engine."""

    def compile(self, max_num_seqs: int, max_prefill_tokens: int, host: HostOverhead) -> StepTables:
        """Tabulate the model for an engine of this size."""
        ...


class ScalableLatency(LatencyModel, Protocol):
    """A latency model that can be carried over to another model or tensor-parallel degree."""

    def scaled(self, *, decode: float, prefill: float, context: float) -> Self:
        """Multiply the decode part, the prefill part and the cost of a context token by these factors."""
        ...


@dataclass(frozen=True)
class TwoRegimeLatency:
    """Decode-only steps and steps with prefill, each linear; coefficients in seconds.

    decode-only: ``decode_base_s + decode_per_sequence_s B + decode_per_context_token_s C``;
    with prefill: ``mixed_base_s + mixed_per_sequence_s B + mixed_per_prefill_token_s P
    + mixed_per_context_token_s C``.
    """

    decode_base_s: float
    decode_per_sequence_s: float
    decode_per_context_token_s: float
    mixed_base_s: float
    mixed_per_sequence_s: float
    mixed_per_prefill_token_s: float
    mixed_per_context_token_s: float

    def compile(self, max_num_seqs: int, max_prefill_tokens: int, host: HostOverhead) -> StepTables:
        """See :class:`LatencyModel`."""
        batch = np.arange(max_num_seqs + 1, dtype=np.float64)
        host_s = host.base_s + host.per_sequence_s * batch
        prefill = self.mixed_per_prefill_token_s * np.arange(max_prefill_tokens + 1, dtype=np.float64)
        return StepTables(
            decode_base=(self.decode_base_s + self.decode_per_sequence_s * batch + host_s).tolist(),
            decode_context=self.decode_per_context_token_s,
            mixed_base=(self.mixed_base_s + self.mixed_per_sequence_s * batch + host_s).tolist(),
            prefill=prefill.tolist(),
            mixed_context=self.mixed_per_context_token_s,
        )

    def scaled(self, *, decode: float, prefill: float, context: float) -> TwoRegimeLatency:
        """See :class:`ScalableLatency`; a step with prefill counts as prefill, but for its context."""
        return TwoRegimeLatency(
            decode_base_s=self.decode_base_s * decode,
            decode_per_sequence_s=self.decode_per_sequence_s * decode,
            decode_per_context_token_s=self.decode_per_context_token_s * context,
            mixed_base_s=self.mixed_base_s * prefill,
            mixed_per_sequence_s=self.mixed_per_sequence_s * prefill,
            mixed_per_prefill_token_s=self.mixed_per_prefill_token_s * prefill,
            mixed_per_context_token_s=self.mixed_per_context_token_s * context,
        )


@dataclass(frozen=True)
class HingeLatency:
    """Streaming the weights is a floor under the arithmetic, which grows with every token of the step.

    ``max(floor_s, base_s + per_token_s (B + P)) + per_sequence_s B + per_context_token_s C
    + per_prefill_token_squared_s P^2``, coefficients in seconds. For Llama-3.1-8B the floor ends at 53 tokens
    on an A100, at 168 on an H100.
    """

    floor_s: float
    base_s: float
    per_token_s: float
    per_sequence_s: float
    per_context_token_s: float
    per_prefill_token_squared_s: float

    def compile(self, max_num_seqs: int, max_prefill_tokens: int, host: HostOverhead) -> StepTables:
        """See :class:`LatencyModel`."""
        batch = np.arange(max_num_seqs + 1, dtype=np.float64)
        prefill = np.arange(max_prefill_tokens + 1, dtype=np.float64)
        step = np.arange(max_num_seqs + max_prefill_tokens + 1, dtype=np.float64)
        matrices_s = np.maximum(self.floor_s, self.base_s + self.per_token_s * step)
        beside_s = self.per_sequence_s * batch + host.base_s + host.per_sequence_s * batch
        return StepTables(
            decode_base=(matrices_s[: max_num_seqs + 1] + beside_s).tolist(),
            decode_context=self.per_context_token_s,
            mixed_base=beside_s.tolist(),
            prefill=(self.per_prefill_token_squared_s * prefill**2).tolist(),
            mixed_context=self.per_context_token_s,
            tokens=matrices_s.tolist(),
        )

    def scaled(self, *, decode: float, prefill: float, context: float) -> HingeLatency:
        """See :class:`ScalableLatency`; the floor is decode, the arithmetic is prefill."""
        return HingeLatency(
            floor_s=self.floor_s * decode,
            base_s=self.base_s * prefill,
            per_token_s=self.per_token_s * prefill,
            per_sequence_s=self.per_sequence_s * decode,
            per_context_token_s=self.per_context_token_s * context,
            per_prefill_token_squared_s=self.per_prefill_token_squared_s * prefill,
        )


@dataclass(frozen=True)
class TabulatedLatency:
    """Measured step times, interpolated linearly between the points and affine in C; seconds.

    At ``batch[i]`` decode sequences a decode-only step takes ``decode_s[i]`` and a step with prefill
    ``mixed_s[i]`` plus ``prefill_s[j]`` for ``prefill_tokens[j]``, all without context; each context token
    adds its own. Points ascend, two or more of each. Below the first point the first value holds, beyond
    the last the last slope goes on.
    """

    batch: tuple[float, ...]
    decode_s: tuple[float, ...]
    mixed_s: tuple[float, ...]
    prefill_tokens: tuple[float, ...]
    prefill_s: tuple[float, ...]
    decode_per_context_token_s: float
    mixed_per_context_token_s: float

    def compile(self, max_num_seqs: int, max_prefill_tokens: int, host: HostOverhead) -> StepTables:
        """See :class:`LatencyModel`."""
        batch = np.arange(max_num_seqs + 1, dtype=np.float64)
        tokens = np.arange(max_prefill_tokens + 1, dtype=np.float64)
        host_s = host.base_s + host.per_sequence_s * batch
        return StepTables(
            decode_base=(_interpolate(batch, self.batch, self.decode_s) + host_s).tolist(),
            decode_context=self.decode_per_context_token_s,
            mixed_base=(_interpolate(batch, self.batch, self.mixed_s) + host_s).tolist(),
            prefill=_interpolate(tokens, self.prefill_tokens, self.prefill_s).tolist(),
            mixed_context=self.mixed_per_context_token_s,
        )

    def scaled(self, *, decode: float, prefill: float, context: float) -> TabulatedLatency:
        """See :class:`ScalableLatency`."""
        return TabulatedLatency(
            batch=self.batch,
            decode_s=tuple(s * decode for s in self.decode_s),
            mixed_s=tuple(s * prefill for s in self.mixed_s),
            prefill_tokens=self.prefill_tokens,
            prefill_s=tuple(s * prefill for s in self.prefill_s),
            decode_per_context_token_s=self.decode_per_context_token_s * context,
            mixed_per_context_token_s=self.mixed_per_context_token_s * context,
        )


@dataclass(frozen=True)
class OperatorLatency:
    """Step times summed from the measured times of the operators in it; seconds.

    At ``batch[i]`` decode sequences a decode-only step takes ``decode_s[i]``, and a step with prefill
    ``mixed_s[i]`` plus ``tokens_s[j]`` for ``tokens[j]`` tokens of decode and prefill together, all without
    attention to context. Each context token adds its own, and in a step with prefill each pair of a
    prefilled token and one it attends to, so that long prompts cost what their attention does. Between and
    beyond the points as in :class:`TabulatedLatency`.
    """

    batch: tuple[float, ...]
    decode_s: tuple[float, ...]
    mixed_s: tuple[float, ...]
    tokens: tuple[float, ...]
    tokens_s: tuple[float, ...]
    decode_per_context_token_s: float
    mixed_per_context_token_s: float
    mixed_per_pair_s: float

    def compile(self, max_num_seqs: int, max_prefill_tokens: int, host: HostOverhead) -> StepTables:
        """See :class:`LatencyModel`."""
        batch = np.arange(max_num_seqs + 1, dtype=np.float64)
        step = np.arange(max_num_seqs + max_prefill_tokens + 1, dtype=np.float64)
        host_s = host.base_s + host.per_sequence_s * batch
        return StepTables(
            decode_base=(_interpolate(batch, self.batch, self.decode_s) + host_s).tolist(),
            decode_context=self.decode_per_context_token_s,
            mixed_base=(_interpolate(batch, self.batch, self.mixed_s) + host_s).tolist(),
            prefill=[0.0] * (max_prefill_tokens + 1),
            mixed_context=self.mixed_per_context_token_s,
            tokens=_interpolate(step, self.tokens, self.tokens_s).tolist(),
            mixed_pair=self.mixed_per_pair_s,
        )

    def scaled(self, *, decode: float, prefill: float, context: float) -> OperatorLatency:
        """See :class:`ScalableLatency`; attention of prefilled tokens is context."""
        return OperatorLatency(
            batch=self.batch,
            decode_s=tuple(s * decode for s in self.decode_s),
            mixed_s=tuple(s * prefill for s in self.mixed_s),
            tokens=self.tokens,
            tokens_s=tuple(s * prefill for s in self.tokens_s),
            decode_per_context_token_s=self.decode_per_context_token_s * context,
            mixed_per_context_token_s=self.mixed_per_context_token_s * context,
            mixed_per_pair_s=self.mixed_per_pair_s * context,
        )


def _interpolate(
    at: npt.NDArray[np.float64], points: tuple[float, ...], values: tuple[float, ...]
) -> npt.NDArray[np.float64]:
    """Linear between the points, constant before the first, the last slope after the last."""
    slope = (values[-1] - values[-2]) / (points[-1] - points[-2])
    beyond = np.maximum(at - points[-1], 0.0)
    return np.interp(at, points, values) + slope * beyond
