"""Sampling noise: random variates of each token position, drawn from an image's seed.

There are two kinds; a bundle's manifest says which one its pipeline draws.

- "generator": PyTorch's CPU generator, which draws the full grid of every scale in the originals' order. It reproduces
  the originals' pictures.
- "counter": every variate is a function of (seed, scale, position, channel) alone; see `counter_words`. Only what is
  needed is drawn, where it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ldp_runtime.schedule import ScaleSchedule

#: Multipliers of Philox 4x32, and what its key grows by from round to round.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = 0xFFFFFFFF


#: Variates that are drawn at a time, so that temporaries stay small beside the logits.
_AT_A_TIME = 2**20


#: Most bytes of these temporaries: less than eight numbers of 8 bytes for a variate.
COUNTER_NOISE_BYTES = 64 * _AT_A_TIME


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


def philox(counter: Sequence[torch.Tensor], key: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """Four random 32-bit words of each counter, by Philox 4x32 with ten rounds.

    Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), and Random123.

    Args:
        counter: four tensors of one shape, int64 in [0, 2^32).
        key: two numbers in [0, 2^32).

    Returns:
        Four int64 tensors in [0, 2^32): the same ones on every device, since all steps are of whole numbers.
    """
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _product(a, _MULTIPLIERS[0])
        high1, low1 = _product(c, _MULTIPLIERS[1])
        a, b, c, d = high1 ^ b ^ k0, low1, high0 ^ d ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return a, b, c, d


def _product(x: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of a product of 32-bit numbers, by halves: no step exceeds int64."""
    upper, lower = (x >> 16) * factor, (x & 0xFFFF) * factor
    return (upper + (lower >> 16)) >> 16, (((upper & 0xFFFF) << 16) + lower) & _LOW


def counter_words(seed: int, scale: int, positions: torch.Tensor, channels: int) -> torch.Tensor:
    """Random 32-bit words of a scale's positions [L], one for each channel: int64 [L, channels].

    Word j of a position is word j mod 4 of Philox's block with counter (j div 4, position, scale, 0). The key is the
    seed, lower half first; of a seed, 64 bits count.
    """
    blocks = torch.arange(-(-channels // 4), dtype=torch.int64, device=positions.device)
    counter = [blocks.expand(len(positions), -1), positions[:, None].expand(-1, len(blocks))]
    counter += [torch.full_like(counter[0], number) for number in (scale, 0)]
    words = philox(counter, (seed & _LOW, (seed >> 32) & _LOW))
    return torch.stack(words, dim=-1).flatten(1)[:, :channels]


def uniforms(words: torch.Tensor) -> torch.Tensor:
    """Uniform variates in (0, 1) of 32-bit words: (word + 1/2) / 2^32, exact in float64."""
    return (words.double() + 0.5) * 2.0**-32


def exponentials(uniform: torch.Tensor) -> torch.Tensor:
    """Exponential variates -log(1 - u), float32 of float64 logarithms: all but equal bits on every device.

    Small variates, which decide draws from many outcomes, come from small `u`, where float64 is finest.
    """
    return -torch.log1p(-uniform).float()


def logistics(uniform: torch.Tensor) -> torch.Tensor:
    """Logistic variates log(u / (1 - u)), float32 of float64 logarithms; as `logistic_noise` of two exponentials."""
    return (uniform.log() - torch.log1p(-uniform)).float()


@dataclass(frozen=True)
class CounterNoise:
    """Noise of an image by (seed, scale, position, channel), drawn when it is asked for.

    Attributes:
        tokens: number of tokens of each scale.
        device: where the noise is drawn: that of the logits.
        variates: number of variates of a token of each scale.
        of_uniforms: noise of tokens from uniform variates, float64 [L, variates] in (0, 1).
    """

    seed: int
    tokens: Sequence[int]
    device: torch.device
    variates: Sequence[int]
    of_uniforms: Callable[[torch.Tensor], torch.Tensor]

    def at(self, scale: int, kept: torch.Tensor | None) -> torch.Tensor:
        """Noise of the kept tokens of a scale [L, variates] (None: all of them)."""
        positions = kept
        if positions is None:
            positions = torch.arange(self.tokens[scale], dtype=torch.int64, device=self.device)
        parts = positions.split(max(1, _AT_A_TIME // self.variates[scale]))
        return torch.cat([self._draw(scale, part) for part in parts])

    def _draw(self, scale: int, positions: torch.Tensor) -> torch.Tensor:
        return self.of_uniforms(uniforms(counter_words(self.seed, scale, positions, self.variates[scale])))
