"""Muon: momentum whose every matrix is made orthogonal before it is applied (Jordan et al., 2024).

PyTorch's own takes matrices only; convolutions count here as matrices of [out, in * kernel]. It learns these small
networks in markedly fewer steps than Adam does.
"""

from collections.abc import Iterable

import torch


class Muon(torch.optim.Optimizer):
    """For weights of two or more dimensions; updates are scaled to the size that Adam's have at the same rate."""

    def __init__(self, weights: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                mean = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(mean, group["momentum"]).flatten(1)  # Nesterov's look ahead
                update = orthogonal(ahead) * (0.2 * max(ahead.shape) ** 0.5)
                weight.add_(update.view_as(weight), alpha=-group["lr"])


def orthogonal(matrix: torch.Tensor, steps: int = 4) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrix, roughly: a quintic Newton-Schulz iteration [m, n] -> [m, n]."""
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)
