"""Run: images of one schedule on their way through the scales, in memory that they share with other runs.

Whoever holds the run decides when a step is taken; `scale_loop.py` is what a step does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

import torch

from ldp_runtime.engines.base import Engine
from ldp_runtime.engines.blocks import Blocks, Placement, PromptRows
from ldp_runtime.engines.cache_memory import CacheMemory
from ldp_runtime.engines.cache_plan import CachePlan
from ldp_runtime.errors import LdpError
from ldp_runtime.numerics import FiniteWatch
from ldp_runtime.pipeline.batch import Group, ImageState
from ldp_runtime.pipeline.recorder import Recorder
from ldp_runtime.pipeline.scale_loop import Answers, draw_scale


class Run:
    """Images of one schedule, drawn step by step; afterwards their `latent` can be decoded.

    Args:
        images: at least one, all of the schedule that `placement` was made for.
        prompt: rows [conditional of each image, unconditional of each image whose branch is alive].
        quantized: name of the set of each quantized scale; see `Manifest.quantized_scales`.
        alone: scales at which images run one by one; None: the quantized ones. See `Manifest.scales_alone`.
        memory: memory of the caches, which other runs may share; None: the run has its own.
        residual: engine that adds to the codes of the last scale of the schedule; None: nothing is added.
    """

    def __init__(
        self,
        blocks: Blocks,
        placement: Placement,
        images: Sequence[ImageState],
        prompt: PromptRows,
        quantized: Mapping[int, str] | None = None,
        memory: CacheMemory | None = None,
        residual: Engine | None = None,
        alone: Collection[int] | None = None,
    ) -> None:
        self._residual = residual
        self.blocks, self.placement, self.quantized = blocks, placement, quantized or {}
        self._alone = self.quantized if alone is None else alone
        self._memory = memory or _own_memory(blocks, images, self._alone)
        self.groups = [Group(list(images), prompt)]
        self._watch, self._recorder = FiniteWatch(), Recorder(blocks.device)

    @property
    def is_done(self) -> bool:
        return not self.groups

    def holds(self, image: ImageState) -> bool:
        """True while an image is neither drawn nor cancelled."""
        return any(image in group.images for group in self.groups)

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
        if group is None:
            return []
        drawn = list(group.images)
        draw_scale(group, self._answers, self._watch, self._recorder.begin())
        self.groups = [group for group in self.groups if group.images]
        return drawn

    def _next(self, image: ImageState | None) -> Group | None:
        """Group whose scale is drawn next, in memory that it holds; None if all that may be drawn wait for some."""
        for group in sorted(self.groups, key=lambda group: group.scale):
            if image is not None and image not in group.images:
                continue
            if group.held is None and not group.begin(self._memory, self._alone):
                continue
            group.stop_branches()
            parts, at = group.parts(self._memory, self._alone), self.groups.index(group)
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

    def _answers(self, group: Group, inputs: torch.Tensor, kept: torch.Tensor | None) -> Answers:
        """Scores of both branches of each image [L, n], from the blocks, and the residual of its last codes."""
        assert group.held is not None
        given = (group.rows(inputs), group.offset(self.placement), self.placement.at(group.scale, kept))
        hidden = self._hidden(group, *given[0].shape[:2])
        logits = self.blocks.run(
            *given,
            group.prompt,
            group.held.cache,
            scale=group.scale,
            watch=self._watch,
            remember=group.remembers,
            quantized=self.quantized.get(group.scale),
            hidden=hidden,
        )
        scores = group.by_image(logits)
        if hidden is None:
            return [(*pair, None) for pair in scores]
        behind = group.rows_by_image(hidden)
        return [(*pair, partial(self._residual_of, rows)) for pair, rows in zip(scores, behind, strict=True)]

    def _hidden(self, group: Group, rows: int, tokens: int) -> torch.Tensor | None:
        """Memory for the tokens behind the last block, at the scale whose codes get a residual."""
        if self._residual is None or group.scale + 1 < len(group.images[0].schedule):
            return None
        return torch.empty(rows, tokens, self.blocks.shape.width, dtype=torch.float32, device=self.blocks.device)

    def _residual_of(self, hidden: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Residual [L, channels] from the tokens behind the last block [branches, L, C]."""
        assert self._residual is not None
        codes, branches = inputs["codes"], len(inputs["weights"])
        residual = torch.empty_like(codes)
        self._residual.run({"hidden": hidden[:branches].contiguous(), **inputs}, {"residual": residual})
        self._watch.see(
            residual,
            "the graph 'residual' gave NaN or infinity",
            hint="the engine's precision does not hold this model; verify the bundle, or build it in float32",
        )
        return residual


def _own_memory(blocks: Blocks, images: Sequence[ImageState], alone: Collection[int]) -> CacheMemory:
    """Memory of a run that shares it with no other."""
    count, schedules = len(images), [images[0].schedule]
    return CacheMemory(CachePlan.of(blocks.shape, schedules, lambda _: alone, count, count), blocks.device)
