"""The opened engines of a bundle, with the constants that belong to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors.torch import load_file

from ldp_runtime.blocks import Blocks, BlocksChunk, ModelShape, PromptRows
from ldp_runtime.bundle import CONSTANTS, Bundle, Manifest
from ldp_runtime.engines.base import Engine
from ldp_runtime.errors import NonFiniteError


@dataclass(frozen=True)
class Engines:
    """The opened graphs of a bundle and the constants that belong to them.

    Attributes:
        text_encoder: None where the bundle expects text features.
        unconditional_text: learned unconditional rows [text_tokens, text_channels].
        level_offsets: what `blocks` adds to every token of scale k >= 1 [levels, width].
    """

    text_encoder: Engine | None
    prompt: Engine
    blocks: Blocks
    decoder: Engine
    unconditional_text: torch.Tensor
    level_offsets: torch.Tensor

    def close(self) -> None:
        for engine in (self.text_encoder, self.prompt, self.decoder):
            if engine is not None:
                engine.close()
        self.blocks.close()


def open_engines(bundle: Bundle, device: torch.device, threads: int | None = None) -> Engines:
    """Opens all graphs of a bundle on a device."""
    from ldp_runtime.engines.onnxruntime import OnnxRuntimeEngine, check_provider

    check_provider(device)
    manifest = bundle.manifest

    def of_kind(kind: str) -> list[tuple[int, int, Engine]]:
        return [
            (graph.first, graph.last, OnnxRuntimeEngine(name, bundle.path(graph.file), device, threads))
            for name, graph in sorted(manifest.graphs.items(), key=lambda item: item[1].first)
            if graph.kind == kind
        ]

    constants = load_file(bundle.path(CONSTANTS), device=str(device))
    model = manifest.model
    shape = ModelShape(model.depth, model.width, model.heads, model.bits, model.text_channels)
    encoder = of_kind("text_encoder")
    return Engines(
        text_encoder=encoder[0][2] if encoder else None,
        prompt=of_kind("prompt")[0][2],
        blocks=Blocks([BlocksChunk(engine, first, last) for first, last, engine in of_kind("blocks")], shape),
        decoder=of_kind("decoder")[0][2],
        unconditional_text=constants["unconditional_text"],
        level_offsets=constants["level_offsets"],
    )


def run_prompt(engine: Engine, manifest: Manifest, features: torch.Tensor) -> PromptRows:
    """The prompt graph on equally long texts [R, T, text_channels]."""
    model = manifest.model
    R, T, _ = features.shape
    C, H, c = model.width, model.heads, model.width // model.heads
    outputs = {
        "start": features.new_empty(R, C),
        "modulation": features.new_empty(R, 6, C),
        "head_modulation": features.new_empty(R, 2, C),
    }
    text_kv = tuple((features.new_empty(R, H, T, c), features.new_empty(R, H, T, c)) for _ in range(model.depth))
    for i, (k, v) in enumerate(text_kv):
        outputs |= {f"text_k_{i}": k, f"text_v_{i}": v}
    engine.run({"features": features.contiguous()}, outputs)
    for tensor in outputs.values():
        check_finite(tensor, "prompt")
    mask = torch.ones(R, T, dtype=torch.bool, device=features.device)
    return PromptRows(outputs["start"], outputs["modulation"], outputs["head_modulation"], mask, text_kv)


def check_finite(tensor: torch.Tensor, graph: str) -> None:
    """Raises NonFiniteError that names the graph when its output holds NaN or infinity."""
    if not bool(tensor.isfinite().all()):
        raise NonFiniteError(f"the graph {graph!r} gave NaN or infinity", hint="verify the bundle")
