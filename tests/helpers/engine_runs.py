"""Driving a pipeline's engines: through the scale loop directly, with logits recorded, or as a service does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from ldp_runtime import Pipeline, Policy
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.families.choose import guidance_weights, placement
from ldp_runtime.guidance import per_scale
from ldp_runtime.pipeline.batch import ImageSettings, ImageState
from ldp_runtime.pipeline.conditions import text_rows
from ldp_runtime.pipeline.open_engines import Engines
from ldp_runtime.pipeline.request import TextFeatures
from ldp_runtime.pipeline.run import Run
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.schedule import ScaleSchedule

from ldp_export.verification.forced import GivenMasks, OverheardBlocks, RecordedCodec


def engines_of(pipe: Pipeline) -> Engines:
    engines = pipe._engines
    assert engines is not None
    return engines


@dataclass
class LoopRun:
    image: ImageState
    logits: dict[int, torch.Tensor] = field(default_factory=dict)


def run_loop(
    pipe: Pipeline,
    text: torch.Tensor,
    *,
    schedule: ScaleSchedule | None = None,
    guidance: float | Sequence[float] = 3.0,
    temperature: float | Sequence[float] = 0.5,
    rule: SamplingFilter | None = None,
    seed: int = 0,
    policy: Policy | None = None,
    bits: Sequence[torch.Tensor] | None = None,
    keep: Sequence[torch.Tensor | None] | None = None,
    quantized: Mapping[int, str] | None = None,
) -> LoopRun:
    """One image, with guidance by the learned unconditional text; `bits` and `keep` force the run, `quantized` scales
    run blocks in 8 bits."""
    engines, model = engines_of(pipe), pipe.manifest.model
    schedule = schedule or pipe.manifest.schedule()
    S, codec = len(schedule), engines.codec
    prompt = text_rows(engines, pipe.manifest, TextFeatures(text), guided=True)
    settings = ImageSettings(
        codec if bits is None else RecordedCodec(codec),
        guidance_weights(model, guidance, S),
        per_scale(temperature, S, "temperature"),
        rule or SamplingFilter(900, 0.97),
        Policy(GivenMasks(keep)) if keep is not None else policy or Policy(),
    )
    noise = codec.noise(seed, schedule) if bits is None else bits
    image = ImageState(settings, schedule, seed, noise, codec.empty_latent(schedule), True)
    run = LoopRun(image)
    blocks = OverheardBlocks(engines.blocks, run.logits.__setitem__)
    Run(blocks, placement(model, engines.constants, schedule), [image], prompt, quantized).complete()
    return run


def check_draws_without_exporter(bundle: Bundle) -> None:
    """In a process of its own: a service has the base install alone."""
    code = (
        "import sys, torch; from ldp_runtime import Pipeline\n"
        f"pipe = Pipeline.load({str(bundle.folder)!r}, threads=1)\n"
        "pipe(prompt_embeds=torch.randn(5, 32), seed=0, output_type='latent')\n"
        "assert not {'ldp_export', 'onnx', 'onnxscript'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
