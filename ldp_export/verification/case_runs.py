"""Runs of a bundle's engines on recorded cases, with the runtime's own loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.bundle.manifest import QuantizedScales
from ldp_runtime.engines.blocks import Blocks, PromptRows
from ldp_runtime.engines.cache_memory import CacheMemory
from ldp_runtime.families.choose import guidance_end, guidance_weights, placement, temperatures
from ldp_runtime.pipeline.batch import ImageSettings, ImageState
from ldp_runtime.pipeline.conditions import class_rows, text_rows, texts_rows
from ldp_runtime.pipeline.open_engines import Engines
from ldp_runtime.pipeline.request import TextFeatures
from ldp_runtime.pipeline.run import Run
from ldp_runtime.pruning.policy import Policy
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.schedule import ScaleSchedule

from ldp_export.verification.cases import Case, ReferenceCases
from ldp_export.verification.forced import GivenMasks, OverheardBlocks, RecordedCodec


def case_rows(bundle: Bundle, engines: Engines, reference: ReferenceCases, case: Case) -> PromptRows:
    """Rows of a recorded case's text or class, with the unconditional row if the case is guided."""
    schedule = bundle.manifest.schedule(case.aspect_ratio)
    guided = any(g != 1 for g in guidance_weights(bundle.manifest.model, case.guidance, len(schedule)))
    if case.label is not None:
        return class_rows(engines, bundle.manifest, case.label, guided)
    return rows_of_text(bundle, engines, reference, case, guided)


def rows_of_text(
    bundle: Bundle, engines: Engines, reference: ReferenceCases, case: Case, guided: bool, tokens: int | None = None
) -> PromptRows:
    """Rows of the first `tokens` (None: all) of a recorded case's text, with the unconditional one if it is guided.

    Models that read padding have texts of one length: theirs is moved by so many rows instead.
    """
    text = recorded_text(reference, case, engines, "features", "pooled")
    moved = tokens is not None and bundle.manifest.model.fixed_text_tokens > 0
    text = TextFeatures(text.rows.roll(tokens or 0, 0) if moved else text.rows[:tokens], text.pooled)
    if not guided or f"{case.name}.negative" not in reference.tensors:
        return text_rows(engines, bundle.manifest, text, guided)
    negative = recorded_text(reference, case, engines, "negative", "negative_pooled")
    return texts_rows(engines, bundle.manifest, [text, negative])


def recorded_text(reference: ReferenceCases, case: Case, engines: Engines, rows: str, pooled: str) -> TextFeatures:
    """Text of a recorded case by the names of its tensors, on the device of the engines."""
    vector = reference.tensors.get(f"{case.name}.{pooled}")
    return TextFeatures(reference.tensors[f"{case.name}.{rows}"], vector).to(engines.prompt.device)


def run_case(
    bundle: Bundle,
    engines: Engines,
    prompt: PromptRows,
    schedule: ScaleSchedule,
    case: Case,
    tokens: Sequence[torch.Tensor] | None,
    keep: Sequence[torch.Tensor | None] | None,
    on_logits: Callable[[int, torch.Tensor], Any] | None,
    quantized: Mapping[int, str] | None = None,
) -> ImageState:
    """Draws one image with the runtime's loop, teacher-forced if `tokens` are given.

    Args:
        quantized: set of each scale that runs quantized blocks; None for the bundle's own.
    """
    state = image_state(bundle, engines, schedule, case, tokens, keep)
    blocks = engines.blocks if on_logits is None else OverheardBlocks(engines.blocks, on_logits)
    run_of(bundle, engines, blocks, prompt, [state], case, quantized).complete()
    return state


def image_state(
    bundle: Bundle,
    engines: Engines,
    schedule: ScaleSchedule,
    case: Case,
    tokens: Sequence[torch.Tensor] | None,
    keep: Sequence[torch.Tensor | None] | None = None,
) -> ImageState:
    """An image of a case before its first scale, teacher-forced if `tokens` are given."""
    manifest, codec, S = bundle.manifest, engines.codec, len(schedule)
    device, defaults = engines.blocks.device, manifest.defaults
    noise = codec.noise(case.seed or 0, schedule) if tokens is None else tokens
    guided, ended = temperatures(manifest.model, defaults.temperature, S)
    settings = ImageSettings(
        codec if tokens is None else RecordedCodec(codec),
        guidance_weights(manifest.model, case.guidance, S),
        guided,
        SamplingFilter(defaults.top_k, defaults.top_p),
        Policy(None if keep is None else GivenMasks(keep)),
        ended,
        guidance_end(manifest.model, case.guidance, S),
    )
    return ImageState.new(settings, schedule, case.seed or 0, tuple(n.to(device) for n in noise), device)


def run_of(
    bundle: Bundle,
    engines: Engines,
    blocks: Blocks,
    prompt: PromptRows,
    images: Sequence[ImageState],
    case: Case,
    quantized: Mapping[int, str] | None = None,
    memory: CacheMemory | None = None,
) -> Run:
    """The runtime's loop over images of one case, before its first step; their schedule may be its first scales."""
    schedule = images[0].schedule
    placed = placement(bundle.manifest.model, engines.constants, schedule)
    if quantized is None:
        quantized = bundle.manifest.scale_sets(bundle.manifest.schedule(case.aspect_ratio))
    of_schedule = {k: name for k, name in quantized.items() if k < len(schedule)}
    return Run(blocks, placed, images, prompt, of_schedule, memory)


def quantized_scales(bundle: Bundle, case: Case) -> dict[int, QuantizedScales]:
    """Sets of the scales at which an image of the case runs quantized blocks, recorded or not."""
    return bundle.manifest.quantized_scales(bundle.manifest.schedule(case.aspect_ratio))
