"""Logits of one picture, overheard, and the streamed reference model's logits of the same tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from ldp_runtime.bundle.files import TOKENIZER, Bundle
from ldp_runtime.engines.base import Engine
from ldp_runtime.engines.blocks import Blocks
from ldp_runtime.pipeline.open_engines import open_engines
from ldp_runtime.pipeline.pipeline import Pipeline
from ldp_runtime.schedule import ScaleSchedule
from ldp_runtime.tokenizer import PromptTokenizer

from ldp_export.checkpoints.infinity import map_infinity
from ldp_export.checkpoints.sources import Sources
from ldp_export.models.registry import InfinitySpec
from ldp_export.reference.streamed import streamed_weights


@dataclass
class OverheardRun:
    """What a picture's engines were given and gave.

    Attributes:
        features: text features of both branches [R, T, Ct].
        inputs: latents of the computed tokens of each scale [L, bits].
        kept: indices of the computed tokens of each scale; None: all of them.
        logits: of each scale [R, L, V]; one row where the unconditional branch has been stopped.
    """

    features: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    inputs: list[torch.Tensor] = field(default_factory=list)
    kept: list[torch.Tensor | None] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)


class _Blocks(Blocks):
    def __init__(self, blocks: Blocks, run: OverheardRun) -> None:
        self.__dict__.update(blocks.__dict__)
        self._run = run

    def run(self, latents: torch.Tensor, *tensors: Any, **options: Any) -> torch.Tensor:
        logits = super().run(latents, *tensors, **options)
        self._run.inputs.append(latents[0].clone())
        self._run.logits.append(logits.clone())
        return logits


class _Prompt:
    def __init__(self, engine: Engine, run: OverheardRun) -> None:
        self.name, self.device = engine.name, engine.device
        self._engine, self._run = engine, run

    def run(self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> None:
        self._run.features = inputs["features"].clone()
        self._engine.run(inputs, outputs)

    def close(self) -> None:
        self._engine.close()


def overheard(bundle: Bundle, prompt: str, policy: str) -> OverheardRun:
    """Draws one picture with a bundle, and keeps what its engines were given and gave."""
    run, manifest = OverheardRun(), bundle.manifest
    engines = open_engines(bundle, torch.device("cpu"))
    engines = replace(engines, blocks=_Blocks(engines.blocks, run), prompt=_Prompt(engines.prompt, run))
    tokenizer = PromptTokenizer(bundle.path(TOKENIZER), manifest.limits.text_tokens)
    with Pipeline(manifest, engines, tokenizer, max_batch=1) as pipe:
        result = pipe(prompt, seed=0, policy=policy, output_type="latent")
    run.kept = [scale.kept for scale in result.traces[0].scales]
    return run


@torch.no_grad()
def forced_logits(
    sources: Sources, spec: InfinitySpec, schedule: ScaleSchedule, run: OverheardRun
) -> list[torch.Tensor]:
    """Reference logits [R, L, V] of each scale of a run: all scales in one call, pruned tokens hidden by a mask."""
    drawn = replace(schedule, grids=schedule.grids[: len(run.logits)])
    inputs, masks = list[torch.Tensor](), list[torch.Tensor]()
    for given, kept, tokens in zip(run.inputs, run.kept, drawn.tokens, strict=True):
        at = torch.arange(tokens) if kept is None else kept
        inputs.append(torch.zeros(tokens, given.shape[1]).index_copy_(0, at, given))
        masks.append(torch.zeros(tokens, dtype=torch.bool).index_fill_(0, at, True))
    sequence = torch.cat(inputs[1:])[None].expand(len(run.features), -1, -1)
    model = map_infinity(sources.transformer, spec.transformer)
    with streamed_weights(model):
        logits = model(run.features, None, sequence, drawn, torch.cat(masks))
    return [part[:, mask] for part, mask in zip(logits.split(drawn.tokens, dim=1), masks, strict=True)]
