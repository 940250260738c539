"""Images on their way, and groups of them that share an engine call.

Images run in one call while each of them has the same tokens. From its first pruned scale on, an image runs by itself
with its own rows. So masks are never ragged, and a pruned image does not depend on its neighbours. The same holds from
its quantized scales on, where an engine takes ranges from all rows of a call.

Early scales lie in a small arena. Where the first images split, all go on in slots of memory; those that find none free
wait at that scale, until others are done.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from ldp_runtime.engines.blocks import Placement, PromptRows
from ldp_runtime.engines.cache_memory import CacheMemory, HeldCache
from ldp_runtime.engines.kv_cache import DynamicKVCache
from ldp_runtime.families.base import Codec
from ldp_runtime.guidance import last_guided_scale
from ldp_runtime.noise import CounterNoise
from ldp_runtime.numerics import scalar
from ldp_runtime.pipeline.trace import ScaleTrace
from ldp_runtime.pruning.policy import Policy, ScaleView, TokenRule
from ldp_runtime.pruning.sats import GuidanceGap
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.schedule import ScaleSchedule


@dataclass(frozen=True)
class ImageSettings:
    """Settings of one image.

    Attributes:
        codec: codec of the model, with the image's own options.
        guidance: weight of the conditional branch at each scale.
        temperature: of the logits, one number per scale.
        filter: top-k and top-p.
        policy: tokens to compute, and the scale at which the unconditional branch stops.
        ended_temperature: temperatures once guidance has ended; None: as before.
        guidance_end: first scale at which guidance has ended; None: it lasts.
    """

    codec: Codec
    guidance: tuple[float, ...]
    temperature: tuple[float, ...]
    filter: SamplingFilter
    policy: Policy
    ended_temperature: tuple[float, ...] | None = None
    guidance_end: int | None = None

    @property
    def is_guided(self) -> bool:
        """True if any scale has guidance."""
        return self.last_guided >= 0

    def temperature_at(self, scale: int, ended: bool) -> float:
        """Temperature of a scale; `ended` says that guidance has ended before it."""
        after = self.ended_temperature if ended else None
        return (self.temperature if after is None else after)[scale]

    def may_overflow(self, scale: int, ended: bool) -> bool:
        """True if guidance and temperature could take logits of up to 1e18 beyond float32."""
        weight = self.guidance[scale]
        return (abs(weight) + abs(1 - weight)) / self.temperature_at(scale, ended) > 1e20

    @cached_property
    def last_guided(self) -> int:
        return last_guided_scale(self.guidance)


@dataclass(eq=False)
class ImageState:
    """One image in progress. Only the loop writes to it.

    Attributes:
        seed: seed of the image.
        noise: noise of the full grid of every scale, [h*w, ...] each (see `Codec.noise`), or the means to draw it.
        latent: F_k [d, H, W].
        unconditional: the unconditional branch is alive.
        residual: R_k on the token grid [channels, h, w].
        kept: indices of the tokens of R_k that were computed (None: all).
        score: map that the tokens of scale k were chosen by, or None.
        gaps: guidance gap of every scale so far (None if not measured).
        difference: last known l_cond - l_uncond [n, h, w], if the policy recalls it.
        stopped: the policy stopped the unconditional branch after the last scale.
        trace: one entry per scale so far.
    """

    settings: ImageSettings
    schedule: ScaleSchedule
    seed: int
    noise: Sequence[torch.Tensor] | CounterNoise
    latent: torch.Tensor
    unconditional: bool
    residual: torch.Tensor = field(default_factory=lambda: scalar(0.0))
    kept: torch.Tensor | None = None
    score: torch.Tensor | None = None
    gaps: list[GuidanceGap | None] = field(default_factory=list)
    difference: torch.Tensor | None = None
    stopped: bool = False
    trace: list[ScaleTrace] = field(default_factory=list)

    @staticmethod
    def new(
        settings: ImageSettings,
        schedule: ScaleSchedule,
        seed: int,
        noise: Sequence[torch.Tensor] | CounterNoise,
        device: torch.device,
    ) -> ImageState:
        """An image before its first scale."""
        latent = settings.codec.empty_latent(schedule).to(device)
        return ImageState(settings, schedule, seed, noise, latent, settings.is_guided)

    @cached_property
    def scales(self) -> int:
        """Number of scales that will be run."""
        return self.settings.policy.scales_to_run(self.schedule)

    @cached_property
    def pruned(self) -> frozenset[int]:
        """Scales at which the policy may keep less than all tokens."""
        return frozenset(self.settings.policy.prunes(self.schedule))

    @property
    def tokens(self) -> TokenRule:
        """Rule that picks tokens, at scales that have one."""
        assert self.settings.policy.tokens is not None
        return self.settings.policy.tokens

    def first_alone(self, alone: Collection[int]) -> int | None:
        """The first scale at which the image runs by itself, if there is one."""
        return min((k for k in {*self.pruned, *alone} if k < self.scales), default=None)

    def stops_after(self, scale: int) -> bool:
        """True if the policy stops the unconditional branch after this scale, which another one follows."""
        rule = self.settings.policy.guidance
        return rule is not None and not self.is_last(scale) and rule.stops_after(self.gaps, scale, self.schedule)

    def is_last(self, scale: int) -> bool:
        """True for the last scale that is run: no later one reads its keys and values, or its guidance."""
        return scale == self.scales - 1

    def is_drawn_after(self, scale: int) -> bool:
        """True if no scale follows."""
        return scale >= self.scales - 1

    def guidance_ended(self, scale: int) -> bool:
        """True if guidance has ended before this scale: by its window, or since the policy stopped it for good.

        A policy that recalls the guidance of earlier scales goes on guiding.
        """
        end = self.settings.guidance_end
        stopped = self.settings.is_guided and not self.unconditional and self.difference is None
        return end is not None and (scale >= end or stopped)

    def needs_unconditional(self, scale: int) -> bool:
        """True if a scale from this one on uses the unconditional branch."""
        return self.unconditional and not self.stopped and scale <= self.settings.last_guided

    def noise_at(self, scale: int, kept: torch.Tensor | None) -> torch.Tensor:
        """Noise of the computed tokens [L, ...]."""
        if isinstance(self.noise, CounterNoise):
            return self.noise.at(scale, kept)
        noise = self.noise[scale]
        return noise if kept is None else noise.index_select(0, kept)

    def view(self, scale: int, inputs: torch.Tensor) -> ScaleView:
        """View of a policy before a scale with these inputs [h*w, channels]."""
        return ScaleView(
            schedule=self.schedule,
            scale=scale,
            residual=self.residual,
            computed=self._computed(),
            energy=self.score,
            latent=inputs.T.view(-1, *self.schedule.grids[scale]),
            seed=self.seed,
            patch=self.latent.shape[-1] // self.schedule.final_grid[1],
        )

    def _computed(self) -> torch.Tensor | None:
        """Mask of the last residual's computed positions [h, w]; None: all of them."""
        if self.kept is None:
            return None
        nowhere = torch.zeros(self.residual.shape[1:], dtype=torch.bool, device=self.kept.device)
        return nowhere.flatten().index_fill_(0, self.kept, True).view_as(nowhere)


@dataclass(eq=False)
class Group:
    """Images that share engine calls; the rows are [conditional of each, unconditional of those alive].

    Attributes:
        scale: the scale that is drawn next.
        held: the cache, once the group has memory for its first scale.
        moves_at: the scale before which the images move into slots; None: they lie there.
    """

    images: list[ImageState]
    prompt: PromptRows
    scale: int = 0
    held: HeldCache | None = None
    moves_at: int | None = None

    def alive(self) -> list[int]:
        """Indices of the images whose unconditional branch is alive."""
        return [i for i, image in enumerate(self.images) if image.unconditional]

    def rows_of(self, index: int) -> list[int]:
        """Rows of one image."""
        alive = self.alive()
        extra = [len(self.images) + alive.index(index)] if index in alive else []
        return [index, *extra]

    def inputs(self) -> torch.Tensor:
        """Down(F_{k-1}) on the grid of the next scale [B, h*w, channels]; zeros at scale 0, whose token is given."""
        first, k = self.images[0], self.scale
        codec, grid = first.settings.codec, first.schedule.grids[k]
        if k == 0:
            return first.latent.new_zeros(len(self.images), grid[0] * grid[1], codec.channels)
        latents = [image.latent[None] for image in self.images]
        return codec.next_input(latents[0] if len(latents) == 1 else torch.cat(latents), grid)

    def rows(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs [B, L, channels] of each row [R, L, channels]: both branches of an image see the same tokens."""
        alive = self.alive()
        if not alive:
            return inputs.contiguous()
        return torch.cat((inputs, inputs if len(alive) == len(inputs) else inputs[alive]))

    def offset(self, placement: Placement) -> torch.Tensor:
        """Numbers added to every embedded token [R, C]: the start token at scale 0, else the scale's embedding."""
        if self.scale == 0:
            return self.prompt.start.contiguous()
        return placement.offsets[self.scale].expand(self.prompt.rows, -1).contiguous()

    def rows_by_image(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Rows of each image [branches, ...], of a tensor of all rows [R, ...]."""
        return [rows[self.rows_of(i)] for i in range(len(self.images))]

    def by_image(self, logits: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Scores [L, n] of both branches of each image (None: stopped), from the logits of all rows [R, L, V]."""
        scores = self.images[0].settings.codec.scores(logits).unbind()
        others = dict(zip(self.alive(), scores[len(self.images) :], strict=True))
        return [(scores[i], others.get(i)) for i in range(len(self.images))]

    @property
    def remembers(self) -> bool:
        """True if a later scale reads the keys and values of this one."""
        return not all(image.is_last(self.scale) for image in self.images)

    def stop_branches(self) -> None:
        """Removes the rows of unconditional branches that no scale to come uses.

        These are branches that the policy stopped, and all branches once no scale to come has guidance. The latter
        changes no image.
        """
        count, alive = len(self.images), self.alive()
        staying = [i for i in alive if self.images[i].needs_unconditional(self.scale)]
        if len(staying) == len(alive):
            return
        self._keep_rows([*range(count), *(count + alive.index(i) for i in staying)])
        for i in alive:
            self.images[i].unconditional = i in staying

    def leave(self, leaving: Collection[ImageState]) -> None:
        """Removes images, with their rows and memory; the others keep theirs."""
        staying = [i for i, image in enumerate(self.images) if image not in leaving]
        if len(staying) == len(self.images):
            return
        rows = sorted(row for i in staying for row in self.rows_of(i))
        self.images = [self.images[i] for i in staying]
        if staying:
            self._keep_rows(rows)
        elif self.held is not None:
            self.held.release()

    def begin(self, memory: CacheMemory, alone: Collection[int]) -> bool:
        """Takes memory for the first scales; False: there is none now."""
        images, schedule = self.images, self.images[0].schedule
        splits = (image.first_alone(alone) for image in images if len(images) > 1)
        split, last = min((k for k in splits if k is not None), default=None), max(image.scales for image in images) - 1
        for shared in (True, False):
            self.moves_at, positions = memory.plan.boundary(schedule, last, split, shared)
            if self.moves_at == 0:
                return True
            self.held = memory.arena(positions, self.prompt.rows)
            if self.held is not None:
                return True
        return False

    def parts(self, memory: CacheMemory, alone: Collection[int]) -> list[Group]:
        """Groups that this one goes on as: those that have memory for their next scale, then those that wait for it.

        Args:
            alone: scales at which images run one by one; see `Manifest.scales_alone`.
        """
        if self.moves_at == self.scale:
            return self._moved(memory, alone)
        if memory.plan.shape.cache_tokens is None or len(self.images) == 1:
            return [self]
        return self._apart(memory, alone)

    def _moved(self, memory: CacheMemory, alone: Collection[int]) -> list[Group]:
        """Groups in slots: images that ever split by themselves, the others together; and those left without a slot."""
        static = memory.plan.shape.cache_tokens is not None  # a static cache splits in its slots
        several = len(self.images) > 1 and not static
        single = [image for image in self.images if several and image.first_alone(alone) is not None]
        together = [image for image in self.images if image not in single]
        moved: list[Group] = []
        for wanted in (*([image] for image in single), *([together] if together else [])):
            lease = memory.slots(len(wanted))
            if lease is None:
                break
            images = wanted[: lease.count]
            places = [self.images.index(image) for image in images]
            rows = sorted(row for place in places for row in self.rows_of(place))
            held = memory.cache_in(lease, len(rows))
            if self.held is not None:
                assert isinstance(self.held.cache, DynamicKVCache)
                assert isinstance(held.cache, DynamicKVCache)
                self.held.cache.copy_rows(rows, held.cache)
            moved.append(Group(images, self.prompt.take(rows), self.scale, held))
        self.leave([image for group in moved for image in group.images])
        return [*moved, self] if self.images else moved

    def _apart(self, memory: CacheMemory, alone: Collection[int]) -> list[Group]:
        """Groups of a static cache: images that are pruned or must run alone at this scale, and the others together."""
        k = self.scale
        single = [image for image in self.images if k in alone or k in image.pruned]
        if not single:
            return [self]
        together = [image for image in self.images if image not in single]
        sets = [*([image] for image in single), *([together] if together else [])]
        parts = [sorted(row for i in images for row in self.rows_of(self.images.index(i))) for images in sets]
        assert self.held is not None
        held = memory.apart(self.held, parts, [len(images) for images in sets])
        return [Group(i, self.prompt.take(rows), k, h) for i, rows, h in zip(sets, parts, held, strict=True)]

    def _keep_rows(self, rows: list[int]) -> None:
        if rows == list(range(self.prompt.rows)):
            return
        self.prompt = self.prompt.take(rows)
        if self.held is not None:
            self.held.keep_rows(rows, len(self.images))
