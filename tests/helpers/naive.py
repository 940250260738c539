"""LD-Pruning written a second time, as plainly as possible: no cache, no gathering, no shared helpers.

Every scale runs the transformer over the whole sequence so far on full grids, pruned tokens masked out; the choices
are loops over tokens. Slow, and obviously the method of the paper's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from ldp_runtime import LHEP, SATS, Policy, StopAt, TopP
from ldp_runtime.noise import position_noise
from ldp_runtime.sampling import SamplingFilter, sample_bits
from ldp_runtime.schedule import ScaleSchedule
from ldp_runtime.token_layout import LatentLayout
from torch.nn import functional as F

from ldp_export.models.infinity import InfinityTransformer


@dataclass
class NaiveRun:
    latent: torch.Tensor
    kept: list[list[int]] = field(default_factory=list)
    stopped_after: int | None = None


def haar_energy(codes: torch.Tensor) -> torch.Tensor:
    """Codes [C, h, w] to the energy of LH, HL and HH of each 2x2 patch, by the paper's formulas."""
    _, h, w = codes.shape
    below = [min(y + 1, h - 1) for y in range(0, h, 2)]  # odd grids repeat their last row and column
    right = [min(x + 1, w - 1) for x in range(0, w, 2)]
    codes = codes.double()
    a, b = codes[:, ::2, ::2], codes[:, ::2, right]
    c, d = codes[:, below, ::2], codes[:, below][:, :, right]
    bands = ((-a + b - c + d) / 2, (-a - b + c + d) / 2, (a - b - c + d) / 2)
    return torch.stack([(band**2).sum(dim=0) for band in bands]).sum(dim=0)


def energy_map(codes: torch.Tensor, grid: tuple[int, int], border: str = "counted") -> torch.Tensor:
    """Codes [C, h, w] of the previous scale to the smoothed energy on the next grid."""
    raw = haar_energy(codes)[None, None]
    box = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    neighbours = 9.0 if border == "counted" else F.conv2d(torch.ones_like(raw), box, padding=1)
    smoothed = F.conv2d(raw, box, padding=1) / neighbours
    return F.interpolate(smoothed, grid, mode="bilinear", align_corners=False)[0, 0]


def distance_map(tokens: torch.Tensor) -> torch.Tensor:
    """Squared distance of each token [h*w, bits] to the mean token."""
    return (tokens.double() - tokens.double().mean(dim=0)).square().sum(dim=1)


def choose(energy: torch.Tensor, rho: float) -> list[int]:
    values = energy.flatten().tolist()
    order = sorted(range(len(values)), key=lambda i: -values[i])
    kept, total = [], 0.0
    for i in order:
        if total >= rho * sum(values) * (1 - 1e-9):
            break
        kept.append(i)
        total += values[i]
    return sorted(kept)


@torch.no_grad()
def naive_run(
    model: InfinityTransformer,
    text: torch.Tensor,
    schedule: ScaleSchedule,
    layout: LatentLayout,
    policy: Policy,
    guidance: float,
    temperature: float,
    rule: SamplingFilter,
    seed: int,
) -> NaiveRun:
    """One image under `policy` (energy from the previous residual; guidance is recalled from unpruned scales only)."""
    noise = position_noise(seed, schedule, layout.bits)
    h, w = layout.latent_grid(schedule.final_grid)
    run = NaiveRun(torch.zeros(layout.channels, h, w))
    inputs: list[torch.Tensor] = []
    visible: list[torch.Tensor] = []
    gaps: list[dict[int, float]] = []
    residual = recalled = torch.zeros(0)
    rows = torch.stack((text, model.unconditional_text(len(text))))
    for k, (h, w) in enumerate(schedule.grids[: len(schedule) - policy.skip_last]):
        kept = list(range(h * w))
        if k in policy.prunes(schedule) and isinstance(policy.tokens, LHEP):
            kept = choose(energy_map(residual, (h, w), policy.tokens.border), policy.tokens.rho)
        elif k in policy.prunes(schedule) and isinstance(policy.tokens, TopP):
            kept = choose(distance_map(inputs[-1]), policy.tokens.p)
        visible.append(torch.zeros(h * w, dtype=torch.bool).index_fill_(0, torch.tensor(kept, dtype=torch.long), True))
        partial = ScaleSchedule(schedule.grids[: k + 1], schedule.position_grid)
        sequence = torch.cat(inputs).expand(2, -1, -1) if inputs else torch.zeros(2, 0, layout.bits)
        logits = model(rows, None, sequence, partial, torch.cat(visible))[:, -h * w :]
        l_cond, l_uncond = (logits[i, :, 1::2] - logits[i, :, 0::2] for i in (0, 1))  # [h*w, bits]
        stopped = run.stopped_after is not None
        gaps.append({} if stopped else {t: float((l_cond[t] - l_uncond[t]).square().mean()) for t in kept})
        if not stopped:
            mixed = guidance * l_cond + (1 - guidance) * l_uncond
            recalled = (l_cond - l_uncond).T.reshape(1, layout.bits, h, w)
        elif policy.guidance is not None and policy.guidance.then == "reuse":
            at_grid = F.interpolate(recalled, (h, w), mode="bilinear", align_corners=False)[0].flatten(1).T
            mixed = l_cond + (guidance - 1) * at_grid
        else:
            mixed = l_cond
        codes = (sample_bits(mixed / temperature, noise[k], rule).float() * 2 - 1) / layout.channels**0.5
        if len(kept) < h * w or k in policy.prunes(schedule):
            filled = fill(residual, (h, w), policy)
            filled[kept] = codes[kept]
            codes = filled
        residual = codes.T.reshape(layout.bits, h, w)
        update = F.pixel_shuffle(residual[None], layout.patch)
        run.latent = run.latent + F.interpolate(update, run.latent.shape[1:], mode="bilinear", align_corners=False)[0]
        run.kept.append(kept)
        is_last = k + 1 == len(schedule) - policy.skip_last
        if not stopped and not is_last and stops(gaps, schedule, k, policy):
            run.stopped_after = k
        if k + 1 < len(schedule):
            target = layout.latent_grid(schedule.grids[k + 1])
            down = F.interpolate(run.latent[None], target, mode="bilinear", align_corners=False)
            inputs.append(F.pixel_unshuffle(down, layout.patch)[0].flatten(1).T)
    return run


def fill(residual: torch.Tensor, grid: tuple[int, int], policy: Policy) -> torch.Tensor:
    """What pruned places get, [h*w, bits]."""
    _, ph, pw = residual.shape
    assert isinstance(policy.tokens, LHEP | TopP)
    factor = {"repeat": 1.0, "zero": 0.0}[policy.tokens.fill]
    parents = [(y * ph // grid[0], x * pw // grid[1]) for y in range(grid[0]) for x in range(grid[1])]
    return torch.stack([residual[:, y, x] * factor for y, x in parents])


def stops(gaps: Sequence[dict[int, float]], schedule: ScaleSchedule, k: int, policy: Policy) -> bool:
    """Whether the unconditional branch stops after scale k."""
    rule = policy.guidance
    if isinstance(rule, SATS):
        return k in rule.stops(schedule) and settled(gaps, schedule, k, rule.delta)
    return isinstance(rule, StopAt) and k >= (SATS().stops(schedule)[0] if rule.scale == "first" else int(rule.scale))


def settled(gaps: Sequence[dict[int, float]], schedule: ScaleSchedule, k: int, threshold: float) -> bool:
    """Whether the guidance gap changed by less than the threshold, over places computed at both scales."""
    (h, w), (ph, pw) = schedule.grids[k], schedule.grids[k - 1]
    if len(gaps[k]) == h * w and len(gaps[k - 1]) == ph * pw:
        now, before = list(gaps[k].values()), list(gaps[k - 1].values())
    else:
        pairs = [(gap, gaps[k - 1].get((t // w) * ph // h * pw + (t % w) * pw // w)) for t, gap in gaps[k].items()]
        now = [gap for gap, parent in pairs if parent is not None]
        before = [parent for _, parent in pairs if parent is not None]
    if not before:
        return False
    delta, earlier = (sum(values) / len(values) for values in (now, before))
    return abs(delta**0.5 - earlier**0.5) / (earlier**0.5 + 1e-6) < threshold
