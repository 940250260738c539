"""Reference runs of Infinity on the shortest text and on the longest: the first scales on random bits."""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from ldp_runtime.architecture.infinity import InfinityEntry
from ldp_runtime.bundle.manifest import Defaults
from ldp_runtime.tokenizer import PromptTokenizer

from ldp_export.checkpoints.t5 import TextEncoder
from ldp_export.models.infinity import InfinityTransformer
from ldp_export.reference.streamed import streamed_weights
from ldp_export.verification.cases import Case, ReferenceCases
from ldp_export.verification.recording.infinity import PROMPTS, forced_infinity_logits

#: Number of first scales that are run.
_SCALES = 2


@torch.no_grad()
def with_text_lengths(
    cases: ReferenceCases,
    transformer: InfinityTransformer,
    encoder: TextEncoder | None,
    model: InfinityEntry,
    defaults: Defaults,
) -> ReferenceCases:
    """The recorded runs, and runs on texts of one token and of as many as the model reads.

    Args:
        transformer: reference model; its weights may be views of files, in any element type.
    """
    tensors, added = dict(cases.tensors), []
    generator = torch.Generator().manual_seed(3)
    for length in (1, transformer.config.text_tokens):
        case = Case(f"text of {length}", 1.0, defaults.guidance, scales=_SCALES)
        tensors[f"{case.name}.features"] = _features(length, transformer, encoder, tensors, generator)
        for k, tokens in enumerate(case.of(model.schedule(1.0)).tokens):
            bits = torch.rand(tokens, model.bits, generator=generator) < 0.5
            tensors[f"{case.name}.bits_{k}"] = bits.to(torch.uint8)
        with streamed_weights(transformer):
            logits = forced_infinity_logits(transformer, replace(cases, tensors=tensors), case, model)
        tensors |= {f"{case.name}.logits_{k}": value for k, value in enumerate(logits)}
        added.append(case)
    return replace(cases, cases=(*cases.cases, *added), tensors=tensors)


def _features(
    length: int,
    transformer: InfinityTransformer,
    encoder: TextEncoder | None,
    tensors: dict[str, torch.Tensor],
    generator: torch.Generator,
) -> torch.Tensor:
    """Features of a text of so many tokens; adds an encoded text to `tensors`. Without an encoder they are random."""
    if encoder is None:
        return torch.randn(length, transformer.config.text_channels, generator=generator)
    name = f"text{sum(tensor.endswith('.ids') for tensor in tensors)}"
    words = PromptTokenizer(encoder.tokenizer, sys.maxsize)(" ".join(PROMPTS) + f" {PROMPTS[1]}" * length)
    ids = words[-length:]
    tensors[f"{name}.ids"], tensors[f"{name}.features"] = ids, encoder.features(ids)
    return tensors[f"{name}.features"]
