"""Driving a pipeline's engines through the scale loop directly, with logits recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from ldp_runtime import Pipeline, Policy
from ldp_runtime.blocks import PromptRows
from ldp_runtime.bundle_engines import Engines, run_prompt
from ldp_runtime.guidance import per_scale
from ldp_runtime.sampling import SamplingFilter, position_noise
from ldp_runtime.scale_loop import ImageState, LoopSettings, run_scales
from ldp_runtime.schedule import ScaleSchedule


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
) -> LoopRun:
    """One image, with guidance by the learned unconditional text; `bits` and `keep` force the run."""
    engines, layout = engines_of(pipe), pipe.manifest.model.layout
    schedule = schedule or pipe.manifest.schedule()
    S, (h, w) = len(schedule), layout.latent_grid(schedule.final_grid)
    rows = torch.stack((text, engines.unconditional_text[: len(text)]))
    prompt: PromptRows = run_prompt(engines.prompt, pipe.manifest, rows)
    image = ImageState(
        seed, position_noise(seed, schedule, layout.bits), torch.zeros(layout.channels, h, w), True, bits, keep
    )
    settings = LoopSettings(
        schedule,
        layout,
        per_scale(guidance, S, "guidance"),
        per_scale(temperature, S, "temperature"),
        rule or SamplingFilter(900, 0.97),
        policy or Policy(),
        engines.level_offsets,
    )
    run = LoopRun(image)
    run_scales(engines.blocks, prompt, [image], settings, None, lambda k, logits: run.logits.update({k: logits}))
    return run
