"""The next-scale loop: LD-Pruning's Algorithm 1, with its printed defects mended, as steps.

One step is one scale of one group of images; `run.py` says which group's turn it is. Images of a group share the
schedule only: guidance, temperature, filter, policy and seed are the image's own.

(The printed algorithm reads logits of scale k before they exist, and down-samples to the wrong grid. The paper's text
resolves both as done here.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from ldp_runtime.guidance import guide
from ldp_runtime.numerics import FiniteWatch, scalar
from ldp_runtime.pipeline.batch import Group, ImageState
from ldp_runtime.pipeline.recorder import ScaleLaps
from ldp_runtime.pruning.policy import ScaleView, Selection
from ldp_runtime.pruning.recall import recall
from ldp_runtime.pruning.sats import GuidanceGap


@dataclass(frozen=True)
class Answer:
    """Result of the blocks for one image.

    Attributes:
        scores: of the conditional branch [L, n].
        other: of the unconditional branch [L, n]; None: it is stopped.
        hidden: tokens behind the last block [branches, L, C], where a residual is made of them.
    """

    scores: torch.Tensor
    other: torch.Tensor | None
    hidden: torch.Tensor | None = None


class Engines(Protocol):
    """Engine calls of one scale."""

    def answers(self, group: Group, inputs: torch.Tensor, kept: torch.Tensor | None) -> list[Answer]:
        """Answer for each image, from the inputs of the computed tokens and their indices (None: all)."""
        ...

    def residual(self, hidden: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Residual [L, channels] of the computed tokens; see `Codec.residual_inputs`."""
        ...


def draw_scale(group: Group, engines: Engines, watch: FiniteWatch, laps: ScaleLaps) -> None:
    """Draws the next scale of all images of a group: the algorithm.

    Args:
        engines: run the blocks of the group's scale.
        watch: looks for NaN and infinity in what guidance makes of the scores.
    """
    k, images, inputs = group.scale, list(group.images), group.inputs()
    view, selection = _choose(images[0], k, inputs[0])
    kept = None if selection is None else selection.kept
    if kept is not None:
        inputs = inputs.index_select(1, kept)
    laps.selected()
    answers = engines.answers(group, inputs, kept) if inputs.shape[1] else []
    laps.computed()
    for i, image in enumerate(images):
        codes, gap = _sample(image, k, answers[i], kept, engines, watch) if answers else (inputs[i], None)
        _accumulate(image, k, codes, view, selection)
        image.gaps.append(gap)
        image.stopped = image.unconditional and image.stops_after(k)
        laps.note(image, group, selection, inputs.shape[1], gap)
    group.leave([image for image in images if image.is_drawn_after(k)])
    group.scale += 1


def _choose(image: ImageState, k: int, inputs: torch.Tensor) -> tuple[ScaleView | None, Selection | None]:
    """The tokens of scale k (None: all), and the view that they were chosen from; a pruned image runs by itself."""
    if k == 0 or k not in image.pruned:
        return None, None
    view = image.view(k, inputs)
    return view, image.tokens.select(view)


def _sample(
    image: ImageState,
    k: int,
    answer: Answer,
    kept: torch.Tensor | None,
    engines: Engines,
    watch: FiniteWatch,
) -> tuple[torch.Tensor, GuidanceGap | None]:
    """Codes [L, channels], and the guidance gap where the policy watches it.

    Args:
        watch: checks what guidance makes of the scores, where float32 might not hold it.
    """
    own, rule, schedule = image.settings, image.settings.policy.guidance, image.schedule
    weight, grid, gap = own.guidance[k], schedule.grids[k], None
    scores, other = answer.scores, answer.other
    if other is not None:
        if rule is not None and rule.watches(k, schedule):
            gap = GuidanceGap(grid, own.codec.gap(scores, other), kept, own.codec.gap_terms)
        if rule is not None:
            image.difference = rule.remember(image.difference, scores, other, kept, grid)
        scores = scores if weight == 1 else guide(scores, other, weight)
    elif rule is not None and image.difference is not None and weight != 1:
        missing = rule.missing(scores, recall(image.difference, kept, grid), k)
        scores = scores if missing is None else scores + scalar(weight - 1) * missing
    ended = image.guidance_ended(k)
    temperature = own.temperature_at(k, ended)
    tempered = scores / scalar(temperature)
    if own.may_overflow(k, ended):
        watch.see(
            tempered,
            f"guidance {weight:g} and temperature {temperature:g} gave NaN or infinity at scale {k}",
            hint="ask for a smaller guidance_scale, or a larger temperature",
        )
    noise = image.noise_at(k, kept)
    codes = own.codec.draw(tempered, noise, own.filter, k, len(schedule), ended)
    if answer.hidden is not None:
        codes = codes + _residual(image, tempered, noise, weight, answer.hidden, engines)
    return codes, gap


def _residual(
    image: ImageState,
    scores: torch.Tensor,
    noise: torch.Tensor,
    weight: float,
    hidden: torch.Tensor,
    engines: Engines,
) -> torch.Tensor:
    """Continuous residual [L, channels] of the last scale's codes; it is guided while both branches are there."""
    own = image.settings
    inputs = own.codec.residual_inputs(scores, noise, own.filter, weight, len(hidden) > 1)
    return scalar(0.0) if inputs is None else engines.residual(hidden, inputs)


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
