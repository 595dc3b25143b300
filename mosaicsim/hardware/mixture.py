"""Iteration times of a mixture of experts, derived from a dense model's.

A mixture has many feed-forwards a layer, of which a token runs through few. A dense model streams the same
weights in every decode step; a mixture streams the feed-forwards that some sequence picked: few at one
sequence, nearly all from about 64 on. Its arithmetic is that of the active ones.
"""

from __future__ import annotations

from mosaicsim.hardware.architecture import Architecture
from mosaicsim.hardware.latency import TabulatedLatency, TwoRegimeLatency

ALL_PICKED_TOKENS = 1024
"""Tokens at which a step's weights are taken to be complete: 8 of 512 feed-forwards leave 1e-7 unpicked."""


def mixture_latency(
    dense: TwoRegimeLatency, dense_shape: Architecture, shape: Architecture
) -> TabulatedLatency:
    """The latency of the mixture ``shape`` on the device where ``dense_shape`` has the latency ``dense``.

    Decode-only: the base, which streams weights, scales with the weights that B sequences stream
    (:meth:`~mosaicsim.hardware.architecture.Architecture.streamed_parameters`); the part per sequence,
    arithmetic, with the active weights. A step with prefill streams all weights, in the decode-only base's
    time, or takes its arithmetic's time if that is longer. Context costs scale with KV bytes a token.
    The kernels are taken to be as efficient as the dense ones, which no published table confirms.
    """
    active = shape.active_parameters / dense_shape.matmul_parameters
    context = shape.kv_bytes_per_token() / dense_shape.kv_bytes_per_token()
    batch = range(ALL_PICKED_TOKENS + 1)
    weights = [shape.streamed_parameters(max(b, 1)) / dense_shape.matmul_parameters for b in batch]
    streaming_s = dense.decode_base_s * shape.matmul_parameters / dense_shape.matmul_parameters
    knee = (streaming_s / active - dense.mixed_base_s) / dense.mixed_per_prefill_token_s
    beyond_s = dense.mixed_per_prefill_token_s * active * knee
    return TabulatedLatency(
        batch=tuple(map(float, batch)),
        decode_s=tuple(
            dense.decode_base_s * w + dense.decode_per_sequence_s * active * b
            for b, w in zip(batch, weights, strict=True)
        ),
        mixed_s=tuple(dense.mixed_per_sequence_s * active * b for b in batch),
        prefill_tokens=(0.0, knee, 2 * knee),
        prefill_s=(streaming_s, streaming_s, streaming_s + beyond_s),
        decode_per_context_token_s=dense.decode_per_context_token_s * context,
        mixed_per_context_token_s=dense.mixed_per_context_token_s * context,
    )
