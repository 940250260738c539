"""Family of the Switti models: texts to indices into a codebook, with guidance that ends before the last scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from ldp_runtime.architecture.switti import SwittiEntry
from ldp_runtime.bundle.manifest import Precision
from ldp_runtime.errors import CheckpointError, ConfigError

from ldp_export.checkpoints.sources import Sources
from ldp_export.families.base import chunk_names, counted_bytes, graph_blocks, graph_kind, loaded_graph
from ldp_export.models.registry import SwittiSpec
from ldp_export.verification.recording.sizes import recorded_switti_bytes, recording_switti_memory, scales_to_record

if TYPE_CHECKING:
    import torch

    from ldp_export.checkpoints.clip import ClipTextEncoder
    from ldp_export.graphs.graph import Graph
    from ldp_export.graphs.signature import GraphSignature
    from ldp_export.models.clip import ClipTowers
    from ldp_export.models.switti import SwittiTransformer
    from ldp_export.models.var_vae import VarVae
    from ldp_export.reference.quantized import EightBits
    from ldp_export.verification.bounds import Outputs
    from ldp_export.verification.cases import Case, ReferenceCases


@dataclass(frozen=True)
class _Models:
    """Parts of a model: with their weights, or as shapes alone."""

    transformer: SwittiTransformer
    vae: VarVae
    text_encoder: ClipTowers | None


class SwittiFamily:
    """Family of the Switti models; see `Family`."""

    has_static_cache = False
    fuses_attention = False

    def __init__(self, spec: SwittiSpec, sources: Sources, size: str | None) -> None:
        self.spec, self.sources = spec, sources
        if size is not None:
            raise ConfigError(
                f"{spec.name} draws one size only, not {size!r}", hint="it was trained on its grids; leave the size out"
            )

    @cached_property
    def _shapes(self) -> _Models:
        """Parts of the model on the meta device: shapes without values."""
        import torch

        from ldp_export.checkpoints.clip import clip_skeleton
        from ldp_export.models.switti import SwittiTransformer
        from ldp_export.models.var_vae import VarVae

        folders = self.sources.text_encoders
        with torch.device("meta"):
            transformer, vae = SwittiTransformer(self.spec.transformer), VarVae(self.spec.vae)
        return _Models(transformer, vae, clip_skeleton(folders) if folders else None)

    @cached_property
    def _mapped(self) -> _Models:
        """Parts of the model whose weights are views of the mapped files."""
        from ldp_export.checkpoints.switti import map_switti
        from ldp_export.checkpoints.var import map_var_vae

        transformer, encoder = map_switti(self.sources.transformer, self.spec.transformer), self.text_encoder
        return _Models(transformer, map_var_vae(self.sources.vae, self.spec.vae), encoder and encoder.module)

    @cached_property
    def text_encoder(self) -> ClipTextEncoder | None:
        if not self.sources.text_encoders:
            return None
        from ldp_export.checkpoints.clip import map_clip

        encoder, t = map_clip(self.sources.text_encoders), self.spec.transformer
        if (encoder.channels, encoder.pooled_channels) != (t.text_channels, t.pooled_channels):
            raise CheckpointError(
                f"the text towers have {encoder.channels} channels, {encoder.pooled_channels} of them pooled; the "
                f"transformer reads {t.text_channels} and {t.pooled_channels}",
                hint="give the towers that the model was trained with, CLIP-L first: --text-encoder, --text-encoder-2",
            )
        return encoder

    @property
    def tokenizer(self) -> bytes | None:
        return None if self.text_encoder is None else self.text_encoder.tokenizer.read_bytes()

    @property
    def entry(self) -> SwittiEntry:
        spec, t, vae = self.spec, self.spec.transformer, self.spec.vae
        return SwittiEntry(
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
            text_channels=t.text_channels,
            pooled_channels=t.pooled_channels,
            keeps_past=t.keeps_past,
            rope_theta=t.rope_theta,
            rope_size=t.rope_size,
            first_guided=spec.first_guided,
            first_unguided=spec.first_unguided,
            first_smooth=spec.first_smooth,
            more_smooth=spec.more_smooth,
        )

    @property
    def text_tokens(self) -> int:
        return self.spec.text_tokens

    def check_files(self) -> None:
        from ldp_export.checkpoints.switti import check_switti_files

        check_switti_files(self.sources.transformer, self.sources.vae, self.spec.transformer, self.spec.vae)
        self.check_text()

    def check_text(self) -> None:
        from ldp_export.checkpoints.clip import check_clip_folders

        if self.sources.text_encoders:
            check_clip_folders(self.sources.text_encoders)

    def graph_names(self, chunk: int | None) -> list[str]:
        depth = self.spec.transformer.depth
        names = [*chunk_names("prompt", depth, chunk), *chunk_names("blocks", depth, chunk), "decoder"]
        return ["text_encoder", *names] if self.sources.text_encoders else names

    def signature(self, graph: str, precision: Precision) -> GraphSignature:
        from ldp_export.graphs.switti import switti_blocks_signature, switti_prompt_signature
        from ldp_export.graphs.t5 import text_encoder_signature
        from ldp_export.graphs.var import var_decoder_signature

        t, kind = self.spec.transformer, graph_kind(graph)
        if kind == "text_encoder":
            return text_encoder_signature(t.text_channels)
        if kind == "decoder":
            return var_decoder_signature(self.spec.vae)
        of_blocks = switti_prompt_signature if kind == "prompt" else switti_blocks_signature
        return of_blocks(t, *graph_blocks(graph, t.depth), precision)

    def graph(self, graph: str, precision: Precision) -> Graph:
        return self._graph(graph, self._shapes, precision)

    def graph_bytes(self, graph: str, precision: Precision) -> int:
        counted = counted_bytes(self.spec, graph, precision)
        return self.graph(graph, precision).weight_bytes() if counted is None else counted

    def weights(self, graph: str) -> Mapping[str, torch.Tensor]:
        return self._graph(graph, self._mapped, "float32").state_dict()

    def _graph(self, graph: str, models: _Models, precision: Precision) -> Graph:
        from ldp_export.graphs.clip import ClipTowersGraph
        from ldp_export.graphs.switti import SwittiBlocksGraph, SwittiPromptGraph
        from ldp_export.graphs.var import VarDecoderGraph

        kind = graph_kind(graph)
        if kind == "text_encoder":
            assert models.text_encoder is not None
            return ClipTowersGraph(models.text_encoder, precision)
        if kind == "decoder":
            return VarDecoderGraph(models.vae, precision)
        of_blocks = SwittiPromptGraph if kind == "prompt" else SwittiBlocksGraph
        return of_blocks(models.transformer, *graph_blocks(graph, self.spec.transformer.depth), precision)

    def constants(self) -> dict[str, torch.Tensor]:
        from ldp_export.checkpoints.clip import encoded, load_clip
        from ldp_export.graphs.switti import level_offsets
        from ldp_export.graphs.var import codebook_constants

        models = self._mapped
        constants = {"level_offsets": level_offsets(models.transformer).contiguous()} | codebook_constants(models.vae)
        folders = self.sources.text_encoders
        if not folders:
            return constants
        return constants | {"unconditional_text": encoded(load_clip(folders), "", self.text_tokens)}

    @cached_property
    def _recorded_scales(self) -> int | None:
        return scales_to_record(self.entry, self._parameters)

    @cached_property
    def _parameters(self) -> int:
        """Parameters of the transformer."""
        if (counts := self.spec.counts) is not None:
            return counts.transformer
        return sum(p.numel() for p in self._shapes.transformer.parameters())

    @property
    def coverage(self) -> str:
        scales = self._recorded_scales
        return "all scales" if scales is None else f"the first {scales} scales"

    @property
    def reference_bytes(self) -> int:
        return recorded_switti_bytes(self.entry, self._recorded_scales)

    @property
    def reference_memory(self) -> int:
        return recording_switti_memory(self.entry, self.spec.vae.base_channels, self._parameters, self._recorded_scales)

    def record(self, precision: Precision, quantized: EightBits | None, say: Callable[[str], None]) -> ReferenceCases:
        from ldp_export.checkpoints.clip import load_clip
        from ldp_export.checkpoints.switti import load_switti
        from ldp_export.checkpoints.var import load_var_vae
        from ldp_export.reference.quantized import products_in_8_bits
        from ldp_export.reference.streamed import streamed_weights
        from ldp_export.verification.bounds import with_bounds
        from ldp_export.verification.recording.shapes import with_shapes
        from ldp_export.verification.recording.switti import (
            SwittiCalls,
            forced_switti_logits,
            record_first_scales,
            record_switti_cases,
            with_longest_text,
        )
        from ldp_export.verification.rounding import measure_quantized, measure_rounding

        scales, folders = self._recorded_scales, self.sources.text_encoders
        vae = load_var_vae(self.sources.vae, self.spec.vae)
        encoder, defaults = load_clip(folders) if folders else None, self.spec.defaults
        if scales is None:
            transformer = load_switti(self.sources.transformer, self.spec.transformer)
            cases = record_switti_cases(transformer, vae, encoder, self.entry, defaults, say)
        else:
            transformer = self._mapped.transformer
            cases = record_first_scales(transformer, vae, encoder, self.entry, defaults, scales, say)
        cases = with_longest_text(cases, transformer, vae, encoder, self.entry, defaults)

        def logits(case: Case) -> list[torch.Tensor]:
            return forced_switti_logits(transformer, vae, cases, case, self.entry)

        say("rounding")
        cases = with_bounds(cases, self._outputs(vae, encoder, logits))
        if scales is not None:
            say("late scales, block by block")
            calls = SwittiCalls.of_case(transformer, self.entry, cases, cases.cases[0])
            cases = with_shapes(cases, calls, precision)
        rounding = dict(cases.rounding)
        with streamed_weights(transformer, precision):
            if precision != "float32":
                say(f"rounding of {precision}")
                rounding |= measure_rounding(cases, logits, lambda name: loaded_graph(self, name, precision))
            if quantized is not None:
                say("rounding of 8-bit numbers")
                with products_in_8_bits(transformer.blocks, quantized):
                    rounding |= measure_quantized(cases, logits)
        return replace(cases, rounding=rounding)

    def _outputs(
        self, vae: VarVae, encoder: ClipTextEncoder | None, logits: Callable[[Case], Sequence[torch.Tensor]]
    ) -> Outputs:
        """Functions that compute the recorded outputs again."""
        from ldp_runtime.families.choose import codec_of

        from ldp_export.graphs.var import codebook_constants
        from ldp_export.verification.bounds import Outputs

        return Outputs(
            logits=logits,
            image=vae.decode,
            features=encoder and encoder.features,
            codec=codec_of(self.entry, codebook_constants(vae)),
            schedule=lambda case: case.of(self.entry.schedule()),
            operations=2.0 * self._parameters,
        )
