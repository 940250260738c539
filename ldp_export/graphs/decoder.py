"""The `decoder` graph: accumulated latent to pixels."""

from __future__ import annotations

import torch
from torch import nn

from ldp_export.graphs.signature import Axis, GraphSignature, TensorSpec
from ldp_export.models.bsq_vae import BsqVae, VaeConfig


def decoder_signature(config: VaeConfig) -> GraphSignature:
    latent = TensorSpec("latent", (Axis.IMAGES, config.bits, Axis.HEIGHT, Axis.WIDTH))
    # Pixel axes are `stride` times the latent's; they have no axis of their own.
    return GraphSignature("decoder", (latent,), (TensorSpec("image", (Axis.IMAGES, 3)),))


class DecoderGraph(nn.Module):
    """Latent [B, d, H, W] to an image [B, 3, H*stride, W*stride] in [-1, 1]."""

    def __init__(self, vae: BsqVae) -> None:
        super().__init__()
        self.decoder = vae.decoder
        self.signature = decoder_signature(vae.config)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.decoder(latent).clamp(-1, 1)
