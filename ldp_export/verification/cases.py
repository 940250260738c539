"""Reference cases: runs of the reference model, recorded at build time, against which a bundle is verified.

A bundle ships them, so that `verify` needs neither the checkpoint nor the exporter. Every case is teacher-forced: the
tokens are given, so each scale's logits are compared on equal inputs. Scales range from scale 0, with an empty past and
a single token, to the largest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ldp_runtime.errors import IntegrityError, NonFiniteError
from ldp_runtime.schedule import ScaleSchedule
from ldp_runtime.system.small_files import read_json
from safetensors import SafetensorError

if TYPE_CHECKING:
    import torch

CASES_FILE, TENSORS_FILE, ROUNDING_FILE = "cases.json", "tensors.safetensors", "rounding.json"
SHAPES_FILE = "shapes.json"


@dataclass(frozen=True)
class Case:
    """One recorded run. Its tensors are named `{name}.{tensor}`; `k` stands for a scale.

    Tensors:
        features: [T, Ct], of a text; a class has its `label` instead.
        pooled: [P], of models that read one.
        negative, negative_pooled: of the unconditional text, of models that learned none.
        bits_k: [h*w, bits], tokens of Infinity.
        indices_k: [h*w], tokens of VAR and Switti.
        logits_k: [rows, computed, V]; one row once guidance has ended.
        latent: [d, H, W].
        image: [3, H, W], for cases that have one.
        keep_k: [kept], indices of the kept tokens at pruned scales.
        ids: [T], if a text was encoded.

    Attributes:
        name: name of the case.
        aspect_ratio: height / width of the image.
        guidance: guidance of the run.
        pruned: True if tokens are pruned with `fixed_masks`.
        prompt: text of the case, or None.
        label: class of the case, or None.
        seed: seed of the run, or None for a run on given tokens.
        margin: closest decision of the run (see `closest_decision`), or None. A run without a choice has the largest
            float.
        scales: number of first scales that were run, as a schedule of their own; None for all.
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
        """Part of a scale schedule that the case runs."""
        return replace(schedule, grids=schedule.grids[: self.scales])


#: Name of the recorded call of the `residual` graph; its tensors are `{name}.{tensor}`, inputs and output.
RESIDUAL = "residual"


@dataclass(frozen=True)
class Shape:
    """A call of the blocks alone, block by block; see `recording/shapes.py`. Its tensors are named `{name}.{tensor}`.

    Tensors:
        kinds, past_kinds: kind of each token [tokens], and of each token of the past [past].
        latents, positions: input of each kind [kinds, bits], and its index among the scale's tokens [kinds].
        hidden_i: hidden states before block i, from the second on [rows, kinds, C].
        logits: [rows, kinds, V].

    The keys and values of each kind of the past are `shapes.past_k_i`, `shapes.past_v_i` [rows, kinds, H, c].

    Attributes:
        name: name of the shape.
        scale: scale whose tokens are computed.
        tokens: number of tokens that are computed.
        past: number of tokens before them.
    """

    name: str
    scale: int
    tokens: int
    past: int


@dataclass(frozen=True)
class ReferenceCases:
    """Recorded runs.

    Attributes:
        cases: the runs.
        shapes: calls of the blocks at shapes that the runs do not reach.
        tensors: tensors of all runs by name; see `Case`.
        rounding: largest errors that rounding alone causes in the bundle's precision, by output: "logits_{k}" of each
            scale, "latent", "image", "features_{text}". Quantized scales add "late_logits_{k}". Older bundles have at
            most "logits", "image" and "features", over all scales and texts.
    """

    cases: tuple[Case, ...]
    tensors: dict[str, torch.Tensor]
    rounding: dict[str, float] = field(default_factory=dict)
    shapes: tuple[Shape, ...] = ()

    def save(self, folder: Path) -> None:
        """Writes the runs into a folder.

        Raises:
            NonFiniteError: the model's numbers leave the range of the bundle's precision, so nothing could be verified.
        """
        from safetensors.torch import save_file

        beyond = sorted(name for name, error in self.rounding.items() if not math.isfinite(error))
        if beyond:
            raise NonFiniteError(
                f"in this precision the reference model gives NaN or infinity in {', '.join(beyond[:5])}",
                hint="build with a precision of wider range: --precision float32",
            )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CASES_FILE).write_text(json.dumps([asdict(case) for case in self.cases], indent=1, allow_nan=False))
        (folder / ROUNDING_FILE).write_text(json.dumps(self.rounding, indent=1, allow_nan=False))
        if self.shapes:
            (folder / SHAPES_FILE).write_text(json.dumps([asdict(shape) for shape in self.shapes], indent=1))
        save_file({k: v.contiguous().clone() for k, v in self.tensors.items()}, folder / TENSORS_FILE)

    @staticmethod
    def load(folder: Path) -> ReferenceCases:
        """Reads what `save` wrote; raises IntegrityError if it cannot be read."""
        from safetensors.torch import load_file

        cases, shapes = read_runs(folder)
        with _damage_is_typed(folder):
            return ReferenceCases(cases, load_file(folder / TENSORS_FILE), read_json(folder / ROUNDING_FILE), shapes)

    @property
    def texts(self) -> list[str]:
        """Names of the encoded texts, whose tensors are `{name}.ids` and `{name}.features`."""
        return [name.removesuffix(".ids") for name in self.tensors if name.endswith(".ids")]

    def tokens(self, case: Case, scales: int) -> list[torch.Tensor]:
        """Drawn tokens of every scale: bits as bool, or indices into the codebook."""
        if f"{case.name}.indices_0" in self.tensors:
            return [self.tensors[f"{case.name}.indices_{k}"] for k in range(scales)]
        return [self.tensors[f"{case.name}.bits_{k}"].bool() for k in range(scales)]

    def keep(self, case: Case, scales: int) -> list[torch.Tensor | None]:
        """Indices of the kept tokens of every scale; None at scales that are not pruned."""
        return [self.tensors.get(f"{case.name}.keep_{k}") for k in range(scales)]


def read_runs(folder: Path) -> tuple[tuple[Case, ...], tuple[Shape, ...]]:
    """Recorded runs and shapes without their tensors; older bundles have no shapes.

    Raises:
        IntegrityError: they cannot be read.
    """
    shapes = folder / SHAPES_FILE
    with _damage_is_typed(folder):
        cases = tuple(Case(**entry) for entry in read_json(folder / CASES_FILE))
        return cases, tuple(Shape(**entry) for entry in read_json(shapes)) if shapes.is_file() else ()


@contextmanager
def _damage_is_typed(folder: Path) -> Generator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise IntegrityError(
            f"the recorded runs in {folder} cannot be read: {error}", hint="rebuild the bundle"
        ) from error


def fixed_masks(schedule: ScaleSchedule) -> Sequence[torch.Tensor | None]:
    """Keep masks of the detail scales, as indices from a fixed seed, for verification only; None at other scales."""
    import torch

    generator = torch.Generator().manual_seed(1)
    keep: list[torch.Tensor | None] = [None] * len(schedule)
    for k in schedule.detail_scales():
        share = 0.4 if k + 1 < len(schedule) else 0.2
        count = max(1, round(share * schedule.tokens[k]))
        keep[k] = torch.randperm(schedule.tokens[k], generator=generator)[:count].sort().values
    return keep
