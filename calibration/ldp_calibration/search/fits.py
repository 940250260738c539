"""Numbers fitted to one bundle: fills of pruned positions, and importance of tokens.

Everything is read off full, unpruned runs: the view that policies have before each scale, and the residuals that the
scale then brought. Pixels enter through the decoder, as the number of pixels that a token changes. That number weighs
the token's equations. (Most tokens are background, and what fits them best fits the drawn objects badly.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from ldp_runtime.errors import ConfigError
from ldp_runtime.pipeline.drawing import ScaleEvent
from ldp_runtime.pipeline.pipeline import Condition, Pipeline
from ldp_runtime.pruning.fills import predictors
from ldp_runtime.pruning.fitted import Fitted
from ldp_runtime.pruning.policy import Policy, ScaleView, Selection, TokenRule
from ldp_runtime.pruning.scores import FEATURES, score_map
from ldp_runtime.pruning.stopping import derived_scales
from ldp_runtime.schedule import ScaleSchedule
from torch.nn import functional as F

#: Fewest prompts: a fill has hundreds of weights per channel.
LEAST_PROMPTS = 4
#: Pull of every weight of a fill towards zero, as so many extra tokens of unit size.
_RIDGE = 3.0


@dataclass(eq=False)
class Seen(TokenRule):
    """Notes of one full run, taken by a rule that changes nothing.

    Attributes:
        views: views of policies before each scale from 1 on.
        residuals: R_k of every scale on its token grid [channels, h, w].
        latents: F_k of every scale [d, H, W].
    """

    views: list[ScaleView] = field(default_factory=list)
    residuals: list[torch.Tensor] = field(default_factory=list)
    latents: list[torch.Tensor] = field(default_factory=list)

    def prunes(self, schedule: ScaleSchedule) -> tuple[int, ...]:
        return tuple(range(1, len(schedule)))

    def select(self, view: ScaleView) -> Selection | None:
        self.views.append(view)
        return None

    def on_scale(self, event: ScaleEvent) -> None:
        self.residuals.append(event.residuals[0])
        self.latents.append(event.latents[0])


def watch(pipe: Pipeline, prompt: Condition, seed: int) -> Seen:
    """Runs one prompt in full and returns the notes."""
    seen = Seen()
    pipe.draw(prompt, seed=seed, policy=Policy(seen), output_type="latent", callback_on_scale=seen.on_scale)
    return seen


def fit(
    pipe: Pipeline,
    prompts: Sequence[Condition],
    seeds: Sequence[int],
    report: Callable[[int, int, str], None] = lambda done, total, detail: None,
) -> Fitted:
    """Fits everything that policies may ask for, for the scales that pruning and stopping concern.

    Raises:
        ConfigError: fewer than `LEAST_PROMPTS` prompts.
    """
    if len(prompts) < LEAST_PROMPTS:
        raise ConfigError(f"{len(prompts)} prompts are too few to fit to", hint=f"give at least {LEAST_PROMPTS}")
    scales = fitted_scales(pipe.manifest.schedule())
    fills = {k: Normal() for k in scales}
    errors: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {k: [] for k in scales}
    for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        report(i, len(prompts), "fitting")
        seen = watch(pipe, prompt, seed)
        for k in scales:
            maps, pixels = error_equations(pipe, seen, k)
            weights = pixels / pixels.mean().clamp(min=1e-12)
            errors[k].append((maps, pixels))
            fills[k].add(*fill_equations(seen, k), weights)
    return Fitted(
        {k: as_kernel(equations.solve(_RIDGE)) for k, equations in fills.items()},
        {k: non_negative(*(torch.cat(parts) for parts in zip(*pairs, strict=True))) for k, pairs in errors.items()},
    )


def fitted_scales(schedule: ScaleSchedule) -> tuple[int, ...]:
    """Scales from the first one after which the branch may stop to the last."""
    return derived_scales(schedule)


def fill_equations(seen: Seen, scale: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [L, 18 C + 1] and target [L, C] of the fill at one scale.

    The features are the 3x3 neighbourhoods of the predictors, and a one; the target is the residuals.
    """
    padded = F.pad(predictors(seen.views[scale - 1])[None], (1, 1, 1, 1), mode="replicate")
    patches = F.unfold(padded, 3)[0].T
    return torch.cat((patches, torch.ones_like(patches[:, :1])), dim=1), seen.residuals[scale].flatten(1).T


def as_kernel(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of `fill_equations` [18 C + 1, C] as a convolution's kernel [C, 2 C, 3, 3] and bias [C]."""
    C = weights.shape[1]
    return weights[:-1].T.reshape(C, 2 * C, 3, 3).float(), weights[-1].float()


def error_equations(pipe: Pipeline, seen: Seen, scale: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Feature maps of `score=error` and a one [L, features + 1], and the pixel change of each token [L]."""
    view, grid = seen.views[scale - 1], seen.views[scale - 1].schedule.grids[scale]
    before, after = pipe.decode(torch.stack((seen.latents[scale - 1], seen.latents[scale])), "torch")
    change = F.adaptive_avg_pool2d((after - before).square().sum(dim=0)[None], grid)[0].cpu()
    maps = [score_map(feature, view).flatten().cpu() for feature in FEATURES]
    return torch.stack((*maps, torch.ones_like(maps[0])), dim=1), change.flatten()


def non_negative(features: torch.Tensor, target: torch.Tensor) -> tuple[float, ...]:
    """Least-squares weights [F] of features [L, F] for a target [L]; those that would be negative are left out."""
    used = list(range(features.shape[1]))
    while used:
        solution = torch.linalg.lstsq(features[:, used].double(), target.double()[:, None]).solution[:, 0]
        if bool((solution >= 0).all()):
            weights = dict(zip(used, solution.tolist(), strict=True))
            return tuple(weights.get(i, 0.0) for i in range(features.shape[1]))
        used.pop(int(solution.argmin()))
    return (0.0,) * features.shape[1]


class Normal:
    """Normal equations, summed up run by run, so that memory does not grow with the number of prompts."""

    def __init__(self) -> None:
        self._inner: torch.Tensor | None = None
        self._outer: torch.Tensor | None = None

    @property
    def known(self) -> bool:
        return self._inner is not None

    def add(self, features: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> None:
        """Adds equations features [L, ..., F] @ unknowns [F, C] = target [L, ..., C], with the tokens' weights [L]."""
        roots = weights.double().sqrt().view(-1, *[1] * (features.dim() - 1))
        X, Y = ((m.double().cpu() * roots).flatten(0, -2) for m in (features, target))
        self._inner = X.T @ X + (0 if self._inner is None else self._inner)
        self._outer = X.T @ Y + (0 if self._outer is None else self._outer)

    def solve(self, ridge: float) -> torch.Tensor:
        """Solves for the unknowns [F, C]."""
        assert self._inner is not None
        assert self._outer is not None
        return torch.linalg.solve(self._inner + ridge * torch.eye(len(self._inner), dtype=torch.float64), self._outer)
