"""Muon: momentum whose every matrix is made orthogonal before it is applied (Jordan et al., 2024).

PyTorch's own takes matrices only; convolutions count here as matrices of [out, in * kernel]. It learns these small
networks in markedly fewer steps than Adam does.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch


class Muon(torch.optim.Optimizer):
    """For weights of two or more dimensions; updates are scaled to the size that Adam's have at the same rate."""

    def __init__(self, weights: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            # Matrices of one shape are made orthogonal together: a fraction of the launches on a GPU.
            alike: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[weight.flatten(1).shape].append(weight)
            for shape, weights in alike.items():
                ahead = torch.stack([self._ahead(weight, group["momentum"]).flatten(1) for weight in weights])
                updates = orthogonal(ahead) * (0.2 * max(shape) ** 0.5)
                for weight, update in zip(weights, updates, strict=True):
                    weight.add_(update.view_as(weight), alpha=-group["lr"])

    def _ahead(self, weight: torch.Tensor, momentum: float) -> torch.Tensor:
        """Nesterov's look ahead from the momentum of this step."""
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        mean = state["momentum"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(mean, momentum)


def orthogonal(matrices: torch.Tensor, steps: int = 4) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrices, roughly: a quintic Newton-Schulz iteration [n, rows, columns]."""
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)
