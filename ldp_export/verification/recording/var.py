"""Reference runs of VAR: as in `infinity.py`, with classes and indices into the codebook."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from ldp_runtime.bundle.manifest import Defaults
from ldp_runtime.families.var import filter_logits
from ldp_runtime.schedule import ScaleSchedule

from ldp_export.models.var import VarTransformer
from ldp_export.models.var_vae import VarVae
from ldp_export.reference.oracle import pruned_var_logits
from ldp_export.reference.var import VarRun, VarSettings, generate
from ldp_export.verification.cases import Case, ReferenceCases, fixed_masks

_SEEDS = 3


#: Amounts by which the limits of top-k and top-p are moved to see if rounding could have changed a draw.
_ROOM_K, _ROOM_P = 4, 1e-4


@torch.no_grad()
def record_var_cases(
    transformer: VarTransformer, vae: VarVae, defaults: Defaults, on_case: Callable[[str], None] = lambda name: None
) -> ReferenceCases:
    """Records runs of the reference model: two classes with guidance, one without, and one pruned."""
    tensors: dict[str, torch.Tensor] = {}
    cases: list[Case] = []
    last = transformer.config.classes - 1
    for label, guidance in ((0, defaults.guidance), (0, 0.0), (last, defaults.guidance)):
        name = f"class{label}_guidance{guidance:g}"
        if any(case.name == name for case in cases):
            continue
        on_case(name)
        run, seed, margin = _clearest(transformer, vae, label, guidance, defaults)
        cases.append(Case(name, 1.0, guidance, seed=seed, margin=margin, label=label))
        rows = 2 if _guided(guidance, transformer) else 1
        for k, (indices, logits) in enumerate(zip(run.indices, run.raw_logits, strict=True)):
            tensors[f"{name}.indices_{k}"], tensors[f"{name}.logits_{k}"] = indices[0], logits[:rows]
        tensors[f"{name}.latent"] = run.accumulated[-1][0]
        tensors[f"{name}.image"] = vae.decode(run.accumulated[-1])[0]
        if len(cases) == 1:
            pruned = Case(f"{name}_pruned", 1.0, guidance, pruned=True, label=label)
            _store_pruned(pruned, transformer, vae, run, tensors)
            cases.append(pruned)
    return ReferenceCases(tuple(cases), tensors)


class DrawSettings(Protocol):
    """Settings that a draw of indices depends on."""

    @property
    def seed(self) -> int: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...


class DrawnIndices(Protocol):
    """Run of one image that draws an index for each token, by scale."""

    @property
    def guided(self) -> Sequence[torch.Tensor]: ...
    @property
    def indices(self) -> Sequence[torch.Tensor | None]: ...


def _guided(guidance: float, transformer: VarTransformer) -> bool:
    """True if any scale is guided. The ramp of guidance begins with none, so a single scale has none."""
    return guidance != 0 and len(transformer.config.grids) > 1


def _clearest(
    transformer: VarTransformer, vae: VarVae, label: int, guidance: float, defaults: Defaults
) -> tuple[VarRun, int, float]:
    """Clearest run of a few seeds, its seed, and its closest decision: rounding must not decide the final image."""
    runs = []
    for seed in range(_SEEDS):
        settings = VarSettings(guidance, defaults.top_k, defaults.top_p, seed, temperature=defaults.temperature)
        run = generate(transformer, vae, [label], settings)
        runs.append((run, seed, closest_decision(run, transformer.config.schedule, settings)))
    return max(runs, key=lambda entry: entry[2])


def closest_decision(run: DrawnIndices, schedule: ScaleSchedule, settings: DrawSettings) -> float:
    """Smallest distance, in logits, of any drawn index to becoming another one, in a run of one image.

    Each draw takes the largest of l - log E (logit, exponential noise) among the codes that top-k and top-p leave.
    Rounding moves the limits of top-k and top-p, too. So codes just outside the limits compete here as well, and a
    drawn code that is not safely inside them has distance 0.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    closest = sys.float_info.max  # files hold no infinity
    for logits, indices, tokens in zip(run.guided, run.indices, schedule.tokens, strict=True):
        assert indices is not None
        noise = torch.empty(tokens, logits.shape[-1]).exponential_(1, generator=generator)
        drawn = indices[0][:, None]
        loose = _filtered(logits[0], settings, 1)
        strict = _filtered(logits[0], settings, -1)
        race = loose - (noise.log() if settings.top_k != 1 else 0)
        lead = race.gather(1, drawn) - race.scatter(1, drawn, -torch.inf).amax(dim=1, keepdim=True)
        safe = strict.gather(1, drawn).isfinite()
        closest = min(closest, float(torch.where(safe, lead, 0).min()))
    return closest


def _filtered(logits: torch.Tensor, settings: DrawSettings, side: int) -> torch.Tensor:
    """Logits filtered with limits that are a little wider (side 1) or narrower (side -1) than the settings'."""
    top_k, top_p = settings.top_k, settings.top_p
    if top_k > 1:
        top_k = max(1, top_k + side * _ROOM_K)
    elif top_k == 1 and side == 1:
        top_k = 2
    if top_p > 0:
        top_p = min(1.0, max(_ROOM_P, top_p + side * _ROOM_P))
    return filter_logits(logits, top_k, top_p)


def _store_pruned(
    case: Case, transformer: VarTransformer, vae: VarVae, run: VarRun, tensors: dict[str, torch.Tensor]
) -> None:
    """Adds a pruned run to `tensors`: the oracle's logits under `fixed_masks`."""
    config = transformer.config
    keep, indices = fixed_masks(config.schedule), [drawn[0] for drawn in run.indices]
    labels = torch.tensor([case.label, config.classes] if _guided(case.guidance, transformer) else [case.label])
    logits = pruned_var_logits(transformer, vae, labels, indices, keep)
    for k, kept in enumerate(keep):
        tensors[f"{case.name}.indices_{k}"], tensors[f"{case.name}.logits_{k}"] = indices[k], logits[k]
        if kept is not None:
            tensors[f"{case.name}.keep_{k}"] = kept


@torch.no_grad()
def forced_var_logits(
    transformer: VarTransformer, vae: VarVae, cases: ReferenceCases, case: Case
) -> list[torch.Tensor]:
    """Logits of all scales of a recorded case, teacher-forced with its indices, in one call."""
    config = transformer.config
    labels = torch.tensor([case.label, config.classes] if _guided(case.guidance, transformer) else [case.label])
    count = len(config.grids)
    return pruned_var_logits(transformer, vae, labels, cases.tokens(case, count), cases.keep(case, count))
