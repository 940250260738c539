"""The 2B and 8B architectures at 1024x1024 on a GPU, with random weights: speed alone, no pictures.

    python benchmarks/gpu.py                          # bfloat16, batch 1, 2 and 4; under ten minutes on an H100
    python benchmarks/gpu.py --models infinity-2b --batch 1
    python benchmarks/gpu.py --device cpu --tiny      # proves that the code runs; its times mean nothing

Needs PyTorch with CUDA and this package, no engine library. Eager is the original loop in bfloat16 with PyTorch's own
fused attention. Compiled is this toolkit's loop over the same weights: text keys and values hoisted out of the scales,
each block compiled by torch.compile for any number of rows, tokens and past, CUDA graphs for calls of few tokens.
Random weights cannot choose tokens: keep shares and the scale after which the unconditional branch stops are what
calibration found (`--keep-from`: a profile, or the committed study of the embedded model, which is the default), or
given by hand (`--keep`, `--stop-scale`). Neither was measured on a model of these sizes; the result says which it was.

Times are between CUDA events around a whole image: noise, all scales, decoder; no text encoder.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from gpu_options import parse, policies, shares, specs
from ldp_runtime.bit_tokens import BitTokens
from ldp_runtime.blocks import Blocks, BlocksChunk, ModelShape, Placement, PromptRows
from ldp_runtime.engines.torch_compiled import GRAPHED_TOKENS
from ldp_runtime.engines.torch_cuda_graphs import CudaGraphs
from ldp_runtime.pruning.policy import Policy
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.scale_loop import ImageState, LoopSettings, run_scales
from ldp_runtime.schedule import ScaleSchedule, rope_table

from ldp_export.bench.clock import Clock
from ldp_export.bench.roofline import measured_peak
from ldp_export.graphs import blocks as blocks_graph
from ldp_export.graphs.blocks import BlocksGraph
from ldp_export.graphs.prompt import PromptGraph, level_offsets
from ldp_export.models.bsq_vae import BsqVae
from ldp_export.models.infinity import InfinityTransformer, rotate
from ldp_export.models.reference import ReferenceSettings, generate
from ldp_export.models.registry import ModelSpec

TEXT_TOKENS = 32


@dataclass(frozen=True)
class Model:
    """Random weights of one architecture on a device."""

    spec: ModelSpec
    transformer: InfinityTransformer
    vae: BsqVae
    device: torch.device
    features: torch.Tensor  # [T, text_channels]

    @property
    def schedule(self) -> ScaleSchedule:
        return ScaleSchedule.of_size(self.spec.size)


@torch.no_grad()
def random_model(spec: ModelSpec, device: torch.device) -> Model:
    """Weights drawn on the device; matrices in bfloat16, the original's float32 islands in float32."""
    torch.manual_seed(0)
    with torch.device("meta"):
        transformer, vae = InfinityTransformer(spec.transformer), BsqVae(spec.vae)
    for module in (BlocksGraph(transformer, precision="bfloat16"), PromptGraph(transformer, precision="bfloat16")):
        types = module.weight_types()
        for name, parameter in module.named_parameters():
            parameter.data = parameter.data.to(types[name])
    for module in (transformer.to_empty(device=device), vae.to(torch.bfloat16).to_empty(device=device)):
        for parameter in module.parameters():
            parameter.normal_(0, 0.02 if parameter.dim() < 2 else parameter[0].numel() ** -0.5)
        module.eval().requires_grad_(False)
    features = torch.randn(TEXT_TOKENS, spec.transformer.text_channels, device=device)
    return Model(spec, transformer, vae.to(memory_format=torch.channels_last), device, features)


class CompiledBlocks:
    """All blocks and the head as one engine. One compilation serves every block: they differ in weights only."""

    name = "blocks"

    def __init__(self, model: Model) -> None:
        self.device = model.device
        self.graph = BlocksGraph(model.transformer, precision="bfloat16")
        # The exported operator has a Python implementation that the compiler cannot see into; this one it fuses.
        blocks_graph._rotate = rotate
        block = torch.compile(BlocksGraph._block, dynamic=True)
        object.__setattr__(self.graph, "_block", lambda *tensors: block(self.graph, *tensors))
        self.graphs = CudaGraphs() if self.device.type == "cuda" else None

    @torch.no_grad()
    def run(self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> None:
        given = [inputs[name] for name in self.graph.signature.input_names]
        small = given[0].shape[1] <= GRAPHED_TOKENS
        results = self.graphs.run(self.graph, given) if self.graphs is not None and small else self.graph(*given)
        for name, result in zip(self.graph.signature.output_names, results, strict=True):
            if name in outputs:
                outputs[name].copy_(result)

    def close(self) -> None:
        pass


class Compiled:
    """This toolkit's loop over compiled blocks and a compiled decoder."""

    def __init__(self, model: Model) -> None:
        self.model, config = model, model.spec.transformer
        engine = CompiledBlocks(model)
        names = frozenset(engine.graph.signature.input_names)
        shape = ModelShape(config.depth, config.width, config.heads, 2 * config.bits, torch.bfloat16)
        self.blocks = Blocks([BlocksChunk(engine, 0, config.depth, names)], shape)
        self.prompt = PromptGraph(model.transformer, precision="bfloat16")
        self.decode = torch.compile(model.vae.decode, dynamic=False)
        offsets = level_offsets(model.transformer).to(model.device)
        tables = rope_table(model.schedule, config.head_dim)
        placed = tuple({"cos": cos.to(model.device), "sin": sin.to(model.device)} for cos, sin in tables)
        self.placement = Placement(offsets, placed)

    @torch.no_grad()
    def draw(self, batch: int, policy: Policy) -> tuple[torch.Tensor, int]:
        """Images, and tokens times rows that the blocks computed."""
        model, schedule, space = self.model, self.model.schedule, BitTokens(self.model.spec.layout)
        images = [
            ImageState(
                seed=i,
                noise=tuple(noise.to(model.device) for noise in space.noise(i, schedule)),
                latent=space.empty_latent(schedule).to(model.device),
                unconditional=True,
            )
            for i in range(batch)
        ]
        settings = LoopSettings(
            schedule=schedule,
            space=space,
            guidance=(model.spec.guidance,) * len(schedule),
            temperature=(model.spec.temperature,) * len(schedule),
            filter=SamplingFilter(model.spec.top_k, model.spec.top_p),
            policy=policy,
            placement=self.placement,
        )
        run_scales(self.blocks, self._rows(batch), images, settings)
        latents = torch.stack([image.latent for image in images]).to(torch.bfloat16)
        pixels = torch.cat([self.decode(latent[None]) for latent in latents])
        return pixels, sum(scale.tokens * scale.rows for image in images for scale in image.trace)

    def _rows(self, batch: int) -> PromptRows:
        """The same text for every image, and the unconditional text as often."""
        uncond = self.model.transformer.unconditional_text(TEXT_TOKENS).float()
        features = torch.stack([self.model.features] * batch + [uncond] * batch)
        results = [result.contiguous() for result in self.prompt(features)]
        named = dict(zip(self.prompt.signature.output_names, results, strict=True))
        start = named.pop("start")
        named["text_mask"] = torch.ones(2 * batch, TEXT_TOKENS, dtype=torch.bool, device=self.model.device)
        return PromptRows(start, named)


@torch.no_grad()
def draw_eager(model: Model, batch: int) -> torch.Tensor:
    """The original loop: both branches to the end, K/V grown by concatenation, text projected at every scale."""
    spec = model.spec
    rule = SamplingFilter(spec.top_k, spec.top_p)
    settings = ReferenceSettings(spec.guidance, spec.temperature, rule, seed=0)
    texts = [model.features] * batch
    run = generate(model.transformer, texts, model.schedule, spec.layout, settings, keep_trace=False)
    return model.vae.decode(run.latent.to(torch.bfloat16))


def timed(
    draw: Callable[[], tuple[Any, int | None]], device: torch.device, warmup: int, repeats: int
) -> dict[str, Any]:
    """Samples of one candidate; the first call, which compiles and captures, apart."""
    started = time.perf_counter()
    _, row_tokens = draw()
    first = time.perf_counter() - started
    for _ in range(warmup):
        draw()
    samples, peak = [], None
    for _ in range(repeats):
        clock = Clock(device.type)
        draw()
        wall, cpu, events = clock.stop()
        samples.append({"wall_ms": wall, "cpu_ms": cpu, "device_ms": events})
        peak = clock.peak_device_mb()
    return {"row_tokens": row_tokens, "first_s": first, "samples": samples, "peak_device_mb": peak}


def hardware(device: torch.device) -> dict[str, Any]:
    """Names, versions, and on a GPU its clocks and whether it is being throttled."""
    found: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
        found |= {"clocks": _clocks()}
    found["peak_bfloat16_tflops"] = measured_peak(torch.get_num_threads(), device.type, torch.bfloat16) / 1e12
    return found


def _clocks() -> str | None:
    """One line of nvidia-smi; None where it is not installed."""
    fields = "clocks.sm,clocks.max.sm,temperature.gpu,power.draw,clocks_throttle_reasons.active"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip()


def measure(spec: ModelSpec, options: argparse.Namespace, save: Callable[[dict[str, Any]], None], end: float) -> None:
    """All candidates of one architecture; each result is saved when it is there."""
    device = torch.device(options.device)
    model = random_model(spec, device)
    compiled = Compiled(model)
    chosen = policies(shares(options, spec), model.schedule)
    for batch in options.batch:

        def record(
            name: str, policy: Policy | None, draw: Callable[[], tuple[Any, int | None]], batch: int = batch
        ) -> None:
            if time.monotonic() > end:
                print(f"{spec.name} batch {batch} {name}: left out, the time is up", flush=True)
                return
            result = timed(draw, device, options.warmup, options.repeats)
            best = sorted(s["device_ms"] or s["wall_ms"] for s in result["samples"])[options.repeats // 2]
            print(f"{spec.name} batch {batch} {name}: {best:.1f} ms (first {result['first_s']:.1f} s)", flush=True)
            words = None if policy is None else repr(policy)
            save({"model": spec.name, "batch": batch, "candidate": name, "policy": words} | result)

        record("eager", None, lambda batch=batch: (draw_eager(model, batch), None))
        for name, policy in chosen.items():
            record(f"compiled, {name}", policy, lambda batch=batch, policy=policy: compiled.draw(batch, policy))


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse(arguments, __doc__)
    models = specs(options)
    given = shares(options, models[0])
    result: dict[str, Any] = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "weights": "random: speed only, no quality",
        "keep": given.keep,
        "keep_from": given.origin,
        "stop_scale": given.stop_scale,
        "results": [],
    }
    end = time.monotonic() + 60 * options.minutes
    result["hardware"] = hardware(torch.device(options.device))

    def save(entry: dict[str, Any]) -> None:
        result["results"].append(entry)
        options.output.write_text(json.dumps(result, indent=1) + "\n")

    for spec in models:
        measure(spec, options, save, end)
        if options.device == "cuda":
            torch.cuda.empty_cache()
    result["clocks_after"] = _clocks() if options.device == "cuda" else None
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()
