"""Scale loop: LD-Pruning's Algorithm 1, with its printed defects corrected.

At each scale, the loop chooses the tokens, runs the branches that are alive, and guides. It then samples with each
position's own noise, puts the new residual over the fill, and accumulates. At last it decides whether the unconditional
branch continues. (The printed algorithm reads logits of scale k before they exist and down-samples to the wrong grid;
the paper's text resolves both as done here.)

Images share one engine call while every image has the same tokens. From the first pruned scale on, each image runs by
itself with its own rows. Keep masks are thus never ragged, and a pruned image does not depend on others in its batch.
Images also run by themselves at quantized scales, where an engine may take its ranges from all rows of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from ldp_runtime.engines.blocks import Blocks, Cache, Placement, PromptRows
from ldp_runtime.families.base import Codec
from ldp_runtime.guidance import guide, last_guided_scale
from ldp_runtime.numerics import FiniteWatch, scalar
from ldp_runtime.pipeline.trace import ScaleClock, ScaleMarks, ScaleTrace
from ldp_runtime.pruning.policy import Policy, ScaleView, Selection
from ldp_runtime.pruning.recall import recall
from ldp_runtime.pruning.sats import GuidanceGap
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.schedule import ScaleSchedule


@dataclass(frozen=True)
class LoopSettings:
    """Settings that all images of a run share.

    Attributes:
        guidance: weight of the conditional branch at each scale; 1 is no guidance.
        temperature: temperature of each scale.
        quantized: scales whose blocks compute in 8 bits; see `QuantizedScales`.
    """

    schedule: ScaleSchedule
    codec: Codec
    guidance: tuple[float, ...]
    temperature: tuple[float, ...]
    filter: SamplingFilter
    policy: Policy
    placement: Placement
    quantized: frozenset[int] = frozenset()

    @cached_property
    def pruned(self) -> frozenset[int]:
        """Scales at which the policy may keep fewer than all tokens."""
        return frozenset(self.policy.prunes(self.schedule))

    @cached_property
    def last_guided(self) -> int:
        return last_guided_scale(self.guidance)


@dataclass(eq=False)
class ImageState:
    """State of one image in the loop. Only the loop writes to it.

    Attributes:
        noise: noise of the full grid of every scale, [h*w, ...] each; see `Codec.noise`.
        forced_tokens: tokens of every scale [h*w, ...] for verification by teacher forcing, or None.
        forced_keep: kept token indices per scale for verification (None: all), or None to ask the policy.
        latent: F_k [d, H, W].
        residual: R_k on the token grid [channels, h, w].
        kept: indices of the tokens of `residual` that were computed (None: all).
        score: map that chose the tokens of scale k, or None.
        gaps: guidance gap of every scale so far (None if not measured).
        difference: last known l_cond - l_uncond [n, h, w], if the policy recalls it.
        unconditional: True while the unconditional branch is alive.
        trace: one entry per scale so far.
    """

    seed: int
    noise: Sequence[torch.Tensor]
    latent: torch.Tensor
    unconditional: bool
    forced_tokens: Sequence[torch.Tensor] | None = None
    forced_keep: Sequence[torch.Tensor | None] | None = None
    residual: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    kept: torch.Tensor | None = None
    score: torch.Tensor | None = None
    gaps: list[GuidanceGap | None] = field(default_factory=list)
    difference: torch.Tensor | None = None
    trace: list[ScaleTrace] = field(default_factory=list)


@dataclass
class _Group:
    """Images that share an engine call; its rows are [conditional of each, unconditional of those with it alive]."""

    images: list[ImageState]
    prompt: PromptRows
    cache: Cache

    def alive(self) -> list[int]:
        return [i for i, image in enumerate(self.images) if image.unconditional]

    def keep_rows(self, rows: list[int]) -> None:
        if rows != list(range(self.prompt.rows)):
            self.prompt, self.cache = self.prompt.take(rows), self.cache.with_rows(rows)

    def release_ended(self) -> None:
        """Removes the images that the policy ended, with their rows."""
        staying = [i for i, image in enumerate(self.images) if not (image.trace and image.trace[-1].ended)]
        if len(staying) == len(self.images):
            return
        if staying:
            self.keep_rows(sorted(row for i in staying for row in self.rows_of(i)))
        self.images = [self.images[i] for i in staying]

    def rows_of(self, index: int) -> list[int]:
        """Rows of one image in the current layout."""
        alive = self.alive()
        extra = [len(self.images) + alive.index(index)] if index in alive else []
        return [index, *extra]

    def split(self) -> list[_Group]:
        """One group per image, each with a cache of its own rows."""
        if len(self.images) == 1:
            return [self]
        return [
            _Group([image], self.prompt.take(self.rows_of(i)), self.cache.with_rows(self.rows_of(i)))
            for i, image in enumerate(self.images)
        ]


#: Called after each scale of each group with the scale's index and its images; may raise to stop the run.
OnScale = Callable[[int, Sequence[ImageState]], None]


#: Called with the scale and the raw logits of a group [R, L, V]: for verification.
OnLogits = Callable[[int, torch.Tensor], None]


@torch.no_grad()
def run_scales(
    blocks: Blocks,
    prompt: PromptRows,
    images: Sequence[ImageState],
    settings: LoopSettings,
    on_scale: OnScale | None = None,
    on_logits: OnLogits | None = None,
) -> None:
    """Draws all images; afterwards their `latent` can be decoded.

    Args:
        prompt: rows [conditional of each image, unconditional of each image whose `unconditional` is set].
    """
    run = _Run(blocks, settings, FiniteWatch(), ScaleClock(blocks.device), on_scale, on_logits)
    try:
        _run_groups(run, prompt, images)
    finally:
        run.watch.check()  # NaN can make later work fail in many ways, none of which would name the cause
    run.clock.settle()


@dataclass(frozen=True)
class _Run:
    """Objects that all scales of a run share."""

    blocks: Blocks
    settings: LoopSettings
    watch: FiniteWatch
    clock: ScaleClock
    on_scale: OnScale | None
    on_logits: OnLogits | None


def _run_groups(run: _Run, prompt: PromptRows, images: Sequence[ImageState]) -> None:
    blocks, settings, schedule = run.blocks, run.settings, run.settings.schedule
    scales = settings.policy.scales_to_run(schedule)
    capacity = max(1, schedule.offsets[scales - 1])  # no scale reads the last scale's keys and values
    groups = [_Group(list(images), prompt, blocks.new_cache(capacity, prompt.rows, schedule.tokens[scales - 1]))]
    for k in range(scales):
        for group in groups:
            group.release_ended()
        groups = [group for group in groups if group.images]
        for group in groups:
            _retire_branches(group, k, settings)
        if k in settings.pruned | settings.quantized or any(_forced(image, k) is not None for image in images):
            groups = [single for group in groups for single in group.split()]
        for group in groups:
            _step(run, k, k == scales - 1, group)
            if run.on_scale is not None:
                run.on_scale(k, group.images)


def _retire_branches(group: _Group, k: int, settings: LoopSettings) -> None:
    """Removes the rows of unconditional branches that no scale from k on will use.

    These are branches that the policy stopped, and all branches once no scale to come has guidance. The latter changes
    no image.
    """
    count, alive = len(group.images), group.alive()
    staying = [i for i in alive if k <= settings.last_guided and not _stopped(group.images[i])]
    if len(staying) == len(alive):
        return
    group.keep_rows([*range(count), *(count + alive.index(i) for i in staying)])
    for i in alive:
        group.images[i].unconditional = i in staying


def _stopped(image: ImageState) -> bool:
    return bool(image.trace) and image.trace[-1].unconditional_stopped


def _forced(image: ImageState, k: int) -> torch.Tensor | None:
    return None if image.forced_keep is None else image.forced_keep[k]


def _step(run: _Run, k: int, is_last: bool, group: _Group) -> None:
    """Runs one scale of one group."""
    settings, clock = run.settings, run.clock
    started = clock.mark()
    inputs = _inputs(k, group.images, settings)  # [B, h*w, channels]
    choice = _choose(k, group.images[0], inputs[0], settings)
    kept = None if choice is None else choice.selection.kept
    if kept is not None:
        inputs = inputs.index_select(1, kept)
    selected = clock.mark()
    logits = _run_rows(run, k, is_last, group, inputs, kept) if inputs.shape[1] else None
    if logits is not None and run.on_logits is not None:
        run.on_logits(k, logits)
    computed = before = clock.mark()
    scores = () if logits is None else settings.codec.scores(logits).unbind()  # one [L, n] per row
    alive = group.alive()
    for i, image in enumerate(group.images):
        if not scores:
            codes, gap = inputs[i], None
        else:
            other = scores[len(group.images) + alive.index(i)] if i in alive else None
            codes, gap = _sample(k, image, scores[i], other, choice, settings)
        _accumulate(k, image, codes, choice, settings)
        image.gaps.append(gap)
        stops = i in alive and not is_last and settings.policy.stops_after(image.gaps, k, settings.schedule)
        ends = not is_last and settings.policy.ends_after(image.gaps, k, settings.schedule)
        trace = ScaleTrace(
            scale=k,
            grid=settings.schedule.grids[k],
            tokens=inputs.shape[1],
            tokens_full=settings.schedule.tokens[k],
            rows=1 + (i in alive),
            guided=i in alive and settings.guidance[k] != 1,
            images_in_call=len(group.images),
            gap=None if gap is None else gap.rms,
            unconditional_stopped=stops,
            ended=ends,
            kept=kept,
            score=None if choice is None else choice.selection.score,
        )
        done = clock.mark()
        clock.note(image.trace, trace, ScaleMarks(started, selected, computed, before, done))
        before = done


@dataclass(frozen=True)
class _Choice:
    """The tokens chosen for a scale, and the view that they were chosen from."""

    view: ScaleView
    selection: Selection


def _inputs(k: int, images: Sequence[ImageState], settings: LoopSettings) -> torch.Tensor:
    """Down(F_{k-1}) of all images on the grid of scale k [B, h*w, channels]; at scale 0, without a latent, zeros."""
    codec, grid = settings.codec, settings.schedule.grids[k]
    if k == 0:
        return images[0].latent.new_zeros(len(images), grid[0] * grid[1], codec.channels)
    latents = [image.latent[None] for image in images]
    return codec.next_input(latents[0] if len(latents) == 1 else torch.cat(latents), grid)


def _choose(k: int, image: ImageState, inputs: torch.Tensor, settings: LoopSettings) -> _Choice | None:
    """The policy's tokens of scale k, None for all. Batches were already split before the first pruned scale."""
    forced, schedule = _forced(image, k), settings.schedule
    if k == 0 or (forced is None and k not in settings.pruned):
        return None
    view = ScaleView(
        schedule=schedule,
        scale=k,
        residual=image.residual,
        computed=_computed(image),
        energy=image.score,
        latent=inputs.T.view(-1, *schedule.grids[k]),
        seed=image.seed,
        patch=image.latent.shape[-1] // schedule.final_grid[1],
    )
    if forced is not None:
        return _Choice(view, Selection(forced, torch.zeros(schedule.grids[k])))
    selection = settings.policy.select(view)
    return None if selection is None else _Choice(view, selection)


def _computed(image: ImageState) -> torch.Tensor | None:
    """Mask [h, w] of the positions where the last residual was computed; None: all of them."""
    if image.kept is None:
        return None
    nowhere = torch.zeros(image.residual.shape[1:], dtype=torch.bool, device=image.kept.device)
    return nowhere.flatten().index_fill_(0, image.kept, True).view_as(nowhere)


def _run_rows(
    run: _Run, k: int, is_last: bool, group: _Group, inputs: torch.Tensor, kept: torch.Tensor | None
) -> torch.Tensor:
    """Calls the engine: [B, L, channels] -> logits [R, L, V]; both branches of an image see the same tokens."""
    alive = group.alive()
    guided = inputs if len(alive) == len(inputs) else inputs[alive]
    rows = torch.cat((inputs, guided)) if alive else inputs
    offset = group.prompt.start if k == 0 else run.settings.placement.offsets[k].expand(group.prompt.rows, -1)
    positions = run.settings.placement.at(k, kept)
    inputs_of_call = (rows.contiguous(), offset.contiguous(), positions, group.prompt, group.cache)
    quantized = k in run.settings.quantized
    return run.blocks.run(*inputs_of_call, scale=k, watch=run.watch, remember=not is_last, quantized=quantized)


def _sample(
    k: int,
    image: ImageState,
    scores: torch.Tensor,
    other: torch.Tensor | None,
    choice: _Choice | None,
    settings: LoopSettings,
) -> tuple[torch.Tensor, GuidanceGap | None]:
    """Codes [L, channels] of the computed tokens and, if the policy watches it, the guidance gap.

    Args:
        scores: scores of the conditional branch [L, n].
        other: scores of the unconditional branch [L, n], or None if it is not alive.
    """
    codec, policy, grid = settings.codec, settings.policy, settings.schedule.grids[k]
    kept, gap = (None if choice is None else choice.selection.kept), None
    if other is not None:
        if policy.watches_guidance(k, settings.schedule):
            gap = GuidanceGap(grid, codec.gap(scores, other), kept, codec.gap_terms)
        image.difference = policy.remember_guidance(image.difference, scores, other, kept, grid)
        if settings.guidance[k] != 1:
            scores = guide(scores, other, settings.guidance[k])
    elif image.difference is not None and settings.guidance[k] != 1:
        missing = policy.missing_guidance(scores, recall(image.difference, kept, grid), k)
        if missing is not None:
            scores = scores + scalar(settings.guidance[k] - 1) * missing
    if image.forced_tokens is not None:
        tokens = image.forced_tokens[k] if kept is None else image.forced_tokens[k][kept]
        return codec.codes(tokens), gap
    noise = image.noise[k] if kept is None else image.noise[k].index_select(0, kept)
    return codec.draw(scores / scalar(settings.temperature[k]), noise, settings.filter, k, len(settings.schedule)), gap


def _accumulate(k: int, image: ImageState, codes: torch.Tensor, choice: _Choice | None, settings: LoopSettings) -> None:
    """Updates the image: R_k is the new codes [L, channels] over the policy's fill; F_k = F_{k-1} + Up(R_k)."""
    h, w = settings.schedule.grids[k]
    residual, image.kept, image.score = codes, None, None
    if choice is not None:
        image.kept, image.score = choice.selection.kept, choice.selection.score
        residual = settings.policy.fill_residual(choice.view).flatten(1).T.clone().index_copy_(0, image.kept, codes)
    token_map = residual.view(h, w, settings.codec.channels)
    image.latent = settings.codec.accumulate(image.latent, token_map, k, len(settings.schedule))
    image.residual = token_map.permute(2, 0, 1)
