"""Independent computation of a pruned run's logits: the whole sequence at once, with pruned tokens masked out.

It shares neither cache, gathering, nor call structure with the scale loop. All scales go through the transformer in
one call on full grids, and pruned tokens are hidden from every other token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ldp_runtime.families.infinity import accumulate, bits_to_codes, next_input, tokens_to_latent
from ldp_runtime.schedule import ScaleSchedule
from ldp_runtime.token_layout import LatentLayout
from torch.nn import functional as F

from ldp_export.models.hart import HartTransformer
from ldp_export.models.infinity import InfinityTransformer
from ldp_export.models.switti import SwittiTransformer
from ldp_export.models.var import VarTransformer
from ldp_export.models.var_vae import VarVae
from ldp_export.reference.hart import HartText
from ldp_export.reference.switti import SwittiText


@torch.no_grad()
def pruned_infinity_logits(
    model: InfinityTransformer,
    rows: torch.Tensor,
    bits: Sequence[torch.Tensor],
    keep: Sequence[torch.Tensor | None],
    schedule: ScaleSchedule,
    layout: LatentLayout,
) -> list[torch.Tensor]:
    """Teacher-forced logits of the kept tokens; pruned tokens add zero to the residual.

    Args:
        rows: text features [R, T, Ct]; all rows have the same length.
        bits: bits of the full grid of every scale [h*w, bits].
        keep: indices of the kept tokens of every scale; None keeps all.

    Returns:
        Logits [R, kept, 2 * bits] of every scale.
    """
    visible = []
    latent = torch.zeros(1, layout.channels, *layout.latent_grid(schedule.final_grid))
    inputs = []
    for k, (h, w) in enumerate(schedule.grids):
        mask = _mask(keep[k], h * w)
        visible.append(mask)
        codes = torch.where(mask[:, None], bits_to_codes(bits[k], layout), torch.tensor(0.0))
        latent = accumulate(latent, tokens_to_latent(codes.view(1, h, w, -1), layout))
        if k + 1 < len(schedule):
            inputs.append(next_input(latent, schedule.grids[k + 1], layout))
    sequence = torch.cat(inputs, dim=1).expand(len(rows), -1, -1)
    logits = model(rows, None, sequence, schedule, torch.cat(visible))
    per_scale = logits.split(schedule.tokens, dim=1)
    return [part[:, mask] for part, mask in zip(per_scale, visible, strict=True)]


@torch.no_grad()
def pruned_var_logits(
    model: VarTransformer,
    vae: VarVae,
    labels: torch.Tensor,
    indices: Sequence[torch.Tensor],
    keep: Sequence[torch.Tensor | None],
) -> list[torch.Tensor]:
    """Teacher-forced logits of the kept tokens of VAR; see `pruned_infinity_logits`.

    The code of a pruned token is zero; phi convolves it like any other code.

    Args:
        labels: classes of the rows [R].
        indices: codebook indices of the full grid of every scale [h*w].

    Returns:
        Logits [R, kept, codes] of every scale.
    """
    schedule = model.config.schedule
    visible = [_mask(kept, count) for kept, count in zip(keep, schedule.tokens, strict=True)]
    sequence = _inputs_of_indices(vae, indices, visible, schedule)
    logits = model(labels, sequence.expand(len(labels), -1, -1), torch.cat(visible))
    return [part[:, mask] for part, mask in zip(logits.split(schedule.tokens, dim=1), visible, strict=True)]


@torch.no_grad()
def pruned_switti_logits(
    model: SwittiTransformer,
    vae: VarVae,
    texts: SwittiText,
    indices: Sequence[torch.Tensor],
    keep: Sequence[torch.Tensor | None],
    schedule: ScaleSchedule,
) -> list[torch.Tensor]:
    """Teacher-forced logits of the kept tokens of Switti; see `pruned_var_logits`.

    Args:
        texts: one for each row.
        indices: codebook indices of the full grid of every scale [h*w].
        schedule: the model's scales, or the first of them.

    Returns:
        Logits [R, kept, codes] of every scale.
    """
    visible = [_mask(kept, count) for kept, count in zip(keep, schedule.tokens, strict=True)]
    sequence = _inputs_of_indices(vae, indices, visible, schedule)
    prompt = model.encode_prompt(texts.features, texts.pooled, texts.mask)
    logits = model(prompt, sequence.expand(len(texts.mask), -1, -1), schedule, torch.cat(visible))
    return [part[:, mask] for part, mask in zip(logits.split(schedule.tokens, dim=1), visible, strict=True)]


@torch.no_grad()
def pruned_hart_logits(
    model: HartTransformer,
    vae: VarVae,
    texts: HartText,
    indices: Sequence[torch.Tensor],
    keep: Sequence[torch.Tensor | None],
) -> list[torch.Tensor]:
    """Teacher-forced logits of the kept tokens of HART; see `pruned_var_logits`.

    Args:
        texts: one for each row.
        indices: codebook indices of the full grid of every scale [h*w].

    Returns:
        Logits [R, kept, codes] of every scale.
    """
    schedule = model.config.schedule
    visible = [_mask(kept, count) for kept, count in zip(keep, schedule.tokens, strict=True)]
    sequence = _inputs_of_indices(vae, indices, visible, schedule).expand(len(texts.features), -1, -1)
    inputs = sequence.split(schedule.tokens[1:], dim=1)
    logits = model(texts.features, texts.positions, inputs, torch.cat(visible))
    return [part[:, mask] for part, mask in zip(logits.split(schedule.tokens, dim=1), visible, strict=True)]


def _inputs_of_indices(
    vae: VarVae, indices: Sequence[torch.Tensor], visible: Sequence[torch.Tensor], schedule: ScaleSchedule
) -> torch.Tensor:
    """Inputs of scales 1.. concatenated [1, total - 1, channels]; the code of a pruned token is zero."""
    latent, inputs = torch.zeros(1, vae.config.channels, *schedule.final_grid), []
    for k, grid in enumerate(schedule.grids[:-1]):
        codes = torch.where(visible[k][:, None], vae.codes(indices[k]), torch.tensor(0.0))
        latent = latent + vae.residual(codes.T.view(1, -1, *grid), schedule.final_grid, k, len(schedule))
        down = F.interpolate(latent, size=schedule.grids[k + 1], mode="area")
        inputs.append(down.flatten(2).transpose(1, 2))
    return torch.cat(inputs, dim=1) if inputs else torch.zeros(1, 0, vae.config.channels)


def _mask(kept: torch.Tensor | None, tokens: int) -> torch.Tensor:
    if kept is None:
        return torch.ones(tokens, dtype=torch.bool)
    return torch.zeros(tokens, dtype=torch.bool).index_fill_(0, kept, True)
