"""Images on their way, and groups of them that share an engine call.

Images run in one call while each of them has the same tokens. From its first pruned scale on, an image runs by itself
with its own rows. So masks are never ragged, and a pruned image does not depend on its neighbours. The same holds from
its quantized scales on, where an engine may take ranges from all rows of a call.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from ldp_runtime.engines.blocks import Cache, Placement, PromptRows
from ldp_runtime.families.base import Codec
from ldp_runtime.guidance import last_guided_scale
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
    """

    codec: Codec
    guidance: tuple[float, ...]
    temperature: tuple[float, ...]
    filter: SamplingFilter
    policy: Policy

    @property
    def is_guided(self) -> bool:
        """True if any scale has guidance."""
        return self.last_guided >= 0

    def may_overflow(self, scale: int) -> bool:
        """True if guidance and temperature could take logits of up to 1e18 beyond float32."""
        weight = self.guidance[scale]
        return (abs(weight) + abs(1 - weight)) / self.temperature[scale] > 1e20

    @cached_property
    def last_guided(self) -> int:
        return last_guided_scale(self.guidance)


@dataclass(eq=False)
class ImageState:
    """One image in progress. Only the loop writes to it.

    Attributes:
        seed: seed of the image.
        noise: noise of the full grid of every scale, [h*w, ...] each; see `Codec.noise`.
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
    noise: Sequence[torch.Tensor]
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
        noise: Sequence[torch.Tensor],
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

    def needs_unconditional(self, scale: int) -> bool:
        """True if a scale from this one on uses the unconditional branch."""
        return self.unconditional and not self.stopped and scale <= self.settings.last_guided

    def noise_at(self, scale: int, kept: torch.Tensor | None) -> torch.Tensor:
        """Noise of the computed tokens [L, ...]."""
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
    """

    images: list[ImageState]
    prompt: PromptRows
    cache: Cache
    scale: int = 0

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
        """Removes images, with their rows; the others keep theirs."""
        staying = [i for i, image in enumerate(self.images) if image not in leaving]
        if len(staying) == len(self.images):
            return
        if staying:
            self._keep_rows(sorted(row for i in staying for row in self.rows_of(i)))
        self.images = [self.images[i] for i in staying]

    def split(self, quantized: Collection[int]) -> list[Group]:
        """Groups that run the next scale: images that are pruned or quantized there by themselves, the others together.

        Args:
            quantized: scales whose blocks are quantized.
        """
        if len(self.images) == 1:
            return [self]
        k = self.scale
        alone = [i for i, image in enumerate(self.images) if k in quantized or k in image.pruned]
        singles = [
            Group([self.images[i]], self.prompt.take(self.rows_of(i)), self.cache.with_rows(self.rows_of(i)), k)
            for i in alone
        ]
        self.leave([self.images[i] for i in alone])
        return [*singles, self] if self.images else singles

    def _keep_rows(self, rows: list[int]) -> None:
        if rows != list(range(self.prompt.rows)):
            self.prompt, self.cache = self.prompt.take(rows), self.cache.with_rows(rows)
