"""The HART transformer: next-scale prediction of codebook indices behind a prefix of text, and its residual head.

Source: the released code of HART (mit-han-lab/hart). The text's rows take the place of the first scale. The last of
them predicts the only token of the smallest grid, and all later scales see all of them. The codes of the last scale get
a continuous residual, which a small diffusion head denoises for each position by itself.
Parameter names are the original checkpoints' names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from ldp_runtime.schedule import corner_places
from torch import nn
from torch.nn import functional as F

from ldp_export.models.infinity import KeyValue, RmsNorm, attend, modulate
from ldp_export.models.layers import LayerNorm, Linear, linear
from ldp_export.models.sizes import HartConfig

#: Names of parameters that stay float32 in every precision. The logits decide draws, and the first step of the
#: residual head multiplies its output by twenty thousand.
FLOAT32_ISLANDS = re.compile(r"(context_norm|lvl_embed|head_nm|head|decoder_norm|diffloss)\b|(.*\.)?ln_wo_grad\b")

#: Softmax scale of the attention, beside the square root of a head's channels: four times flatter than usual.
_FLATNESS = 0.25
#: Share of the denoised residual that is added, and steps of the noise that it was trained with.
_RESIDUAL_SHARE, _NOISE_STEPS = 0.6, 1000
_HEAD_EPS = 1e-6


def waves(numbers: torch.Tensor, base: float = 10000.0, channels: int = 256) -> torch.Tensor:
    """Sinusoids of numbers [n]: cosines, then sines, of falling frequencies [n, channels]."""
    half = channels // 2
    frequencies = torch.exp(-math.log(base) * torch.arange(half, dtype=torch.float32, device=numbers.device) / half)
    phases = numbers.float()[:, None] * frequencies
    return torch.cat((phases.cos(), phases.sin()), dim=-1)


def angles(places: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Angles [..., L, c] of places [..., L, 2] (row, column): the first half of the channels turns by the row.

    Args:
        frequencies: of each channel of a half, [L, c / 2] or [c / 2].
    """
    return torch.cat((places[..., :1] * frequencies, places[..., 1:] * frequencies), dim=-1)


def turn(x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Turns pairs of channels e and e + c/2 of x [R, L, H, c], each by its own angle [R, L, c].

    It is no rotation unless both angles of a pair are equal, so nothing may be folded.
    """
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x * angle.cos()[:, :, None] + turned * angle.sin()[:, :, None]


class SelfAttention(nn.Module):
    """Attention to all rows so far, without any mask: text sees text in both directions, padding included."""

    def __init__(self, config: HartConfig) -> None:
        super().__init__()
        C = config.width
        self.heads, self.scale = config.heads, _FLATNESS * config.head_dim**-0.5
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(C)), nn.Parameter(torch.zeros(C))
        self.qkv_proj = Linear(C, 3 * C, bias=False)
        self.proj = Linear(C, C)

    def project(self, x: torch.Tensor, angle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Projects x [R, L, C] to turned queries and keys, and to values, [R, L, H, c] each."""
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        q, k, v = linear(x, self.qkv_proj.weight, bias).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in (q, k, v))
        return turn(q.float(), angle).to(v.dtype), turn(k.float(), angle).to(v.dtype), v

    def forward(
        self, x: torch.Tensor, angle: torch.Tensor, past: KeyValue | None, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, KeyValue]:
        q, k, v = self.project(x, angle)
        if past is not None:
            k, v = torch.cat((past[0], k), dim=1), torch.cat((past[1], v), dim=1)
        return self.proj(attend(q, k, v, self.scale, mask)), (k, v)


class FeedForward(nn.Module):
    """SwiGLU without biases."""

    def __init__(self, config: HartConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.width, config.ffn, bias=False)
        self.up_proj = Linear(config.width, config.ffn, bias=False)
        self.down_proj = Linear(config.ffn, config.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class HartBlock(nn.Module):
    """Attention and feed-forward behind norms that share one weight; `ln_wo_grad` is learned in spite of its name."""

    def __init__(self, config: HartConfig) -> None:
        super().__init__()
        self.ln_wo_grad = RmsNorm(config.width, config.norm_eps)
        self.attn, self.ffn = SelfAttention(config), FeedForward(config)

    def forward(
        self,
        x: torch.Tensor,  # [R, L, C]
        angle: torch.Tensor,  # [R, L, c]
        past: KeyValue | None = None,
        mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, KeyValue]:
        attended, cache = self.attn(self.ln_wo_grad(x), angle, past, mask)
        x = x + attended
        return x + self.ffn(self.ln_wo_grad(x)), cache


class _Waves(nn.Module):
    """Two layers on sinusoids of a number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(256, width), nn.SiLU(), Linear(width, width))

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.mlp(waves(numbers))


class _HeadNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.ln_wo_grad = RmsNorm(width, eps)
        self.ada_lin = nn.Sequential(nn.SiLU(), Linear(width, 2 * width))


class _ResBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = LayerNorm(width, eps=_HEAD_EPS)
        self.mlp = nn.Sequential(Linear(width, width), nn.SiLU(), Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 3 * width))

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift, scale, gate = self.adaLN_modulation(condition).float().chunk(3, dim=-1)
        return x + gate * self.mlp(self.in_ln(x) * (1.0 + scale) + shift)


class _FinalLayer(nn.Module):
    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.linear = Linear(width, 2 * channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 2 * width))

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift, scale = self.adaLN_modulation(condition).float().chunk(2, dim=-1)
        return self.linear(modulate(x, scale, shift, _HEAD_EPS))


class _Denoiser(nn.Module):
    """Noise and variance [R, L, 2 channels] that it finds in x [1, L, channels]; each position by itself.

    The time comes as its sinusoids [256], the condition as it was embedded [R, L, W].
    """

    def __init__(self, config: HartConfig) -> None:
        super().__init__()
        W = config.residual_width
        self.time_embed = _Waves(W)
        self.cond_embed = Linear(config.width, W)
        self.input_proj = Linear(config.channels, W)
        self.res_blocks = nn.ModuleList(_ResBlock(W) for _ in range(config.residual_depth))
        self.final_layer = _FinalLayer(W, config.channels)

    def forward(self, x: torch.Tensor, time: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        y = self.time_embed.mlp(time[None, None]).float() + condition
        hidden = self.input_proj(x).float()
        for block in self.res_blocks:
            hidden = block(hidden, y)
        return self.final_layer(hidden, y)


class _DiffLoss(nn.Module):
    def __init__(self, config: HartConfig) -> None:
        super().__init__()
        self.net = _Denoiser(config)


@dataclass(frozen=True)
class DenoisingStep:
    """One step of the residual head, with numbers of its noise schedule.

    Attributes:
        time: step of the training's schedule that stands for it.
        of_sample, of_noise: x0 = of_sample x - of_noise eps.
        keep_start, keep_sample: mean = keep_start x0 + keep_sample x.
        least, most: logarithms of the variance's bounds.
    """

    time: int
    of_sample: float
    of_noise: float
    keep_start: float
    keep_sample: float
    least: float
    most: float


def denoising_steps(count: int) -> list[DenoisingStep]:
    """Steps of the residual head in the order in which they are taken, of a cosine schedule of 1000 steps."""

    def level(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    products, product = [], 1.0
    for i in range(_NOISE_STEPS):
        product *= 1 - min(1 - level((i + 1) / _NOISE_STEPS) / level(i / _NOISE_STEPS), 0.999)
        products.append(product)
    times = [round(j * (_NOISE_STEPS - 1) / max(count - 1, 1)) for j in range(count)]
    kept = [products[time] for time in times]
    before = [1.0, *kept[:-1]]
    betas = [1 - now / past for now, past in zip(kept, before, strict=True)]
    variances = [b * (1 - past) / (1 - now) for b, now, past in zip(betas, kept, before, strict=True)]
    variances[0] = variances[min(1, count - 1)] or betas[0]
    steps = [
        DenoisingStep(
            time=times[j],
            of_sample=math.sqrt(1 / kept[j]),
            of_noise=math.sqrt(1 / kept[j] - 1),
            keep_start=betas[j] * math.sqrt(before[j]) / (1 - kept[j]),
            keep_sample=(1 - before[j]) * math.sqrt(1 - betas[j]) / (1 - kept[j]),
            least=math.log(variances[j]),
            most=math.log(betas[j]),
        )
        for j in range(count)
    ]
    return steps[::-1]


class HartTransformer(nn.Module):
    """Transformer from text and the image so far to logits over the codebook, with the head of the last residual."""

    def __init__(self, config: HartConfig) -> None:
        super().__init__()
        self.config = config
        C, eps = config.width, config.norm_eps
        self.word_embed = Linear(config.channels, C)
        self.context_norm = RmsNorm(config.text_channels, eps)
        self.context_embed = Linear(config.text_channels, C)
        self.lvl_embed = _Waves(C)
        self.blocks = nn.ModuleList(HartBlock(config) for _ in range(config.depth))
        self.head_nm = _HeadNorm(C, eps)
        self.head = Linear(C, config.codes)
        self.decoder_norm = RmsNorm(C, eps)
        self.diffloss = _DiffLoss(config)

    @property
    def layers(self) -> list[HartBlock]:
        return cast(list[HartBlock], list(self.blocks))

    def context(self, features: torch.Tensor) -> torch.Tensor:
        """Text features [R, T, Ct] as rows of the sequence [R, T, C]; features of zeros are the unconditional text."""
        return self.context_embed(self.context_norm(features)).float()

    def levels(self) -> torch.Tensor:
        """Embedding of each scale's number [S, C]; the text has that of scale 0."""
        return self.lvl_embed(torch.arange(len(self.config.grids), device=self.head.weight.device)).float()

    def text_angles(self, positions: torch.Tensor) -> torch.Tensor:
        """Angles [R, T, c] of the text's rows at positions [R, T]: one number for both axes."""
        frequencies = self.text_frequencies
        return angles(positions.float()[..., None].expand(*positions.shape, 2), frequencies.to(positions.device))

    @property
    def text_frequencies(self) -> torch.Tensor:
        """Frequencies of text rows, for each channel of a half [c / 2]."""
        return corner_places(self.config.schedule, self.config.head_dim)[0][1][0]

    def image_angles(self, scale: int, origin: torch.Tensor) -> torch.Tensor:
        """Angles [R, L, c] of a scale's tokens, whose coordinates begin at the last text position [R]."""
        places, frequencies = corner_places(self.config.schedule, self.config.head_dim)[scale]
        return angles(places[None] + origin.float()[:, None, None], frequencies)

    def embed(self, latents: torch.Tensor, scale: int) -> torch.Tensor:
        """Down-sampled latents [R, L, channels] of a scale >= 1, embedded as tokens [R, L, C]."""
        return self.word_embed(latents).float() + self.levels()[scale]

    def head_modulation(self, context: torch.Tensor) -> torch.Tensor:
        """Scale and shift before the head [R, 2, C], from the largest of the text's rows, padding included."""
        return self.head_nm.ada_lin(context.amax(dim=1)).float().unflatten(-1, (2, -1))

    def logits(self, hidden: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        """Logits over the codebook [R, L, codes] of hidden tokens [R, L, C]."""
        scale, shift = modulation.split(1, dim=1)
        return self.head(self.head_nm.ln_wo_grad(hidden) * (1 + scale) + shift)

    def residual_condition(self, hidden: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Condition of the residual head [R, L, C]: hidden tokens [R, L, C] with drawn codes [R or 1, L, channels]."""
        return self.decoder_norm(hidden + self.word_embed(codes).float())

    def step_waves(self) -> torch.Tensor:
        """Sinusoids of the residual head's steps, in the order in which they are taken [steps, 256]."""
        times = [step.time for step in denoising_steps(self.config.residual_steps)]
        return waves(torch.tensor(times, dtype=torch.float32, device="cpu"))

    def residual(
        self,
        condition: torch.Tensor,
        noise: torch.Tensor,
        weights: torch.Tensor,
        times: torch.Tensor | None = None,
        trace: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Continuous residual of the last scale's codes [L, channels].

        Args:
            condition: see `residual_condition` [R, L, C]; the conditional branch comes first.
            noise: of each position, first for the start, then for each step but the last [L, steps, channels].
            weights: of the branches in the noise that is taken off [R]; the variance is the first branch's own.
            times: see `step_waves`; None computes them.
            trace: gets what the steps begin with.
        """
        net, channels = self.diffloss.net, self.config.channels
        z, x = net.cond_embed(condition).float(), noise[:, 0]
        times = self.step_waves().to(x.device) if times is None else times
        steps = denoising_steps(self.config.residual_steps)
        for i, step in enumerate(steps):
            if trace is not None:
                trace.append(x)
            found = net(x[None], times[i], z)  # [R, L, 2 channels]
            eps = (weights[:, None, None] * found[..., :channels]).sum(dim=0)
            share = 0.5 * (found[0, :, channels:] + 1.0)
            start = (x * step.of_sample - eps * step.of_noise).clamp(-1, 1)
            x = start * step.keep_start + x * step.keep_sample
            if i + 1 < len(steps):
                x = x + (0.5 * (share * step.most + (1.0 - share) * step.least)).exp() * noise[:, i + 1]
        return x * _RESIDUAL_SHARE

    def forward(
        self,
        features: torch.Tensor,
        positions: torch.Tensor,
        latents: Sequence[torch.Tensor],
        keep: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Runs all scales at once, teacher-forced: each sees the text, earlier scales, and itself.

        Args:
            features: text [R, T, Ct].
            positions: of the text's rows [R, T].
            latents: input of each scale from 1 on [R, L, channels].
            keep: keep mask of the image's tokens [total]; those marked False are hidden from every token.

        Returns:
            Logits [R, total, codes]; those of hidden tokens have no meaning.
        """
        context, config = self.context(features), self.config
        T, tokens = context.shape[1], config.schedule.tokens
        parts = [context + self.levels()[0], *(self.embed(part, k + 1) for k, part in enumerate(latents))]
        angle = [self.text_angles(positions), *(self.image_angles(k, positions[:, -1]) for k in range(1, len(tokens)))]
        scale_of = torch.repeat_interleave(torch.arange(len(tokens)), torch.tensor((T, *tokens[1:])))
        visible = scale_of[:, None] >= scale_of
        if keep is not None:
            visible = visible & torch.cat((torch.ones(T, dtype=torch.bool), keep[1:]))
        x, turned = torch.cat(parts, dim=1), torch.cat(angle, dim=1)
        for block in self.layers:
            x, _ = block(x, turned, mask=visible)
        return self.logits(x[:, T - 1 :], self.head_modulation(context))
