"""The next-scale loop: LD-Pruning's Algorithm 1, with its printed defects mended, as steps.

One step is one scale of one group of images, and whoever holds the run decides when it is taken. A run shares the
schedule only: guidance, temperature, filter, policy and seed are the image's own.

(The printed algorithm reads logits of scale k before they exist, and down-samples to the wrong grid. The paper's text
resolves both as done here.)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch

from ldp_runtime.engines.blocks import Blocks, Placement, PromptRows
from ldp_runtime.engines.cache_memory import CacheMemory, CachePlan
from ldp_runtime.errors import LdpError
from ldp_runtime.guidance import guide
from ldp_runtime.numerics import FiniteWatch, scalar
from ldp_runtime.pipeline.batch import Group, ImageState
from ldp_runtime.pipeline.recorder import Recorder
from ldp_runtime.pruning.policy import ScaleView, Selection
from ldp_runtime.pruning.recall import recall
from ldp_runtime.pruning.sats import GuidanceGap


class Run:
    """Images of one schedule, drawn step by step; afterwards their `latent` can be decoded.

    Args:
        images: at least one, all of the schedule that `placement` was made for.
        prompt: rows [conditional of each image, unconditional of each image whose branch is alive].
        quantized: name of the set of each quantized scale; see `Manifest.quantized_scales`.
        memory: memory of the caches, which other runs may share; None: the run has its own.
    """

    def __init__(
        self,
        blocks: Blocks,
        placement: Placement,
        images: Sequence[ImageState],
        prompt: PromptRows,
        quantized: Mapping[int, str] | None = None,
        memory: CacheMemory | None = None,
    ) -> None:
        self.blocks, self.placement, self.quantized = blocks, placement, quantized or {}
        self._memory = memory or _own_memory(blocks, images, self.quantized)
        self.groups = [Group(list(images), prompt)]
        self._watch, self._recorder = FiniteWatch(), Recorder(blocks.device)

    @property
    def is_done(self) -> bool:
        return not self.groups

    @torch.no_grad()
    def step(self, image: ImageState | None = None) -> list[ImageState]:
        """Draws the next scale of an image, and of those that share its call; returns the images drawn.

        No images: all that may be drawn wait for memory that other runs hold.

        Args:
            image: one that is not drawn yet; None: of the group that is furthest behind and has memory.

        Raises:
            NonFiniteError: the logits hold NaN or infinity; on a GPU, `check` says so.
        """
        group = self._next(image)
        return [] if group is None else self._draw(group)

    def _next(self, image: ImageState | None) -> Group | None:
        """Group whose scale is drawn next, in memory that it holds; None if all that may be drawn wait for some."""
        for group in sorted(self.groups, key=lambda group: group.scale):
            if image is not None and image not in group.images:
                continue
            if group.held is None and not group.begin(self._memory, self.quantized):
                continue
            group.stop_branches()
            parts, at = group.parts(self._memory, self.quantized), self.groups.index(group)
            self.groups[at : at + 1] = parts
            chosen = parts[0] if image is None else next(part for part in parts if image in part.images)
            if chosen.moves_at != chosen.scale:
                return chosen
        return None

    def close(self) -> None:
        """Gives all memory back, whether the run is done or not."""
        for group in self.groups:
            group.leave(group.images)
        self.groups = []

    def cancel(self, image: ImageState) -> None:
        """Takes an image out; the others are drawn as if it had not been there."""
        for group in self.groups:
            group.leave([image])
        self.groups = [group for group in self.groups if group.images]

    def check(self) -> None:
        """Raises NonFiniteError for the first step so far whose logits were not finite."""
        self._watch.check()

    def complete(self) -> None:
        """Takes all steps that are left.

        Raises:
            NonFiniteError: the logits hold NaN or infinity.
        """
        try:
            while not self.is_done:
                if not self.step():
                    raise LdpError("other runs hold all memory of the KV caches", hint="step them to their end first")
        finally:
            self.check()  # NaN can make later work fail in many ways, none of which would name the cause
        self.finish()

    def finish(self) -> None:
        """Ends a run whose images are drawn: checks it, and puts a GPU's own times into the traces."""
        self.check()
        self._recorder.settle()

    def _draw(self, group: Group) -> list[ImageState]:
        """One scale of one group: the algorithm."""
        k, images, laps = group.scale, list(group.images), self._recorder.begin()
        inputs = group.inputs()
        view, selection = _choose(images[0], k, inputs[0])
        kept = None if selection is None else selection.kept
        if kept is not None:
            inputs = inputs.index_select(1, kept)
        laps.selected()
        scores = self._scores(group, inputs, kept) if inputs.shape[1] else []
        laps.computed()
        for i, image in enumerate(images):
            codes, gap = _sample(image, k, *scores[i], kept, self._watch) if scores else (inputs[i], None)
            _accumulate(image, k, codes, view, selection)
            image.gaps.append(gap)
            image.stopped = image.unconditional and image.stops_after(k)
            laps.note(image, group, selection, inputs.shape[1], gap)
        group.leave([image for image in images if image.is_drawn_after(k)])
        group.scale += 1
        self.groups = [group for group in self.groups if group.images]
        return images

    def _scores(
        self, group: Group, inputs: torch.Tensor, kept: torch.Tensor | None
    ) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """The engine call: scores of both branches of each image [L, n]."""
        assert group.held is not None
        given = (group.rows(inputs), group.offset(self.placement), self.placement.at(group.scale, kept))
        logits = self.blocks.run(
            *given,
            group.prompt,
            group.held.cache,
            scale=group.scale,
            watch=self._watch,
            remember=group.remembers,
            quantized=self.quantized.get(group.scale),
        )
        return group.by_image(logits)


def _own_memory(blocks: Blocks, images: Sequence[ImageState], quantized: Collection[int]) -> CacheMemory:
    """Memory of a run that shares it with no other."""
    count, schedules = len(images), [images[0].schedule]
    return CacheMemory(CachePlan.of(blocks.shape, schedules, lambda _: quantized, count, count), blocks.device)


def _choose(image: ImageState, k: int, inputs: torch.Tensor) -> tuple[ScaleView | None, Selection | None]:
    """The tokens of scale k (None: all), and the view that they were chosen from; a pruned image runs by itself."""
    if k == 0 or k not in image.pruned:
        return None, None
    view = image.view(k, inputs)
    return view, image.tokens.select(view)


def _sample(
    image: ImageState,
    k: int,
    scores: torch.Tensor,
    other: torch.Tensor | None,
    kept: torch.Tensor | None,
    watch: FiniteWatch,
) -> tuple[torch.Tensor, GuidanceGap | None]:
    """Codes [L, channels], and the guidance gap where the policy watches it.

    Args:
        scores: of the conditional branch [L, n].
        other: of the unconditional branch [L, n], where it is alive.
        watch: checks what guidance makes of the scores, where float32 might not hold it.
    """
    own, rule, schedule = image.settings, image.settings.policy.guidance, image.schedule
    weight, grid, gap = own.guidance[k], schedule.grids[k], None
    if other is not None:
        if rule is not None and rule.watches(k, schedule):
            gap = GuidanceGap(grid, own.codec.gap(scores, other), kept, own.codec.gap_terms)
        if rule is not None:
            image.difference = rule.remember(image.difference, scores, other, kept, grid)
        scores = scores if weight == 1 else guide(scores, other, weight)
    elif rule is not None and image.difference is not None and weight != 1:
        missing = rule.missing(scores, recall(image.difference, kept, grid), k)
        scores = scores if missing is None else scores + scalar(weight - 1) * missing
    tempered = scores / scalar(own.temperature[k])
    if own.may_overflow(k):
        watch.see(
            tempered,
            f"guidance {weight:g} and temperature {own.temperature[k]:g} gave NaN or infinity at scale {k}",
            hint="ask for a smaller guidance_scale, or a larger temperature",
        )
    return own.codec.draw(tempered, image.noise_at(k, kept), own.filter, k, len(schedule)), gap


def _accumulate(
    image: ImageState, k: int, codes: torch.Tensor, view: ScaleView | None, selection: Selection | None
) -> None:
    """R_k: new codes [L, channels] over the policy's fill; F_k = F_{k-1} + Up(R_k)."""
    (h, w), codec, residual = image.schedule.grids[k], image.settings.codec, codes
    image.kept, image.score = (None, None) if selection is None else (selection.kept, selection.score)
    if view is not None and image.kept is not None:
        fill = image.tokens.fill_residual(view)
        residual = fill.flatten(1).T.clone().index_copy_(0, image.kept, codes)
    token_map = residual.view(h, w, codec.channels)
    image.latent = codec.accumulate(image.latent, token_map, k, len(image.schedule))
    image.residual = token_map.permute(2, 0, 1)
