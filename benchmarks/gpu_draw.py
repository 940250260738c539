"""An image from the original loop, and from this toolkit's: what `gpu.py` times."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import torch
from gpu_blocks import GpuBlocks
from gpu_graphs import CudaGraphs
from gpu_models import Model
from ldp_runtime.bit_tokens import BitTokens
from ldp_runtime.blocks import Blocks, Placement, PromptRows
from ldp_runtime.pruning.policy import Policy
from ldp_runtime.sampling import SamplingFilter, draw_noise, logistic_noise
from ldp_runtime.scale_loop import ImageState, LoopSettings, OnLogits, run_scales
from ldp_runtime.schedule import ScaleSchedule, rope_table
from ldp_runtime.trace import ScaleTrace

from ldp_export.graphs.prompt import PromptGraph, level_offsets
from ldp_export.models.bsq_vae import BsqVae
from ldp_export.models.reference import ReferenceRun, ReferenceSettings, generate


def sampling_rule(model: Model) -> SamplingFilter:
    return SamplingFilter(model.spec.top_k, model.spec.top_p)


def decode(vae: BsqVae, latents: torch.Tensor) -> torch.Tensor:
    """Latents [B, d, H, W] to pixels, one at a time: a decoder's memory is the largest of all."""
    dtype = vae.decoder.conv_in.weight.dtype
    return torch.cat([vae.decode(latent[None].to(dtype)) for latent in latents])


class NoiseAhead(Sequence[torch.Tensor]):
    """The noise of one image by scale, drawn by a thread while the scales before are computed."""

    def __init__(self, seed: int, schedule: ScaleSchedule, bits: int, device: torch.device, drawer: Any) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._drawn = [drawer.submit(draw_noise, generator, tokens, bits) for tokens in schedule.tokens]
        self._device = device

    def __len__(self) -> int:
        return len(self._drawn)

    def __getitem__(self, index: Any) -> Any:
        noise = self._drawn[index].result()
        return noise.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else noise


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

    def run(self, batch: int, *, keep_trace: bool) -> ReferenceRun:
        """All scales; with a trace, what the blocks gave and what was drawn from it."""
        model, spec = self.model, self.model.spec
        settings = ReferenceSettings(spec.guidance, spec.temperature, sampling_rule(model), seed=0)
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


class Toolkit:
    """This toolkit's loop: text projected once, keys and values in place, and what else is asked for.

    Args:
        compiled: blocks and decoder by torch.compile.
        graphs: CUDA graphs of the prompt and of small calls.
        fp8: the blocks' matrix products in 8-bit floats.
    """

    def __init__(self, model: Model, *, compiled: bool, graphs: bool, fp8: bool = False) -> None:
        self.model, self.blocks = model, GpuBlocks(model, compiled=compiled, graphs=graphs, fp8=fp8)
        self.prompt = PromptGraph(model.transformer, precision=model.precision)
        self.prompt_graphs = CudaGraphs() if graphs else None
        self.decode = torch.compile(decode, dynamic=False) if compiled else decode
        self.drawer = ThreadPoolExecutor(max_workers=1)
        self.space, self.rule = BitTokens(model.spec.layout), sampling_rule(model)
        tables = rope_table(model.schedule, model.spec.transformer.head_dim)
        placed = tuple({"cos": cos.to(model.device), "sin": sin.to(model.device)} for cos, sin in tables)
        self.placement = Placement(level_offsets(model.transformer).to(model.device), placed)

    @torch.no_grad()
    def draw(self, batch: int, policy: Policy) -> tuple[torch.Tensor, list[list[ScaleTrace]]]:
        """Pixels [B, 3, height, width], and what every image computed."""
        images = self.run(self.images(batch), policy)
        pixels = torch.cat([self.decode(self.model.vae, image.latent[None]) for image in images])
        self.blocks.check_finite()
        return pixels, [image.trace for image in images]

    def images(self, batch: int, seed: int = 0) -> list[ImageState]:
        """Images to be drawn, of seeds one apart; a thread draws their noise from now on."""
        schedule, device = self.model.schedule, self.model.device
        shape = self.space.empty_latent(schedule).shape
        return [
            ImageState(
                seed=seed + i,
                noise=cast(Any, NoiseAhead(seed + i, schedule, self.space.channels, device, self.drawer)),
                latent=torch.zeros(shape, device=device),
                unconditional=True,
            )
            for i in range(batch)
        ]

    @torch.no_grad()
    def run(self, images: list[ImageState], policy: Policy, on_logits: OnLogits | None = None) -> list[ImageState]:
        """All scales; gives the images back, their latents drawn."""
        spec, schedule = self.model.spec, self.model.schedule
        settings = LoopSettings(
            schedule=schedule,
            space=self.space,
            guidance=(spec.guidance,) * len(schedule),
            temperature=(spec.temperature,) * len(schedule),
            filter=self.rule,
            policy=policy,
            placement=self.placement,
        )
        self.blocks.arenas.give_back()
        run_scales(cast(Blocks, self.blocks), self._rows(len(images)), images, settings, on_logits=on_logits)
        return images

    def _rows(self, batch: int) -> PromptRows:
        """The same text for every image, and the unconditional text as often."""
        uncond = self.model.transformer.unconditional_text(len(self.model.features)).float()
        features = torch.stack([self.model.features] * batch + [uncond] * batch)
        graphs = self.prompt_graphs
        results = self.prompt(features) if graphs is None else graphs.run(self.prompt, [features])
        named = dict(zip(self.prompt.signature.output_names, results, strict=True))
        return PromptRows(named.pop("start"), named)

    def clear(self) -> None:
        """Gives back what was kept from image to image."""
        self.blocks.clear()
        if self.prompt_graphs is not None:
            self.prompt_graphs.clear()
