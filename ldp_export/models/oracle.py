"""An independent way to the logits of a pruned run: the whole sequence at once, pruned tokens masked out.

It shares neither cache, gathering, nor call structure with the scale loop: all scales go through the transformer in
one call on full grids, and hidden tokens are invisible to every other token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ldp_runtime.residual import LatentLayout, accumulate, bits_to_codes, next_input, tokens_to_latent
from ldp_runtime.schedule import ScaleSchedule

from ldp_export.models.infinity import InfinityTransformer


@torch.no_grad()
def pruned_logits(
    model: InfinityTransformer,
    rows: torch.Tensor,
    bits: Sequence[torch.Tensor],
    keep: Sequence[torch.Tensor | None],
    schedule: ScaleSchedule,
    layout: LatentLayout,
) -> list[torch.Tensor]:
    """Logits of the kept tokens, teacher-forced, with nothing (zero) in the residual where tokens are pruned.

    Args:
        rows: text features [R, T, Ct] of equally long rows.
        bits: bits of the full grid of every scale [h*w, bits].
        keep: kept indices of every scale, None for all.

    Returns:
        Logits [R, kept, 2 * bits] of every scale.
    """
    visible = []
    latent = torch.zeros(1, layout.channels, *layout.latent_grid(schedule.final_grid))
    inputs = []
    for k, (h, w) in enumerate(schedule.grids):
        mask = torch.ones(h * w, dtype=torch.bool)
        indices = keep[k]
        if indices is not None:
            mask = torch.zeros(h * w, dtype=torch.bool).index_fill_(0, indices, True)
        visible.append(mask)
        codes = torch.where(mask[:, None], bits_to_codes(bits[k], layout), torch.tensor(0.0))
        latent = accumulate(latent, tokens_to_latent(codes.view(1, h, w, -1), layout))
        if k + 1 < len(schedule):
            inputs.append(next_input(latent, schedule.grids[k + 1], layout))
    sequence = torch.cat(inputs, dim=1).expand(len(rows), -1, -1)
    logits = model(rows, None, sequence, schedule, torch.cat(visible))
    per_scale = logits.split(schedule.tokens, dim=1)
    return [part[:, mask] for part, mask in zip(per_scale, visible, strict=True)]
