"""The next-scale loop: LD-Pruning's Algorithm 1, with its printed defects mended, as steps.

One step is one scale of one group of images; `run.py` says which group's turn it is. Images of a group share the
schedule only: guidance, temperature, filter, policy and seed are the image's own.

(The printed algorithm reads logits of scale k before they exist, and down-samples to the wrong grid. The paper's text
resolves both as done here.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ldp_runtime.guidance import guide
from ldp_runtime.numerics import FiniteWatch, scalar
from ldp_runtime.pipeline.batch import Group, ImageState
from ldp_runtime.pipeline.recorder import ScaleLaps
from ldp_runtime.pruning.policy import ScaleView, Selection
from ldp_runtime.pruning.recall import recall
from ldp_runtime.pruning.sats import GuidanceGap

#: Residual [L, channels] that a graph of its own adds to the codes of the last scale; see `Codec.residual_inputs`.
Residual = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
#: For each image, scores of both branches [L, n] (None: stopped), and the residual where codes get one.
Answers = list[tuple[torch.Tensor, torch.Tensor | None, Residual | None]]
#: Gives them from the inputs of the computed tokens and their indices (None: all).
EngineCall = Callable[[Group, torch.Tensor, torch.Tensor | None], Answers]


def draw_scale(group: Group, call: EngineCall, watch: FiniteWatch, laps: ScaleLaps) -> None:
    """Draws the next scale of all images of a group: the algorithm.

    Args:
        call: runs the blocks of the group's scale.
        watch: looks for NaN and infinity in what guidance makes of the scores.
    """
    k, images, inputs = group.scale, list(group.images), group.inputs()
    view, selection = _choose(images[0], k, inputs[0])
    kept = None if selection is None else selection.kept
    if kept is not None:
        inputs = inputs.index_select(1, kept)
    laps.selected()
    answers = call(group, inputs, kept) if inputs.shape[1] else []
    laps.computed()
    for i, image in enumerate(images):
        codes, gap = _sample(image, k, *answers[i], kept, watch) if answers else (inputs[i], None)
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
    scores: torch.Tensor,
    other: torch.Tensor | None,
    residual: Residual | None,
    kept: torch.Tensor | None,
    watch: FiniteWatch,
) -> tuple[torch.Tensor, GuidanceGap | None]:
    """Codes [L, channels], and the guidance gap where the policy watches it.

    Args:
        scores, other: of the conditional and the unconditional branch [L, n].
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
    if residual is not None:
        given = own.codec.residual_inputs(tempered, noise, own.filter, weight, guided=other is not None)
        codes = codes if given is None else codes + residual(given)
    return codes, gap


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
