"""Quantisation with mistakes: what lets a model learn to correct itself.

At inference a wrongly drawn bit changes the accumulated latent, and all later scales should mend it. So in training
some bits of a scale are flipped *before* they are accumulated: the inputs of later scales then show the error, and
their targets, quantised from what is still missing, repair it. (Infinity, section 3.4: bitwise self-correction.)
"""

import torch
from ldp_runtime.families.infinity import accumulate, next_input, resize
from ldp_runtime.schedule import ScaleSchedule
from ldp_runtime.token_layout import LatentLayout
from torch.nn import functional as F


@torch.no_grad()
def corrupted_path(
    latent: torch.Tensor, schedule: ScaleSchedule, layout: LatentLayout, flip: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Targets and inputs of all scales when each scale's bits are flipped with its own probability.

    Args:
        latent: what should be drawn [B, d, H, W].
        flip: probability of each image and scale [B, scales].

    Returns:
        Target bits [B, total, d] (bool, never flipped themselves), inputs of scales 1.. [B, total - 1, d], and the
        latent accumulated from the flipped bits [B, d, H, W].
    """
    total, targets, inputs = torch.zeros_like(latent), [], []
    full = (latent.shape[-2], latent.shape[-1])
    for scale, grid in enumerate(schedule.grids):
        if scale > 0:
            inputs.append(next_input(total, grid, layout))
        missing = latent - total
        coarse = missing if grid == full else F.interpolate(missing, size=grid, mode="area")
        bits = coarse > 0  # [B, d, h, w]
        targets.append(bits.flatten(2).transpose(1, 2))
        wrong = torch.rand(bits.shape, device=bits.device) < flip[:, scale, None, None, None]
        codes = torch.where(bits ^ wrong, 1.0, -1.0) / layout.channels**0.5
        total = accumulate(total, codes)
    return torch.cat(targets, 1), torch.cat(inputs, 1), total


@torch.no_grad()
def quantize_noisily(
    latent: torch.Tensor, schedule: ScaleSchedule, layout: LatentLayout, flip: float, drop: float
) -> torch.Tensor:
    """Accumulated codes [B, d, H, W] with a share `flip` of bits wrong, and `drop` of images cut to early scales."""
    residual, total = latent, torch.zeros_like(latent)
    full = (latent.shape[-2], latent.shape[-1])
    rows, scales = len(latent), len(schedule)
    cut = torch.randint(scales // 2, scales, (rows,), device=latent.device)
    kept = torch.where(torch.rand(rows, device=latent.device) < drop, cut, scales)  # scales used of each image
    for scale, grid in enumerate(schedule.grids):
        coarse = residual if grid == full else F.interpolate(residual, size=grid, mode="area")
        wrong = torch.rand(coarse.shape, device=latent.device) < flip
        codes = torch.where((coarse > 0) ^ wrong, 1.0, -1.0) / layout.channels**0.5
        up = resize(codes, full) * (kept > scale)[:, None, None, None]
        residual, total = residual - up, total + up
    return total
