"""An image from the original loop, and from this toolkit's: what `gpu.py` times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from ldp_runtime.bundle.manifest import GraphEntry, QuantizedScales
from ldp_runtime.engines.blocks import Blocks, BlocksChunk, Placement, PromptRows
from ldp_runtime.engines.cache_plan import ModelShape
from ldp_runtime.engines.torch_compiled.cuda_graphs import CudaGraphs
from ldp_runtime.engines.torch_compiled.fused.engine import FusedEngine
from ldp_runtime.engines.torch_compiled.fused.products import KINDS
from ldp_runtime.engines.torch_compiled.fused.weights import FusedWeights, in_8_bits
from ldp_runtime.families.infinity import BitCodec
from ldp_runtime.noise import logistic_noise
from ldp_runtime.pipeline.batch import ImageSettings, ImageState
from ldp_runtime.pipeline.noise_ahead import NoiseAhead
from ldp_runtime.pipeline.run import Run
from ldp_runtime.pipeline.trace import ScaleTrace
from ldp_runtime.pruning.policy import Policy
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.schedule import rope_table

from benchmarks.gpu.models import Model
from ldp_export.builders.torch_compiled.fused import fused_weights
from ldp_export.graphs.infinity import InfinityBlocksGraph, InfinityPromptGraph, level_offsets
from ldp_export.graphs.signature import tensor_entries
from ldp_export.models.infinity_vae import InfinityVae
from ldp_export.reference.infinity import InfinityRun, InfinitySettings, generate
from ldp_export.verification.forced import OverheardBlocks, RecordedCodec


def sampling_rule(model: Model) -> SamplingFilter:
    return SamplingFilter(model.spec.top_k, model.spec.top_p)


def decode(vae: InfinityVae, latents: torch.Tensor) -> torch.Tensor:
    """Latents [B, d, H, W] to pixels, one at a time: a decoder's memory is the largest of all."""
    dtype = vae.decoder.conv_in.weight.dtype
    return torch.cat([vae.decode(latent[None].to(dtype)) for latent in latents])


class Eager:
    """The original loop: both branches to the end, K/V grown by concatenation, text projected at every scale.

    Its noise is drawn on the device, as the original draws it.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.generator = torch.Generator(model.device).manual_seed(0)

    @torch.no_grad()
    def draw(self, batch: int) -> torch.Tensor:
        return decode(self.model.vae, self.run(batch, keep_trace=False).latent)

    def run(self, batch: int, *, keep_trace: bool) -> InfinityRun:
        """All scales; with a trace, what the blocks gave and what was drawn from it."""
        model, spec = self.model, self.model.spec
        settings = InfinitySettings(spec.guidance, spec.temperature, sampling_rule(model), seed=0)
        shapes = [(batch, tokens, spec.layout.bits, 2) for tokens in model.schedule.tokens]
        draws = (torch.empty(shape, device=model.device).exponential_(generator=self.generator) for shape in shapes)
        noise = [logistic_noise(each) for each in draws]
        return generate(
            model.transformer,
            [model.features] * batch,
            model.schedule,
            spec.layout,
            settings,
            noise=noise,
            keep_trace=keep_trace,
        )


#: Told the scale and the logits [R, L, V] of each call.
OnLogits = Callable[[int, torch.Tensor], None]


class Toolkit:
    """This toolkit's loop and its fused engine of the blocks, and what else is asked for.

    Args:
        compiled: blocks and decoder by torch.compile.
        graphs: CUDA graphs of the prompt and of small calls.
        late: from where on the blocks multiply 8-bit numbers.
    """

    def __init__(self, model: Model, *, compiled: bool, graphs: bool, quantized: QuantizedScales | None = None) -> None:
        self.model, self.quantized = model, quantized
        self.prompt = InfinityPromptGraph(model.transformer, precision=model.precision)
        self.graphs = CudaGraphs() if graphs else None
        self.prompt_graphs = CudaGraphs() if graphs else None
        self.blocks = fused_blocks(model, compiled=compiled, graphs=self.graphs, quantized=quantized)
        self.decode = torch.compile(decode, dynamic=False) if compiled else decode
        self.drawer = ThreadPoolExecutor(max_workers=1)
        self.codec, self.rule = BitCodec(model.spec.layout), sampling_rule(model)
        tables = rope_table(model.schedule, model.spec.transformer.head_dim)
        placed = tuple({"cos": cos.to(model.device), "sin": sin.to(model.device)} for cos, sin in tables)
        self.placement = Placement(level_offsets(model.transformer).to(model.device), placed)

    @torch.no_grad()
    def draw(self, batch: int, policy: Policy) -> tuple[torch.Tensor, list[list[ScaleTrace]]]:
        """Pixels [B, 3, height, width], and what every image computed."""
        images = self.run(self.images(batch, policy=policy))
        pixels = torch.cat([self.decode(self.model.vae, image.latent[None]) for image in images])
        return pixels, [image.trace for image in images]

    def images(
        self,
        batch: int,
        seed: int = 0,
        policy: Policy | None = None,
        forced: Sequence[torch.Tensor] | None = None,
    ) -> list[ImageState]:
        """Images to be drawn, of seeds one apart; a thread draws their noise from now on.

        Args:
            forced: recorded bits [h*w, bits] of each scale, which are taken instead of drawn ones.
        """
        spec, schedule, device = self.model.spec, self.model.schedule, self.model.device
        settings = ImageSettings(
            codec=self.codec if forced is None else RecordedCodec(self.codec),
            guidance=(spec.guidance,) * len(schedule),
            temperature=(spec.temperature,) * len(schedule),
            filter=self.rule,
            policy=policy or Policy(),
        )
        return [
            ImageState(
                settings,
                schedule,
                seed + i,
                NoiseAhead(seed + i, self.codec, schedule, device, self.drawer) if forced is None else forced,
                self.codec.empty_latent(schedule).to(device),
                unconditional=True,
            )
            for i in range(batch)
        ]

    @torch.no_grad()
    def run(self, images: list[ImageState], on_logits: OnLogits | None = None) -> list[ImageState]:
        """All scales; gives the images back, their latents drawn."""
        schedule, own = self.model.schedule, self.quantized
        quantized = {} if own is None else dict.fromkeys(schedule.detail_scales(own.share), own.name)
        blocks = self.blocks if on_logits is None else OverheardBlocks(self.blocks, on_logits)
        Run(blocks, self.placement, images, self.rows(len(images)), quantized).complete()
        return images

    def rows(self, batch: int) -> PromptRows:
        """The same text for every image, and the unconditional text as often."""
        uncond = self.model.transformer.unconditional_text(len(self.model.features)).float()
        features = torch.stack([self.model.features] * batch + [uncond] * batch)
        graphs = self.prompt_graphs
        results = self.prompt(features) if graphs is None else graphs.run(self.prompt, [features])
        # Views of its own for every prompt: a graph gives its results at the same places, with other contents.
        own = (result.view_as(result) for result in results)
        named = dict(zip(self.prompt.signature.output_names, own, strict=True))
        mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        return PromptRows(named.pop("start"), {**named, "text_mask": mask})

    def clear(self) -> None:
        """Gives back what was kept from image to image."""
        self.blocks.close()
        if self.prompt_graphs is not None:
            self.prompt_graphs.clear()


def fused_blocks(
    model: Model, *, compiled: bool, graphs: CudaGraphs | None, quantized: QuantizedScales | None
) -> Blocks:
    """All blocks as the runtime opens them of a bundle, from the weights that are here."""
    config, graph = model.spec.transformer, InfinityBlocksGraph(model.transformer, precision=model.precision)
    inputs, outputs = (tensor_entries(specs) for specs in (graph.signature.inputs, graph.signature.outputs))
    entry = GraphEntry(kind="blocks", file="", inputs=inputs, outputs=outputs, last=config.depth)

    def chunk(name: str, weights: FusedWeights, own: CudaGraphs | None) -> BlocksChunk:
        sizes = {"tokens": model.schedule.tokens[-1], "text_tokens": max(1, len(model.features))}
        engine = FusedEngine(name, weights, entry, model.device, **sizes, compiled=compiled, graphs=own)
        return BlocksChunk(engine, 0, config.depth, frozenset(graph.signature.input_names))

    weights = fused_weights(graph)
    chunks, quantized_chunks = [chunk("blocks", weights, graphs)], {}
    if quantized is not None:
        rounded = in_8_bits(weights, KINDS[quantized.precision])
        own = None if graphs is None else CudaGraphs(graphs.counters)
        quantized_chunks = {quantized.name: [chunk(f"{quantized.name}_blocks", rounded, own)]}
    shape = ModelShape(config.depth, config.width, config.heads, 2 * config.bits, model.precision, writes_all=True)
    return Blocks(chunks, shape, quantized_chunks)
