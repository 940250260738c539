"""Teacher forcing: runs of the runtime's loop on recorded tokens and given masks, with its logits overheard.

Production knows nothing of it: recorded tokens come from a codec, masks from a policy, and logits from the blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from ldp_runtime.engines.blocks import Blocks
from ldp_runtime.engines.cache_memory import CacheMemory, HeldCache
from ldp_runtime.engines.cache_plan import CachePlan
from ldp_runtime.engines.kv_cache import StaticKVCache
from ldp_runtime.engines.slots import Lease
from ldp_runtime.families.base import Codec
from ldp_runtime.pruning.policy import ScaleView, Selection, TokenRule
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.schedule import Grid, ScaleSchedule


@dataclass(frozen=True)
class RecordedCodec:
    """Codec whose draws are recorded tokens: they take the place of the image's noise, which belongs to positions."""

    codec: Codec

    @property
    def channels(self) -> int:
        return self.codec.channels

    @property
    def gap_terms(self) -> int:
        return self.codec.gap_terms

    def empty_latent(self, schedule: ScaleSchedule) -> torch.Tensor:
        return self.codec.empty_latent(schedule)

    def noise(self, seed: int, schedule: ScaleSchedule) -> tuple[torch.Tensor, ...]:
        return self.codec.noise(seed, schedule)

    def draw_noise(self, generator: torch.Generator, schedule: ScaleSchedule, scale: int) -> torch.Tensor:
        return self.codec.draw_noise(generator, schedule, scale)

    def residual_inputs(
        self, scores: torch.Tensor, noise: torch.Tensor, rule: SamplingFilter, weight: float, guided: bool
    ) -> Mapping[str, torch.Tensor] | None:
        """None: recorded latents are those before the residual, whose graph is checked by itself."""
        return None

    def mixing(self) -> RecordedCodec:
        return self

    def variates(self, scale: int, scales: int) -> int:
        return self.codec.variates(scale, scales)

    def of_uniforms(self, uniform: torch.Tensor) -> torch.Tensor:
        return self.codec.of_uniforms(uniform)

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        return self.codec.scores(logits)

    def gap(self, conditional: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
        return self.codec.gap(conditional, unconditional)

    def draw(
        self, scores: torch.Tensor, noise: torch.Tensor, rule: SamplingFilter, scale: int, scales: int, ended: bool
    ) -> torch.Tensor:
        """Codes [L, channels] of the recorded tokens that stand in for the noise; the scores decide nothing."""
        return self.codec.codes(noise)

    def codes(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.codec.codes(tokens)

    def accumulate(self, latent: torch.Tensor, codes: torch.Tensor, scale: int, scales: int) -> torch.Tensor:
        return self.codec.accumulate(latent, codes, scale, scales)

    def next_input(self, latents: torch.Tensor, grid: Grid) -> torch.Tensor:
        return self.codec.next_input(latents, grid)


@dataclass(frozen=True, eq=False)
class GivenMasks(TokenRule):
    """Token rule that keeps the given tokens.

    Attributes:
        keep: indices of the kept tokens of each scale; None: all of them.
    """

    keep: Sequence[torch.Tensor | None]

    def prunes(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        return tuple(k for k, kept in enumerate(self.keep) if kept is not None)

    def select(self, view: ScaleView) -> Selection | None:
        kept = self.keep[view.scale]
        return None if kept is None else Selection(kept, torch.zeros(view.schedule.grids[view.scale]))


class OverheardBlocks(Blocks):
    """Blocks that show the logits [R, L, V] of each call, with its scale.

    Args:
        on_logits: called with the scale and the logits of each call.
    """

    def __init__(self, blocks: Blocks, on_logits: Callable[[int, torch.Tensor], Any]) -> None:
        self.__dict__.update(blocks.__dict__)
        self._on_logits = on_logits

    def run(self, *tensors: Any, scale: int, **options: Any) -> torch.Tensor:
        logits = super().run(*tensors, scale=scale, **options)
        self._on_logits(scale, logits)
        return logits


#: Largest number that fills a static cache: its products with queries are finite in every precision.
_STATIC_POISON = 1e3


class FilledMemory(CacheMemory):
    """Memory of caches that holds a value wherever nothing was written yet.

    A static cache must hold finite numbers: NaN leaves it as it is, and other values are limited to `_STATIC_POISON`.
    """

    def __init__(self, plan: CachePlan, device: torch.device, value: float) -> None:
        super().__init__(plan, device)
        self._value = value

    @classmethod
    def of(cls, blocks: Blocks, schedule: ScaleSchedule, images: int, value: float) -> FilledMemory:
        """Memory of one run of so many images that are not quantized."""
        return cls(CachePlan.of(blocks.shape, [schedule], lambda _: (), images, images), blocks.device, value)

    def cache_in(self, lease: Lease[Any], rows: int) -> HeldCache:
        held = super().cache_in(lease, rows)
        if isinstance(held.cache, StaticKVCache) and not math.isnan(self._value):
            for tensor in (tensor for layer in held.cache.reads() for tensor in layer.values()):
                tensor.fill_(min(self._value, _STATIC_POISON))
        return held

    def _empty(self, elements: int) -> torch.Tensor:
        return super()._empty(elements).fill_(self._value)
