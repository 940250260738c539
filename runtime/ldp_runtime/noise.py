"""Sampling noise: random variates of each token position, drawn from an image's seed."""

from __future__ import annotations

import torch

from ldp_runtime.schedule import ScaleSchedule


def logistic_noise(draws: torch.Tensor) -> torch.Tensor:
    """Logistic variates log(E1 / E0) [...] from pairs of exponential variates (E0, E1) [..., 2]."""
    return draws[..., 1].log() - draws[..., 0].log()


def position_noise(seed: int, schedule: ScaleSchedule, bits: int) -> tuple[torch.Tensor, ...]:
    """Noise of one image for the full grid of every scale: one float32 tensor [h*w, bits] per scale, on the CPU."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return tuple(draw_noise(generator, tokens, bits) for tokens in schedule.tokens)


def draw_noise(generator: torch.Generator, tokens: int, bits: int) -> torch.Tensor:
    """The next `tokens * bits` variates of the stream, in the originals' order (token, bit, outcome)."""
    draws = torch.empty(tokens * bits, 2, dtype=torch.float32, device="cpu").exponential_(1, generator=generator)
    return logistic_noise(draws).view(tokens, bits)
