"""Measurement of ranges: the reference model draws a prompt, and the inputs of its blocks' layers are watched."""

from __future__ import annotations

from collections.abc import Callable

import torch
from ldp_runtime.architecture.infinity import InfinityEntry
from ldp_runtime.bundle.manifest import Defaults
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.schedule import ScaleSchedule
from ldp_runtime.tokenizer import PromptTokenizer

from ldp_export.checkpoints.t5 import TextEncoder
from ldp_export.models.infinity import InfinityTransformer
from ldp_export.quantization.ranges import Ranges, watched
from ldp_export.reference.infinity import InfinitySettings, generate
from ldp_export.reference.streamed import streamed_weights
from ldp_export.verification.recording.sizes import TEXT_TOKENS


@torch.no_grad()
def prompt_features(
    load: Callable[[], TextEncoder] | None, prompt: str, number: int, text_tokens: int, channels: int
) -> torch.Tensor:
    """Features [T, Ct] of a prompt; without a text encoder, seeded random ones in their place.

    Args:
        load: loads the text encoder, which leaves memory again before anything is drawn.
        number: number of the prompt: the seed of random features.
        text_tokens: most tokens that the model reads.
    """
    if load is None:
        return torch.randn(TEXT_TOKENS, channels, generator=torch.Generator().manual_seed(number))
    encoder = load()
    return encoder.features(PromptTokenizer(encoder.tokenizer, text_tokens)(prompt))


@torch.no_grad()
def infinity_ranges(
    transformer: InfinityTransformer, text: torch.Tensor, model: InfinityEntry, defaults: Defaults, number: int
) -> Ranges:
    """Ranges of one guided image, drawn over all scales with the model's default settings.

    Args:
        transformer: reference model; its weights may be views of files, in any element type.
        text: features of the prompt [T, Ct].
        number: number of the prompt: the seed, and the choice of an aspect ratio, which the prompts take in turn.
    """
    ratio = model.aspect_ratios[number % len(model.aspect_ratios)]
    rule = SamplingFilter(defaults.top_k, defaults.top_p)
    settings = InfinitySettings(defaults.guidance, defaults.temperature, rule, number)
    with streamed_weights(transformer), watched(transformer.blocks) as ranges:
        schedule = ScaleSchedule.of_size(model.size, ratio)
        generate(transformer, [text], schedule, model.layout, settings, keep_trace=False)
        return ranges()
