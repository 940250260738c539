"""Family of the Infinity models: text to bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from ldp_runtime.architecture.infinity import InfinityEntry
from ldp_runtime.bundle.manifest import Precision
from ldp_runtime.errors import CheckpointError, ConfigError
from ldp_runtime.schedule import SCALES_OF_SIZE, ScaleSchedule

from ldp_export.checkpoints.files.headers import halved_bytes
from ldp_export.checkpoints.sources import Sources
from ldp_export.families.base import chunk_names, counted_bytes, graph_blocks, graph_kind, loaded_graph
from ldp_export.models.registry import InfinitySpec
from ldp_export.verification.recording.sizes import (
    ranges_memory,
    recorded_infinity_bytes,
    recording_memory,
    scales_to_record,
)

if TYPE_CHECKING:
    import torch

    from ldp_export.checkpoints.t5 import TextEncoder
    from ldp_export.graphs.graph import Graph
    from ldp_export.graphs.signature import GraphSignature
    from ldp_export.models.infinity import InfinityTransformer
    from ldp_export.models.infinity_vae import InfinityVae
    from ldp_export.quantization.ranges import Ranges
    from ldp_export.reference.quantized import EightBits
    from ldp_export.verification.bounds import Outputs
    from ldp_export.verification.cases import Case, ReferenceCases


@dataclass(frozen=True)
class _Models:
    """Parts of a model: with their weights, or as shapes alone."""

    transformer: InfinityTransformer
    vae: InfinityVae
    text_encoder: torch.nn.Module | None


class InfinityFamily:
    """Family of the Infinity models; see `Family`."""

    has_static_cache = True
    fuses_attention = True

    def __init__(self, spec: InfinitySpec, sources: Sources, size: str | None) -> None:
        self.spec, self.sources, self.size = spec, sources, size or spec.size
        if self.size not in SCALES_OF_SIZE:
            raise ConfigError(f"unknown size {size!r}", hint=f"one of {', '.join(SCALES_OF_SIZE)}")
        levels = SCALES_OF_SIZE[self.size]
        if levels > spec.transformer.levels:
            raise ConfigError(
                f"{spec.name} embeds {spec.transformer.levels} scales, {self.size} has {levels}",
                hint="choose a smaller --size",
            )
        if sources.text_encoder_2 is not None:
            raise ConfigError(f"{spec.name} reads text with one encoder", hint="leave --text-encoder-2 out")

    @cached_property
    def _shapes(self) -> _Models:
        """Parts of the model on the meta device: shapes without values."""
        import torch

        from ldp_export.checkpoints.t5 import encoder_skeleton
        from ldp_export.models.infinity import InfinityTransformer
        from ldp_export.models.infinity_vae import InfinityVae

        folder = self.sources.text_encoder
        with torch.device("meta"):
            transformer, vae = InfinityTransformer(self.spec.transformer), InfinityVae(self.spec.vae)
        return _Models(transformer, vae, None if folder is None else encoder_skeleton(folder))

    @cached_property
    def _mapped(self) -> _Models:
        """Parts of the model whose weights are views of the mapped files."""
        from ldp_export.checkpoints.infinity import map_infinity, map_infinity_vae

        transformer = map_infinity(self.sources.transformer, self.spec.transformer)
        encoder = self.text_encoder
        return _Models(transformer, map_infinity_vae(self.sources.vae, self.spec.vae), encoder and encoder.module)

    @cached_property
    def text_encoder(self) -> TextEncoder | None:
        folder = self.sources.text_encoder
        if folder is None:
            return None
        from ldp_export.checkpoints.t5 import map_text_encoder

        encoder = map_text_encoder(folder)
        channels = self.spec.transformer.text_channels
        if encoder.channels != channels:
            raise CheckpointError(
                f"the text encoder has {encoder.channels} channels, the transformer reads {channels}",
                hint="give the text encoder that the model was trained with: --text-encoder",
            )
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
        return self.spec.text_tokens

    @property
    def tokenizer(self) -> bytes | None:
        return None if self.text_encoder is None else self.text_encoder.tokenizer.read_bytes()

    def check_files(self) -> None:
        from ldp_export.checkpoints.infinity import check_files

        check_files(self.sources.transformer, self.sources.vae, self.spec.transformer, self.spec.vae)
        self.check_text()

    def check_text(self) -> None:
        from ldp_export.checkpoints.t5 import check_folder

        if self.sources.text_encoder is not None:
            check_folder(self.sources.text_encoder)

    def graph_names(self, chunk: int | None) -> list[str]:
        depth = self.spec.transformer.depth
        names = [*chunk_names("prompt", depth, chunk), *chunk_names("blocks", depth, chunk), "decoder"]
        return names if self.sources.text_encoder is None else ["text_encoder", *names]

    def signature(self, graph: str, precision: Precision) -> GraphSignature:
        from ldp_export.graphs.infinity import (
            infinity_blocks_signature,
            infinity_decoder_signature,
            infinity_prompt_signature,
        )
        from ldp_export.graphs.t5 import text_encoder_signature

        t, kind = self.spec.transformer, graph_kind(graph)
        if kind == "text_encoder":
            return text_encoder_signature(t.text_channels)
        if kind == "decoder":
            return infinity_decoder_signature(self.spec.vae)
        of_blocks = infinity_prompt_signature if kind == "prompt" else infinity_blocks_signature
        return of_blocks(t, *graph_blocks(graph, t.depth), precision)

    def graph(self, graph: str, precision: Precision) -> Graph:
        return self._graph(graph, self._shapes, precision)

    def graph_bytes(self, graph: str, precision: Precision) -> int:
        counted = counted_bytes(self.spec, graph, precision)
        return self.graph(graph, precision).weight_bytes() if counted is None else counted

    def weights(self, graph: str) -> Mapping[str, torch.Tensor]:
        return self._graph(graph, self._mapped, "float32").state_dict()

    def _graph(self, graph: str, models: _Models, precision: Precision) -> Graph:
        from ldp_export.graphs.infinity import InfinityBlocksGraph, InfinityDecoderGraph, InfinityPromptGraph
        from ldp_export.graphs.t5 import T5EncoderGraph

        kind = graph_kind(graph)
        if kind == "text_encoder":
            assert models.text_encoder is not None
            return T5EncoderGraph(models.text_encoder, precision)
        if kind == "decoder":
            return InfinityDecoderGraph(models.vae, precision)
        of_blocks = InfinityPromptGraph if kind == "prompt" else InfinityBlocksGraph
        return of_blocks(models.transformer, *graph_blocks(graph, self.spec.transformer.depth), precision)

    def constants(self) -> dict[str, torch.Tensor]:
        from ldp_export.graphs.infinity import level_offsets

        transformer = self._mapped.transformer
        return {
            "unconditional_text": transformer.cfg_uncond.detach().float().contiguous(),
            "level_offsets": level_offsets(transformer).contiguous(),
        }

    @cached_property
    def _recorded_scales(self) -> int | None:
        return scales_to_record(self.entry, self._counted[0])

    @cached_property
    def _counted(self) -> tuple[int, int, int]:
        """Parameters of the transformer, of one of its blocks, and of the VAE."""
        if (counts := self.spec.counts) is not None:
            return counts.transformer, counts.block, counts.vae
        shapes = self._shapes
        parts = (shapes.transformer, shapes.transformer.layers[0], shapes.vae)
        transformer, block, vae = (sum(p.numel() for p in part.parameters()) for part in parts)
        return transformer, block, vae

    @property
    def coverage(self) -> str:
        scales = self._recorded_scales
        return "all scales" if scales is None else f"the first {scales} scales"

    @property
    def reference_bytes(self) -> int:
        return recorded_infinity_bytes(self.entry, self._recorded_scales)

    @property
    def reference_memory(self) -> int:
        if self._recorded_scales is None:
            return recording_memory(self.entry) + 2 * halved_bytes(self.sources.transformer) + self._in_float64
        _, block, vae = self._counted
        return 4 * (block + vae) + self._in_float64

    @property
    def _in_float64(self) -> int:
        """Bytes of the widest layer's weights, and of an image's activations, in float64."""
        t = self.spec.transformer
        largest = max(t.width * max(t.ffn, 6 * t.width), 32_128 * t.text_channels)  # T5 has so many tokens
        tokens = self.entry.schedule().tokens[(self._recorded_scales or 0) - 1]
        return 8 * largest + 8 * 6 * self.spec.vae.base_channels * tokens * self.entry.pixels_per_token**2

    def record(self, precision: Precision, quantized: EightBits | None, say: Callable[[str], None]) -> ReferenceCases:
        from ldp_export.checkpoints.infinity import load_infinity, load_infinity_vae, map_infinity
        from ldp_export.checkpoints.t5 import load_text_encoder
        from ldp_export.reference.quantized import RoundedWeights, products_in_8_bits, round_weights
        from ldp_export.reference.streamed import streamed_weights
        from ldp_export.verification.bounds import with_bounds
        from ldp_export.verification.recording.infinity import (
            InfinityCalls,
            forced_infinity_logits,
            record_first_scales,
            record_infinity_cases,
        )
        from ldp_export.verification.recording.lengths import with_text_lengths
        from ldp_export.verification.recording.shapes import with_shapes
        from ldp_export.verification.rounding import measure_quantized, measure_rounding

        scales, folder = self._recorded_scales, self.sources.text_encoder

        def round_if_asked(transformer: InfinityTransformer) -> None:
            if isinstance(quantized, RoundedWeights):
                round_weights(transformer.blocks, quantized, precision, mapped=scales is not None)

        vae = load_infinity_vae(self.sources.vae, self.spec.vae)
        encoder = None if folder is None else load_text_encoder(folder)
        if scales is None:
            transformer = load_infinity(self.sources.transformer, self.spec.transformer)
            round_if_asked(transformer)
            cases = record_infinity_cases(transformer, vae, encoder, self.entry, self.spec.defaults, say)
        else:
            transformer = map_infinity(self.sources.transformer, self.spec.transformer)
            round_if_asked(transformer)
            cases = record_first_scales(transformer, vae, encoder, self.entry, self.spec.defaults, scales, say)

        cases = with_text_lengths(cases, transformer, encoder, self.entry, self.spec.defaults)

        def logits(case: Case) -> list[torch.Tensor]:
            return forced_infinity_logits(transformer, cases, case, self.entry)

        say("rounding")
        cases = with_bounds(cases, self._outputs(vae, encoder, logits))
        if scales is not None:
            say("late scales, block by block")
            calls = InfinityCalls.of_case(transformer, self.entry, cases, cases.cases[0])
            cases = with_shapes(cases, calls, precision)
        rounding = dict(cases.rounding)
        with streamed_weights(transformer, precision):
            if precision != "float32":
                say(f"rounding of {precision}")
                rounding |= measure_rounding(cases, logits, lambda name: loaded_graph(self, name, precision))
            if quantized is not None and not isinstance(quantized, RoundedWeights):
                say("rounding of 8-bit numbers")
                with products_in_8_bits(transformer.blocks, quantized):
                    rounding |= measure_quantized(cases, logits)
        return replace(cases, rounding=rounding)

    @property
    def ranges_memory(self) -> int:
        transformer, block, _ = self._counted
        outside = transformer - self.spec.transformer.depth * block
        return ranges_memory(self.entry) + 4 * (outside + block)

    def ranges(self, prompt: str, number: int) -> Ranges:
        from ldp_export.checkpoints.t5 import load_text_encoder
        from ldp_export.verification.recording.ranges import infinity_ranges, prompt_features

        t, folder = self.spec.transformer, self.sources.text_encoder
        load = None if folder is None else partial(load_text_encoder, folder)
        text = prompt_features(load, prompt, number, t.text_tokens, t.text_channels)
        return infinity_ranges(self._mapped.transformer, text, self.entry, self.spec.defaults, number)

    def _outputs(
        self, vae: InfinityVae, encoder: TextEncoder | None, logits: Callable[[Case], Sequence[torch.Tensor]]
    ) -> Outputs:
        """Functions that compute the recorded outputs again."""
        from ldp_runtime.families.choose import codec_of

        from ldp_export.verification.bounds import Outputs

        return Outputs(
            logits=logits,
            image=vae.decode,
            features=encoder.features if encoder is not None else None,
            codec=codec_of(self.entry, {}),
            schedule=lambda case: case.of(ScaleSchedule.of_size(self.entry.size, case.aspect_ratio)),
            operations=2.0 * self._counted[0],
        )
