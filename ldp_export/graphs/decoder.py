"""The `decoder` graph: accumulated latent to pixels."""

from __future__ import annotations

import re

import torch

from ldp_export.graphs.graph import Graph, Precision
from ldp_export.graphs.signature import Axis, GraphSignature, TensorSpec
from ldp_export.models.bsq_vae import BsqVae, VaeConfig


def decoder_signature(config: VaeConfig) -> GraphSignature:
    latent = TensorSpec("latent", (Axis.IMAGES, config.bits, Axis.HEIGHT, Axis.WIDTH))
    # Pixel axes are `stride` times the latent's; they have no axis of their own.
    return GraphSignature("decoder", (latent,), (TensorSpec("image", (Axis.IMAGES, 3)),))


class DecoderGraph(Graph):
    """Latent [B, d, H, W] to an image [B, 3, H*stride, W*stride] in [-1, 1]; normalisations are float32."""

    ISLANDS = re.compile(r".*\bnorm\w*\.(weight|bias)$")

    def __init__(self, vae: BsqVae, precision: Precision = "float32") -> None:
        super().__init__(decoder_signature(vae.config), precision)
        self.decoder = vae.decoder

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.decoder(latent).float().clamp(-1, 1)
