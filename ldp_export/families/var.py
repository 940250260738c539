"""Family of the VAR models: classes to indices into a codebook."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from ldp_runtime.architecture.var import VarEntry
from ldp_runtime.bundle.manifest import Precision
from ldp_runtime.errors import ConfigError

from ldp_export.checkpoints.files.headers import halved_bytes
from ldp_export.checkpoints.sources import Sources
from ldp_export.families.base import chunk_names, counted_bytes, graph_blocks, loaded_graph
from ldp_export.models.registry import VarSpec
from ldp_export.verification.recording.sizes import recorded_codebook_bytes

if TYPE_CHECKING:
    import torch

    from ldp_export.graphs.graph import Graph
    from ldp_export.graphs.signature import GraphSignature
    from ldp_export.models.var import VarTransformer
    from ldp_export.models.var_vae import VarVae
    from ldp_export.reference.quantized import EightBits
    from ldp_export.verification.bounds import Outputs
    from ldp_export.verification.cases import Case, ReferenceCases


class VarFamily:
    """Family of the VAR models; see `Family`."""

    has_static_cache = False
    fuses_attention = False
    text_tokens = 0
    tokenizer: bytes | None = None

    def __init__(self, spec: VarSpec, sources: Sources, size: str | None) -> None:
        self.spec, self.sources = spec, sources
        if size is not None:
            raise ConfigError(
                f"{spec.name} draws one size only, not {size!r}", hint="its positions are learned; leave the size out"
            )
        if sources.text_encoders:
            raise ConfigError(f"{spec.name} draws classes and reads no text", hint="leave text encoders out")

    @cached_property
    def _shapes(self) -> tuple[VarTransformer, VarVae]:
        """Parts of the model on the meta device: shapes without values."""
        import torch

        from ldp_export.models.var import VarTransformer
        from ldp_export.models.var_vae import VarVae

        with torch.device("meta"):
            return VarTransformer(self.spec.transformer), VarVae(self.spec.vae)

    @cached_property
    def _mapped(self) -> tuple[VarTransformer, VarVae]:
        """Parts of the model whose weights are views of the mapped files."""
        from ldp_export.checkpoints.var import map_var, map_var_vae

        transformer = map_var(self.sources.transformer, self.spec.transformer)
        return transformer, map_var_vae(self.sources.vae, self.spec.vae)

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
        from ldp_export.checkpoints.var import check_var_files

        check_var_files(self.sources.transformer, self.sources.vae, self.spec.transformer, self.spec.vae)

    def check_text(self) -> None:
        """Nothing: there is no text."""

    def graph_names(self, chunk: int | None) -> list[str]:
        return ["prompt", *chunk_names("blocks", self.spec.transformer.depth, chunk), "decoder"]

    def signature(self, graph: str, precision: Precision) -> GraphSignature:
        from ldp_export.graphs.var import var_blocks_signature, var_decoder_signature, var_prompt_signature

        t = self.spec.transformer
        if graph == "prompt":
            return var_prompt_signature(t)
        if graph == "decoder":
            return var_decoder_signature(self.spec.vae)
        return var_blocks_signature(t, *graph_blocks(graph, t.depth), precision)

    def graph(self, graph: str, precision: Precision) -> Graph:
        return self._graph(graph, self._shapes, precision)

    def graph_bytes(self, graph: str, precision: Precision) -> int:
        counted = counted_bytes(self.spec, graph, precision)
        return self.graph(graph, precision).weight_bytes() if counted is None else counted

    def weights(self, graph: str) -> Mapping[str, torch.Tensor]:
        return self._graph(graph, self._mapped, "float32").state_dict()

    def _graph(self, graph: str, models: tuple[VarTransformer, VarVae], precision: Precision) -> Graph:
        from ldp_export.graphs.var import VarBlocksGraph, VarDecoderGraph, VarPromptGraph

        transformer, vae = models
        if graph == "prompt":
            return VarPromptGraph(transformer, precision)
        if graph == "decoder":
            return VarDecoderGraph(vae, precision)
        return VarBlocksGraph(transformer, *graph_blocks(graph, self.spec.transformer.depth), precision)

    def constants(self) -> dict[str, torch.Tensor]:
        from ldp_export.graphs.var import codebook_constants, var_placement

        transformer, vae = self._mapped
        placed = {name: tensor.contiguous() for name, tensor in var_placement(transformer).items()}
        return placed | codebook_constants(vae)

    coverage = "all scales"

    @property
    def reference_bytes(self) -> int:
        return recorded_codebook_bytes(self.entry)

    @property
    def reference_memory(self) -> int:
        """Bytes of the reference model in float32 and, for the oracle's single call, of its attention scores."""
        t = self.spec.transformer
        return 2 * halved_bytes(self.sources.transformer) + 4 * 2 * t.heads * t.schedule.total_tokens**2

    def record(self, precision: Precision, quantized: EightBits | None, say: Callable[[str], None]) -> ReferenceCases:
        from ldp_export.checkpoints.var import load_var, load_var_vae
        from ldp_export.models.var import FLOAT32_ISLANDS
        from ldp_export.reference.quantized import products_in_8_bits
        from ldp_export.verification.bounds import with_bounds
        from ldp_export.verification.recording.var import forced_var_logits, record_var_cases
        from ldp_export.verification.rounding import in_precision, measure_quantized, measure_rounding

        transformer = load_var(self.sources.transformer, self.spec.transformer)
        vae = load_var_vae(self.sources.vae, self.spec.vae)
        cases = record_var_cases(transformer, vae, self.spec.defaults, say)

        def logits(case: Case) -> list[torch.Tensor]:
            return forced_var_logits(transformer, vae, cases, case)

        say("rounding")
        cases = with_bounds(cases, self._outputs(vae, logits))
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

    def _outputs(self, vae: VarVae, logits: Callable[[Case], Sequence[torch.Tensor]]) -> Outputs:
        """Functions that compute the recorded outputs again."""
        from ldp_runtime.families.choose import codec_of

        from ldp_export.verification.bounds import Outputs

        parameters = sum(p.numel() for p in self._shapes[0].parameters())
        codec = codec_of(self.entry, self.constants())
        return Outputs(logits, vae.decode, None, codec, lambda case: self.entry.schedule(), 2.0 * parameters)
