"""Family of the HART models: texts to indices into a codebook, with a continuous residual on the last scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ldp_runtime.architecture.hart import HartEntry
from ldp_runtime.bundle.manifest import Precision
from ldp_runtime.errors import CheckpointError, ConfigError

from ldp_export.checkpoints.files.headers import halved_bytes
from ldp_export.checkpoints.sources import Sources
from ldp_export.families.base import chunk_names, counted_bytes, graph_blocks, graph_kind, loaded_graph
from ldp_export.models.registry import HartSpec
from ldp_export.verification.recording.sizes import recorded_codebook_bytes

if TYPE_CHECKING:
    import torch

    from ldp_export.checkpoints.qwen2vl import Qwen2TextEncoder
    from ldp_export.graphs.graph import Graph
    from ldp_export.graphs.signature import GraphSignature
    from ldp_export.models.hart import HartTransformer
    from ldp_export.models.var_vae import VarVae
    from ldp_export.reference.quantized import EightBits
    from ldp_export.verification.bounds import Outputs
    from ldp_export.verification.cases import Case, ReferenceCases


@dataclass(frozen=True)
class _Models:
    """Parts of a model: with their weights, or as shapes alone."""

    transformer: HartTransformer
    vae: VarVae
    text: Qwen2TextEncoder | None


class HartFamily:
    """Family of the HART models; see `Family`."""

    has_static_cache = False
    fuses_attention = False

    def __init__(self, spec: HartSpec, sources: Sources, size: str | None) -> None:
        self.spec, self.sources = spec, sources
        if size is not None:
            raise ConfigError(
                f"{spec.name} draws one size only, not {size!r}", hint="it was trained on its grids; leave the size out"
            )

    @cached_property
    def _shapes(self) -> _Models:
        """Parts of the model on the meta device: shapes without values."""
        import torch

        from ldp_export.checkpoints.qwen2vl import qwen2_skeleton
        from ldp_export.models.hart import HartTransformer
        from ldp_export.models.var_vae import VarVae

        with torch.device("meta"):
            transformer, vae = HartTransformer(self.spec.transformer), VarVae(self.spec.vae)
        return _Models(transformer, vae, self._text_of(qwen2_skeleton))

    @cached_property
    def _mapped(self) -> _Models:
        """Parts of the model whose weights are views of the mapped files."""
        from ldp_export.checkpoints.hart import map_hart
        from ldp_export.checkpoints.var import map_var_vae

        transformer = map_hart(self.sources.transformer, self.spec.transformer)
        return _Models(transformer, map_var_vae(self.sources.vae, self.spec.vae), self.text_encoder)

    @cached_property
    def text_encoder(self) -> Qwen2TextEncoder | None:
        from ldp_export.checkpoints.qwen2vl import map_qwen2

        return self._text_of(map_qwen2)

    def _text_of(self, read: Callable[[Path, int], Qwen2TextEncoder]) -> Qwen2TextEncoder | None:
        """Text encoder as `read` opens its folder; None if there is none. Raises CheckpointError if it does not fit."""
        if not self.sources.text_encoders:
            return None
        encoder, channels = read(self.sources.text_encoders[0], self.text_tokens), self.spec.transformer.text_channels
        if encoder.channels != channels:
            raise CheckpointError(
                f"the text encoder has {encoder.channels} channels, the transformer reads {channels}",
                hint="give the text encoder that the model was trained with: --text-encoder",
            )
        return encoder

    @property
    def tokenizer(self) -> bytes | None:
        return None if self.text_encoder is None else self.text_encoder.tokenizer

    @property
    def entry(self) -> HartEntry:
        spec, t, vae = self.spec, self.spec.transformer, self.spec.vae
        return HartEntry(
            name=spec.name,
            depth=t.depth,
            width=t.width,
            heads=t.heads,
            ffn=t.ffn,
            latent_channels=vae.channels,
            vae_stride=vae.stride,
            codes=t.codes,
            grids=t.grids,
            phi_share=vae.phi_share,
            text_channels=t.text_channels + 1,
            text_rows=t.text_tokens,
            residual_steps=t.residual_steps,
            first_late=spec.first_late,
            late_top_k=spec.late_top_k,
            more_smooth=spec.more_smooth,
        )

    @property
    def text_tokens(self) -> int:
        return self.spec.text_tokens

    def check_files(self) -> None:
        from ldp_export.checkpoints.hart import check_hart_files

        check_hart_files(self.sources.transformer, self.sources.vae, self.spec.transformer, self.spec.vae)
        self.check_text()

    def check_text(self) -> None:
        from ldp_export.checkpoints.qwen2vl import check_qwen2_folder

        folders = self.sources.text_encoders
        if len(folders) > 1:
            raise ConfigError("HART reads its text with one encoder", hint="leave --text-encoder-2 out")
        for folder in folders:
            check_qwen2_folder(folder)

    def graph_names(self, chunk: int | None) -> list[str]:
        depth = self.spec.transformer.depth
        names = [*chunk_names("prompt", depth, chunk), *chunk_names("blocks", depth, chunk), "residual", "decoder"]
        return ["text_encoder", *names] if self.sources.text_encoders else names

    def signature(self, graph: str, precision: Precision) -> GraphSignature:
        from ldp_export.graphs.hart import hart_blocks_signature, hart_prompt_signature, hart_residual_signature
        from ldp_export.graphs.t5 import text_encoder_signature
        from ldp_export.graphs.var import var_decoder_signature

        t, kind = self.spec.transformer, graph_kind(graph)
        if kind == "text_encoder":
            return text_encoder_signature(t.text_channels + 1)
        if kind == "residual":
            return hart_residual_signature(t)
        if kind == "decoder":
            return var_decoder_signature(self.spec.vae)
        of_blocks = hart_prompt_signature if kind == "prompt" else hart_blocks_signature
        return of_blocks(t, *graph_blocks(graph, t.depth), precision)

    def graph(self, graph: str, precision: Precision) -> Graph:
        return self._graph(graph, self._shapes, precision)

    def graph_bytes(self, graph: str, precision: Precision) -> int:
        counted = counted_bytes(self.spec, graph, precision)
        return self.graph(graph, precision).weight_bytes() if counted is None else counted

    def weights(self, graph: str) -> Mapping[str, torch.Tensor]:
        return self._graph(graph, self._mapped, "float32").state_dict()

    def _graph(self, graph: str, models: _Models, precision: Precision) -> Graph:
        from ldp_export.graphs.hart import HartBlocksGraph, HartResidualGraph, hart_prompt_graph
        from ldp_export.graphs.qwen2vl import Qwen2TextGraph
        from ldp_export.graphs.var import VarDecoderGraph

        kind = graph_kind(graph)
        if kind == "decoder":
            return VarDecoderGraph(models.vae, precision)
        if kind == "text_encoder":
            assert models.text is not None
            return Qwen2TextGraph(models.text.module, models.text.before, models.text.padding, precision)
        if kind == "residual":
            return HartResidualGraph(models.transformer, precision)
        of_blocks = hart_prompt_graph if kind == "prompt" else HartBlocksGraph
        return of_blocks(models.transformer, *graph_blocks(graph, self.spec.transformer.depth), precision)

    def constants(self) -> dict[str, torch.Tensor]:
        import torch

        from ldp_export.graphs.hart import level_offsets
        from ldp_export.graphs.var import codebook_constants

        models, t = self._mapped, self.spec.transformer
        constants = {"level_offsets": level_offsets(models.transformer).contiguous()} | codebook_constants(models.vae)
        # The unconditional text has features of zeros, at position 0 in every row.
        return constants | {"unconditional_text": torch.zeros(t.text_tokens, t.text_channels + 1)}

    coverage = "all scales"

    @property
    def reference_bytes(self) -> int:
        return recorded_codebook_bytes(self.entry)

    @property
    def reference_memory(self) -> int:
        """Bytes of the reference model in float32 and, for the oracle's single call, of its attention scores."""
        t = self.spec.transformer
        total = t.text_tokens + t.schedule.total_tokens
        return 2 * halved_bytes(self.sources.transformer) + 4 * 2 * t.heads * total**2

    def record(self, precision: Precision, quantized: EightBits | None, say: Callable[[str], None]) -> ReferenceCases:
        from ldp_export.checkpoints.hart import load_hart
        from ldp_export.checkpoints.qwen2vl import load_qwen2
        from ldp_export.checkpoints.var import load_var_vae
        from ldp_export.models.hart import FLOAT32_ISLANDS
        from ldp_export.reference.quantized import products_in_8_bits
        from ldp_export.verification.bounds import with_bounds
        from ldp_export.verification.recording.hart import (
            forced_hart_logits,
            record_hart_cases,
            residual_of,
        )
        from ldp_export.verification.rounding import in_precision, measure_quantized, measure_rounding

        transformer = load_hart(self.sources.transformer, self.spec.transformer)
        vae = load_var_vae(self.sources.vae, self.spec.vae)
        encoder = self._text_of(load_qwen2)
        cases = record_hart_cases(transformer, vae, encoder, self.entry, self.spec.defaults, say)

        def logits(case: Case) -> list[torch.Tensor]:
            return forced_hart_logits(transformer, vae, cases, case, self.entry)

        say("rounding")
        cases = with_bounds(cases, self._outputs(vae, encoder, logits, lambda: residual_of(transformer, cases.tensors)))
        rounding = dict(cases.rounding)
        if precision != "float32":
            say(f"rounding of {precision}")
            in_precision(transformer, precision, FLOAT32_ISLANDS)
            rounding |= measure_rounding(cases, logits, lambda name: loaded_graph(self, name, precision))
        if quantized is not None:
            say("rounding of 8-bit numbers")
            with products_in_8_bits(transformer.blocks, quantized):
                rounding |= measure_quantized(cases, logits)
        return replace(cases, rounding=rounding)

    def _outputs(
        self,
        vae: VarVae,
        encoder: Qwen2TextEncoder | None,
        logits: Callable[[Case], Sequence[torch.Tensor]],
        residual: Callable[[], torch.Tensor],
    ) -> Outputs:
        """Functions that compute the recorded outputs again."""
        from ldp_runtime.families.choose import codec_of

        from ldp_export.graphs.var import codebook_constants
        from ldp_export.verification.bounds import Outputs

        parameters = sum(p.numel() for p in self._shapes.transformer.parameters())
        codec, features = codec_of(self.entry, codebook_constants(vae)), encoder and encoder.features
        return Outputs(
            logits, vae.decode, features, codec, lambda case: self.entry.schedule(), 2.0 * parameters, residual
        )
