"""The VAR transformer: class-conditional next-scale prediction of codebook indices.

It differs from Infinity around the blocks: it has a class table instead of text, and learned absolute positions
instead of RoPE. Each block has its own AdaLN (shared in d36 only), and the head is over the codebook. Guidance ramps
up with the scale.
Parameter names are the original checkpoints' names.
"""

from __future__ import annotations

import re
from typing import cast

import torch
from torch import nn

from ldp_export.models.infinity import FeedForward, KeyValue, SelfAttention, modulate
from ldp_export.models.layers import Linear
from ldp_export.models.sizes import VarConfig

#: Names of parameters that stay float32, whatever the precision of the rest: the original's autocast leaves them alone.
FLOAT32_ISLANDS = re.compile(
    r"(class_emb|pos_start|pos_1LC|lvl_embed|head)\b|blocks\.\d+\.(ada_gss|attn\.scale_mul_1H11)$"
)


class VarBlock(nn.Module):
    """Self-attention and feed-forward under AdaLN with gates."""

    def __init__(self, config: VarConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.attn = SelfAttention(config)
        self.ffn = FeedForward(config)
        if config.shared_ada:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, config.width) / config.width**0.5)
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), Linear(config.width, 6 * config.width))

    def modulation(self, condition: torch.Tensor, shared: torch.Tensor | None) -> torch.Tensor:
        """AdaLN of this block [R, 6, C] in the order gate1, gate2, scale1, scale2, shift1, shift2."""
        if shared is not None:
            return self.ada_gss[0].float() + shared
        return self.ada_lin(condition).float().unflatten(-1, (6, -1))

    def forward(
        self, x: torch.Tensor, modulation: torch.Tensor, past: KeyValue | None, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, KeyValue]:
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.split(1, dim=1)
        attended, cache = self.attn(modulate(x, scale1, shift1, self.eps), None, past, mask)
        x = x + gate1 * attended
        return x + gate2 * self.ffn(modulate(x, scale2, shift2, self.eps)), cache


class _HeadNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), Linear(width, 2 * width))


class VarTransformer(nn.Module):
    """Transformer from a class and the image so far to logits over the codebook."""

    def __init__(self, config: VarConfig) -> None:
        super().__init__()
        self.config = config
        C, total = config.width, config.schedule.total_tokens
        self.class_emb = nn.Embedding(config.classes + 1, C)
        self.pos_start = nn.Parameter(torch.randn(1, 1, C) * 0.02)
        self.pos_1LC = nn.Parameter(torch.randn(1, total, C) * 0.02)
        self.lvl_embed = nn.Embedding(len(config.grids), C)
        self.word_embed = Linear(config.channels, C)
        if config.shared_ada:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), Linear(C, 6 * C))
        self.blocks = nn.ModuleList(VarBlock(config) for _ in range(config.depth))
        self.head_nm = _HeadNorm(C)
        self.head = Linear(C, config.codes)

    @property
    def layers(self) -> list[VarBlock]:
        return cast(list[VarBlock], list(self.blocks))

    def shared_modulation(self, condition: torch.Tensor) -> torch.Tensor | None:
        """AdaLN that all blocks share [R, 6, C]; None if each block has its own."""
        return self.shared_ada_lin(condition).float().unflatten(-1, (6, -1)) if self.config.shared_ada else None

    def modulations(self, condition: torch.Tensor) -> list[torch.Tensor]:
        """AdaLN of every block, [R, 6, C] each; it depends on the class only."""
        shared = self.shared_modulation(condition)
        return [block.modulation(condition, shared) for block in self.layers]

    def positions(self, scale: int) -> torch.Tensor:
        """Position embedding plus scale embedding of the tokens of one scale [h*w, C]."""
        offsets = self.config.schedule.offsets
        return self.pos_1LC[0, offsets[scale] : offsets[scale + 1]] + self.lvl_embed.weight[scale]

    def start_tokens(self, condition: torch.Tensor) -> torch.Tensor:
        """The only token of scale 0: [R, 1, C]."""
        return condition[:, None] + self.pos_start + self.positions(0)

    def head_modulation(self, condition: torch.Tensor) -> torch.Tensor:
        """Scale and shift before the head [R, 2, C]."""
        return self.head_nm.ada_lin(condition).float().unflatten(-1, (2, -1))

    def logits(self, hidden: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Logits over the codebook [R, L, codes] of hidden tokens [R, L, C]."""
        scale, shift = self.head_modulation(condition).split(1, dim=1)
        return self.head(modulate(hidden.float(), scale, shift, self.config.norm_eps))

    def forward(self, labels: torch.Tensor, latents: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """Runs all scales at once, teacher-forced: tokens of scale a attend to all scales up to a.

        Args:
            labels: classes [R].
            latents: inputs of scales 1.. concatenated [R, total - 1, channels].
            keep: keep mask [total]; tokens marked False are hidden from every token, as if never computed.

        Returns:
            Logits [R, total, codes]; those of hidden tokens have no meaning.
        """
        condition, tokens = self.class_emb(labels), self.config.schedule.tokens
        positions = torch.cat([self.positions(k) for k in range(1, len(tokens))]) if len(tokens) > 1 else latents[0]
        x = torch.cat((self.start_tokens(condition), self.word_embed(latents) + positions), dim=1)
        scale_of = torch.repeat_interleave(torch.arange(len(tokens)), torch.tensor(tokens))
        visible = scale_of[:, None] >= scale_of[None, :]  # [query, key]
        if keep is not None:
            visible = visible & keep
        for block, modulation in zip(self.layers, self.modulations(condition), strict=True):
            x, _ = block(x, modulation, None, visible)
        return self.logits(x, condition)
