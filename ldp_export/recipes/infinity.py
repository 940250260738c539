"""Infinity: text to bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from ldp_runtime.bundle import InfinityEntry
from ldp_runtime.errors import CheckpointError, ConfigError
from ldp_runtime.schedule import SCALES_OF_SIZE

from ldp_export.graphs.blocks import BlocksGraph, blocks_signature
from ldp_export.graphs.decoder import DecoderGraph, decoder_signature
from ldp_export.graphs.graph import Graph
from ldp_export.graphs.prompt import PromptGraph, level_offsets, prompt_signature
from ldp_export.graphs.signature import GraphSignature
from ldp_export.graphs.text_encoder import TextEncoderGraph, text_encoder_signature
from ldp_export.models.bsq_vae import BsqVae
from ldp_export.models.checkpoints import check_files, load_transformer, load_vae
from ldp_export.models.infinity import InfinityTransformer
from ldp_export.models.registry import ModelSpec
from ldp_export.models.sources import Sources
from ldp_export.models.text_encoder import TextEncoder, load_text_encoder
from ldp_export.recipes.base import block_bounds
from ldp_export.reference_cases import ReferenceCases, record_cases


class InfinityRecipe:
    """See `Recipe`."""

    def __init__(self, spec: ModelSpec, sources: Sources, size: str | None) -> None:
        self.spec, self.sources, self.size = spec, sources, size or spec.size
        if self.size not in SCALES_OF_SIZE:
            raise ConfigError(f"unknown size {size!r}", hint=f"one of {', '.join(SCALES_OF_SIZE)}")
        levels = SCALES_OF_SIZE[self.size]
        if levels > spec.transformer.levels:
            raise ConfigError(f"{spec.name} embeds {spec.transformer.levels} scales, {self.size} has {levels}")

    @cached_property
    def transformer(self) -> InfinityTransformer:
        return load_transformer(self.sources.transformer, self.spec.transformer)

    @cached_property
    def vae(self) -> BsqVae:
        return load_vae(self.sources.vae, self.spec.vae)

    @cached_property
    def text_encoder(self) -> TextEncoder | None:
        folder = self.sources.text_encoder
        if folder is None:
            return None
        encoder = load_text_encoder(folder)
        wanted = self.spec.transformer.text_channels
        if encoder.channels != wanted:
            raise CheckpointError(f"the text encoder has {encoder.channels} channels, the transformer reads {wanted}")
        return encoder

    @property
    def entry(self) -> InfinityEntry:
        spec, t = self.spec, self.spec.transformer
        return InfinityEntry(
            name=spec.name,
            size=self.size,
            depth=t.depth,
            width=t.width,
            heads=t.heads,
            ffn=t.ffn,
            bits=t.bits,
            text_channels=t.text_channels,
            levels=t.levels,
            latent_channels=spec.vae.bits,
            patch=spec.patch,
            vae_stride=spec.vae.stride,
        )

    @property
    def text_tokens(self) -> int:
        return self.spec.transformer.text_tokens

    @property
    def tokenizer(self) -> Path | None:
        return None if self.text_encoder is None else self.text_encoder.tokenizer

    def check_files(self) -> None:
        check_files(self.sources.transformer, self.sources.vae, self.spec.transformer, self.spec.vae)

    def signature(self, graph: str) -> GraphSignature:
        t = self.spec.transformer
        if graph == "text_encoder":
            return text_encoder_signature(t.text_channels)
        if graph == "prompt":
            return prompt_signature(t)
        if graph == "decoder":
            return decoder_signature(self.spec.vae)
        return blocks_signature(t, *block_bounds(graph, t.depth))

    def graph(self, graph: str) -> Graph:
        if graph == "text_encoder":
            assert self.text_encoder is not None
            return TextEncoderGraph(self.text_encoder.module)
        if graph == "prompt":
            return PromptGraph(self.transformer)
        if graph == "decoder":
            return DecoderGraph(self.vae)
        return BlocksGraph(self.transformer, *block_bounds(graph, self.spec.transformer.depth))

    def constants(self) -> dict[str, torch.Tensor]:
        return {
            "unconditional_text": self.transformer.cfg_uncond.detach().contiguous(),
            "level_offsets": level_offsets(self.transformer).contiguous(),
        }

    def record(self, say: Callable[[str], None]) -> ReferenceCases:
        return record_cases(self.transformer, self.vae, self.text_encoder, self.entry, self.spec.defaults, say)
