"""Random weights of one architecture on a device, for `gpu.py`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from ldp_runtime.bundle.manifest import Precision
from ldp_runtime.schedule import ScaleSchedule

from ldp_export.graphs.infinity import InfinityBlocksGraph, InfinityPromptGraph
from ldp_export.models.infinity import InfinityTransformer
from ldp_export.models.infinity_vae import InfinityVae
from ldp_export.models.registry import InfinitySpec

TEXT_TOKENS = 32


@dataclass(frozen=True, eq=False)
class Model:
    """Random weights, and random text features [T, text_channels]."""

    spec: InfinitySpec
    transformer: InfinityTransformer
    vae: InfinityVae
    device: torch.device
    features: torch.Tensor
    precision: Precision

    @property
    def schedule(self) -> ScaleSchedule:
        return ScaleSchedule.of_size(self.spec.size)


@torch.no_grad()
def random_model(spec: InfinitySpec, device: torch.device, precision: Precision = "bfloat16") -> Model:
    """Weights drawn on the device; matrices in the precision, the original's float32 islands in float32."""
    torch.manual_seed(0)
    with torch.device("meta"):
        transformer, vae = InfinityTransformer(spec.transformer), InfinityVae(spec.vae)
    for module in (
        InfinityBlocksGraph(transformer, precision=precision),
        InfinityPromptGraph(transformer, precision=precision),
    ):
        types = module.weight_types()
        for name, parameter in module.named_parameters():
            parameter.data = parameter.data.to(types[name])
    vae = vae.to(getattr(torch, precision))
    for module in (transformer.to_empty(device=device), vae.to_empty(device=device)):
        for name, parameter in module.named_parameters():
            spread = 0.02 if parameter.dim() < 2 else parameter[0].numel() ** -0.5
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, spread)
        module.eval().requires_grad_(False)
    features = torch.randn(TEXT_TOKENS, spec.transformer.text_channels, device=device)
    return Model(spec, transformer, vae.to(memory_format=torch.channels_last), device, features, precision)
