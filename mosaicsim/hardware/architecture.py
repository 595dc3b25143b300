"""A model's architecture, and the bytes that follow from it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator


class Architecture(BaseModel):
    """A decoder-only transformer with gated feed-forward layers, as its config.json states it.

    Norms and biases are left out of the counts: below 0.02 % in every model shipped. A mixture of experts
    has ``feed_forwards`` of ``intermediate_size`` in each layer, of which a token runs through
    ``feed_forwards_per_token``; a dense model has one.
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
    feed_forwards: PositiveInt = 1
    feed_forwards_per_token: PositiveInt = 1
    bytes_per_parameter: PositiveFloat = 2.0
    """Of the weights; 2 is bf16."""
    kv_bytes_per_value: PositiveInt = 2

    @model_validator(mode="after")
    def _per_token_within(self) -> Architecture:
        if self.feed_forwards_per_token > self.feed_forwards:
            raise ValueError(
                f"feed_forwards_per_token ({self.feed_forwards_per_token}) exceeds "
                f"feed_forwards ({self.feed_forwards})"
            )
        return self

    @property
    def is_mixture(self) -> bool:
        """Whether a token runs through some of the weights only."""
        return self.feed_forwards > 1

    @property
    def matmul_parameters(self) -> int:
        """Parameters a large step streams from memory: all but the input embedding table."""
        return self._matmul_parameters(self.feed_forwards)

    @property
    def active_parameters(self) -> int:
        """Parameters one token is multiplied with; of a dense model all that are streamed."""
        return self._matmul_parameters(self.feed_forwards_per_token)

    def streamed_parameters(self, tokens: int) -> float:
        """Parameters a step of ``tokens`` streams, when each token picks its feed-forwards independently.

        Of f feed-forwards, ``f (1 - (1 - f_token / f)^tokens)`` are expected to be picked by some token.
        """
        total = self.feed_forwards
        picked = total * (1 - (1 - self.feed_forwards_per_token / total) ** tokens)
        return self._matmul_parameters(0) + picked * self._feed_forward

    @property
    def _feed_forward(self) -> int:
        """Parameters of one feed-forward in every layer."""
        return self.layers * 3 * self.hidden_size * self.intermediate_size

    def _matmul_parameters(self, feed_forwards: int) -> int:
        attention = self.hidden_size * self.head_dim * 2 * (self.heads + self.kv_heads)
        router = self.hidden_size * self.feed_forwards if self.is_mixture else 0
        head = self.hidden_size * self.vocab_size
        return self.layers * (attention + router) + feed_forwards * self._feed_forward + head

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
        """Bytes of the weights that a large decode step reads; of a dense model, every one."""
        return self.matmul_parameters * self.bytes_per_parameter

    def kv_bytes_per_token(self, tp: int = 1) -> int:
        """``2 x layers x kv_heads x head_dim x bytes``, on ``tp`` GPUs together.

        A GPU holds at least one KV head, so beyond ``kv_heads`` GPUs the heads are replicated.
        """
        return 2 * self.layers * max(self.kv_heads, tp) * self.head_dim * self.kv_bytes_per_value

    def kv_capacity_tokens(self, free_bytes: NonNegativeFloat, tp: int) -> int:
        """Context tokens whose KV fits in ``free_bytes`` of the ``tp`` GPUs together."""
        return int(free_bytes // self.kv_bytes_per_token(tp))
