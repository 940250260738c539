"""VAR: classes to indices into a codebook."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from ldp_runtime.bundle import VarEntry
from ldp_runtime.errors import ConfigError

from ldp_export.class_reference_cases import record_class_cases
from ldp_export.graphs.class_blocks import ClassBlocksGraph, class_blocks_signature
from ldp_export.graphs.class_prompt import ClassPromptGraph, class_placement, class_prompt_signature
from ldp_export.graphs.graph import Graph
from ldp_export.graphs.signature import GraphSignature
from ldp_export.graphs.vq_decoder import VqDecoderGraph, vq_decoder_signature
from ldp_export.models.registry import VarSpec
from ldp_export.models.sources import Sources
from ldp_export.models.var import VarTransformer
from ldp_export.models.var_checkpoints import check_var_files, load_var, load_vq_vae
from ldp_export.models.vq_vae import VqVae
from ldp_export.recipes.base import block_bounds
from ldp_export.reference_cases import ReferenceCases


class VarRecipe:
    """See `Recipe`."""

    text_tokens = 0
    tokenizer: Path | None = None

    def __init__(self, spec: VarSpec, sources: Sources, size: str | None) -> None:
        self.spec, self.sources = spec, sources
        if size is not None:
            raise ConfigError(
                f"{spec.name} draws one size only, not {size!r}", hint="its positions are learned; leave the size out"
            )
        if sources.text_encoder is not None:
            raise ConfigError(f"{spec.name} draws classes and reads no text", hint="leave the text encoder out")

    @cached_property
    def transformer(self) -> VarTransformer:
        return load_var(self.sources.transformer, self.spec.transformer)

    @cached_property
    def vae(self) -> VqVae:
        return load_vq_vae(self.sources.vae, self.spec.vae)

    @property
    def entry(self) -> VarEntry:
        t, vae = self.spec.transformer, self.spec.vae
        return VarEntry(
            name=self.spec.name,
            depth=t.depth,
            width=t.width,
            heads=t.heads,
            ffn=t.ffn,
            latent_channels=vae.channels,
            vae_stride=vae.stride,
            codes=t.codes,
            classes=t.classes,
            grids=t.grids,
            phi_share=vae.phi_share,
        )

    def check_files(self) -> None:
        check_var_files(self.sources.transformer, self.sources.vae, self.spec.transformer, self.spec.vae)

    def signature(self, graph: str) -> GraphSignature:
        t = self.spec.transformer
        if graph == "prompt":
            return class_prompt_signature(t)
        if graph == "decoder":
            return vq_decoder_signature(self.spec.vae)
        return class_blocks_signature(t, *block_bounds(graph, t.depth))

    def graph(self, graph: str) -> Graph:
        if graph == "prompt":
            return ClassPromptGraph(self.transformer)
        if graph == "decoder":
            return VqDecoderGraph(self.vae)
        return ClassBlocksGraph(self.transformer, *block_bounds(graph, self.spec.transformer.depth))

    def constants(self) -> dict[str, torch.Tensor]:
        phis = self.vae.phis
        tensors = class_placement(self.transformer) | {
            "codebook": self.vae.quantize.embedding.weight.detach(),
            "phi_weight": torch.stack([phi.weight.detach() for phi in phis]),
            "phi_bias": torch.stack([phi.bias.detach() for phi in phis if phi.bias is not None]),
        }
        return {name: tensor.contiguous() for name, tensor in tensors.items()}

    def record(self, say: Callable[[str], None]) -> ReferenceCases:
        return record_class_cases(self.transformer, self.vae, self.spec.defaults, say)
