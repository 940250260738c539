"""Sizes of a T5 model with gated feed-forward, and the number of parameters in its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class T5Sizes:
    """Sizes of the released model.

    Attributes:
        layers: number of layers of the encoder, and of the decoder that is released with it.
        width, heads, head_dim, ffn, vocabulary: the usual sizes of a transformer.
        buckets: number of buckets of relative positions.
    """

    layers: int
    width: int
    heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    buckets: int = 32

    @property
    def encoder_parameters(self) -> int:
        """Number of parameters of the encoder and its embedding, which is what a bundle needs."""
        inner = self.heads * self.head_dim
        layer = 4 * self.width * inner + 3 * self.width * self.ffn + 2 * self.width
        return self.vocabulary * self.width + self.layers * layer + self.buckets * self.heads + self.width

    @property
    def encoder_islands(self) -> int:
        """Number of the encoder's weights that stay float32: its normalizations and relative positions."""
        return (2 * self.layers + 1) * self.width + self.buckets * self.heads

    @property
    def parameters(self) -> int:
        """Number of parameters of the whole released model: encoder, decoder, and a separate output head."""
        inner = self.heads * self.head_dim
        decoder_layer = 8 * self.width * inner + 3 * self.width * self.ffn + 3 * self.width
        decoder = self.layers * decoder_layer + self.buckets * self.heads + self.width
        return self.encoder_parameters + decoder + self.vocabulary * self.width


FLAN_T5_XL = T5Sizes(layers=24, width=2048, heads=32, head_dim=64, ffn=5120, vocabulary=32128)
