"""The `decoder` graph of class-conditional models: accumulated latent to pixels."""

from __future__ import annotations

import re

import torch

from ldp_export.graphs.graph import Graph, Precision
from ldp_export.graphs.signature import Axis, GraphSignature, TensorSpec
from ldp_export.models.vq_vae import VqVae, VqVaeConfig


def vq_decoder_signature(config: VqVaeConfig) -> GraphSignature:
    latent = TensorSpec("latent", (Axis.IMAGES, config.channels, Axis.HEIGHT, Axis.WIDTH))
    return GraphSignature("decoder", (latent,), (TensorSpec("image", (Axis.IMAGES, 3)),))


class VqDecoderGraph(Graph):
    """Latent [B, C, H, W] to an image [B, 3, H*stride, W*stride] in [-1, 1]; normalisations are float32."""

    ISLANDS = re.compile(r".*\bnorm\w*\.(weight|bias)$")

    def __init__(self, vae: VqVae, precision: Precision = "float32") -> None:
        super().__init__(vq_decoder_signature(vae.config), precision)
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.post_quant_conv(latent)).float().clamp(-1, 1)
