"""What a bundle is verified against: runs of the reference model, recorded at build time.

A bundle carries them, so that `verify` needs neither the checkpoint nor the exporter. Every case is teacher-forced:
the bits are given, so each scale's logits are compared on equal inputs, from the empty past of scale 0 and its single
token to the largest scale.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from ldp_runtime.schedule import ScaleSchedule
from safetensors.torch import load_file, save_file

CASES_FILE, TENSORS_FILE, ROUNDING_FILE = "cases.json", "tensors.safetensors", "rounding.json"


@dataclass(frozen=True)
class Case:
    """One recorded run; its tensors are named `{name}.{what}`.

    `scales`: only the first ones were run, as a schedule of their own (None: all).

    Tensors: `features` [T, Ct] of a text (a class has its `label`), `bits_{k}` [h*w, bits] or `indices_{k}` [h*w],
    `logits_{k}` [rows, computed, V], `latent` [d, H, W], `image` [3, H, W] where there is one, `keep_{k}` [kept] at
    pruned scales, `ids` [T] where a text was encoded.
    """

    name: str
    aspect_ratio: float
    guidance: float
    pruned: bool = False
    prompt: str | None = None
    label: int | None = None
    seed: int | None = None
    margin: float | None = None
    scales: int | None = None

    def of(self, schedule: ScaleSchedule) -> ScaleSchedule:
        """The part of a schedule that the case runs."""
        return replace(schedule, grids=schedule.grids[: self.scales])


@dataclass(frozen=True)
class ReferenceCases:
    """Recorded runs.

    Attributes:
        rounding: largest errors that the precision alone causes, by kind of output ("logits", "image", "features"):
            the reference model computed in the precision by PyTorch, against itself in float32; of float32 itself,
            "logits" computed in another order. Where late scales are in 8 bits, "late_logits_{k}" of each scale too.
    """

    cases: tuple[Case, ...]
    tensors: dict[str, torch.Tensor]
    rounding: dict[str, float] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CASES_FILE).write_text(json.dumps([asdict(case) for case in self.cases], indent=1))
        (folder / ROUNDING_FILE).write_text(json.dumps(self.rounding, indent=1))
        save_file({k: v.contiguous().clone() for k, v in self.tensors.items()}, folder / TENSORS_FILE)

    @staticmethod
    def load(folder: Path) -> ReferenceCases:
        cases = tuple(Case(**entry) for entry in json.loads((folder / CASES_FILE).read_text()))
        rounding = json.loads((folder / ROUNDING_FILE).read_text())
        return ReferenceCases(cases, load_file(folder / TENSORS_FILE), rounding)

    def tokens(self, case: Case, scales: int) -> list[torch.Tensor]:
        """Drawn tokens of every scale: bits as bool, or indices."""
        if case.label is not None:
            return [self.tensors[f"{case.name}.indices_{k}"] for k in range(scales)]
        return [self.tensors[f"{case.name}.bits_{k}"].bool() for k in range(scales)]

    def keep(self, case: Case, scales: int) -> list[torch.Tensor | None]:
        return [self.tensors.get(f"{case.name}.keep_{k}") for k in range(scales)]


def fixed_masks(schedule: ScaleSchedule) -> Sequence[torch.Tensor | None]:
    """Seeded keep masks of the detail scales, for verification only."""
    generator = torch.Generator().manual_seed(1)
    keep: list[torch.Tensor | None] = [None] * len(schedule)
    for k in schedule.detail_scales():
        share = 0.4 if k + 1 < len(schedule) else 0.2
        count = max(1, round(share * schedule.tokens[k]))
        keep[k] = torch.randperm(schedule.tokens[k], generator=generator)[:count].sort().values
    return keep
