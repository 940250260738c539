"""Layers that compute in the element type of their weights, whatever the type of their input.

A model's precision follows from its weights. Products and convolutions cast their input to the weight's type;
normalisations always compute in float32. With float32 weights every cast is the identity and leaves no trace in an
exported graph. A reduced-precision graph therefore differs from its float32 twin in casts only.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Product x W^T + b, computed in the weight's type: with float32 weights it is float32."""
    return F.linear(x.to(weight.dtype), weight, bias)


class Linear(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.to(self.weight.dtype))


class LayerNorm(nn.LayerNorm):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(input.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


class GroupNorm(nn.GroupNorm):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.group_norm(input.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)
