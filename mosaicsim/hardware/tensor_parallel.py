"""How a model speeds up on several GPUs.

Amdahl's law, ``speedup = 1 / (s + (1 - s) / tp)``: s, the share of a step that does not shrink with tp, is
the all-reduces, two a layer. It is fitted to the reference model's known speed-up and carried to another
model as the ratio of what the all-reduces cost (layers; for prefill, whose messages are as wide as the
hidden state, layers x hidden_size) to what the matrices cost (parameters). Larger models scale better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mosaicsim.hardware.architecture import Architecture

DEGREES = (1, 2, 4, 8)
"""Tensor-parallel degrees that are modelled: GPUs of one host."""


@dataclass(frozen=True)
class TensorParallelScaling:
    """Speed-ups of ``reference`` at ``reference_tp`` GPUs, and how much longer its engine takes to start."""

    reference: Architecture
    reference_tp: int
    prefill_speedup: float
    decode_speedup: float
    start_factor: float

    def decode(self, model: Architecture, tp: int) -> float:
        """Speed-up of a decode-only step."""
        relative = _layers_per_parameter(model) / _layers_per_parameter(self.reference)
        return _amdahl(self._serial_share(self.decode_speedup) * relative, tp)

    def prefill(self, model: Architecture, tp: int) -> float:
        """Speed-up of a step that prefills."""
        relative = _layers_per_parameter(model) / _layers_per_parameter(self.reference)
        width = model.hidden_size / self.reference.hidden_size
        return _amdahl(self._serial_share(self.prefill_speedup) * relative * width, tp)

    def context(self, model: Architecture, tp: int) -> float:
        """Speed-up of reading the KV cache: as decode, but not beyond the KV heads there are to share."""
        return min(self.decode(model, tp), float(model.kv_heads))

    def start(self, tp: int) -> float:
        """Factor on the engine's start-up: 1 at one GPU, linear in log2(tp) through the reference."""
        return 1 + (self.start_factor - 1) * math.log2(tp) / math.log2(self.reference_tp)

    def _serial_share(self, speedup: float) -> float:
        tp = self.reference_tp
        return (1 / speedup - 1 / tp) / (1 - 1 / tp)


def _layers_per_parameter(model: Architecture) -> float:
    return model.layers / model.matmul_parameters


def _amdahl(serial_share: float, tp: int) -> float:
    share = min(serial_share, 1.0)
    return 1 / (share + (1 - share) / tp)
