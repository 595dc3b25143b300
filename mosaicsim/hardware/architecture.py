"""A model's architecture, and the bytes that follow from it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt


class Architecture(BaseModel):
    """A dense decoder-only transformer with gated feed-forward layers, as its config.json states it.

    Norms and biases are left out of the counts: below 0.02 % in every model shipped.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    layers: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt
    head_dim: PositiveInt
    vocab_size: PositiveInt
    tied_embeddings: bool = False
    bytes_per_parameter: PositiveFloat = 2.0
    """Of the weights; 2 is bf16."""
    kv_bytes_per_value: PositiveInt = 2

    @property
    def matmul_parameters(self) -> int:
        """Parameters a decode step streams from memory: all but the input embedding table."""
        attention = self.hidden_size * self.head_dim * 2 * (self.heads + self.kv_heads)
        feed_forward = 3 * self.hidden_size * self.intermediate_size
        return self.layers * (attention + feed_forward) + self.hidden_size * self.vocab_size

    @property
    def parameters(self) -> int:
        """All parameters; tied embeddings are stored once."""
        embedding = 0 if self.tied_embeddings else self.hidden_size * self.vocab_size
        return self.matmul_parameters + embedding

    @property
    def weight_bytes(self) -> float:
        """Bytes of the weights on all GPUs together."""
        return self.parameters * self.bytes_per_parameter

    @property
    def streamed_bytes(self) -> float:
        """Bytes of the weights that every decode step reads."""
        return self.matmul_parameters * self.bytes_per_parameter

    def kv_bytes_per_token(self, tp: int = 1) -> int:
        """``2 x layers x kv_heads x head_dim x bytes``, on ``tp`` GPUs together.

        A GPU holds at least one KV head, so beyond ``kv_heads`` GPUs the heads are replicated.
        """
        return 2 * self.layers * max(self.kv_heads, tp) * self.head_dim * self.kv_bytes_per_value

    def kv_capacity_tokens(self, free_bytes: NonNegativeFloat, tp: int) -> int:
        """Context tokens whose KV fits in ``free_bytes`` of the ``tp`` GPUs together."""
        return int(free_bytes // self.kv_bytes_per_token(tp))
