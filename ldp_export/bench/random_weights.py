"""Models of true shapes without a checkpoint: random weights in an architecture of the registry, or a smaller one.

Such a model draws noise. Its times are real, but its images and a policy's choices on them mean nothing. Keep shares
and the scale after which the unconditional branch stops are therefore given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.engines.onnxruntime import check_provider
from ldp_runtime.errors import ConfigError
from ldp_runtime.pruning.parse import parse_policy
from ldp_runtime.schedule import ScaleSchedule

from ldp_export.builders.onnxruntime import OnnxRuntimeBuilder
from ldp_export.building.build import BuildOptions, BuildPlan, build, plan_build
from ldp_export.building.choose_builder import BackendOptions, choose_builder
from ldp_export.building.plan import check_options
from ldp_export.checkpoints.sources import Sources
from ldp_export.checkpoints.synthetic import write_checkpoint
from ldp_export.models.registry import InfinitySpec, VarSpec, find_model
from ldp_export.progress import Progress, silent

#: The VAE's group norms take multiples of this many channels.
_VAE_STEP = 32


Spec = TypeVar("Spec", bound=InfinitySpec | VarSpec)


def smaller(spec: Spec, depth: int | None, width: int | None) -> Spec:
    """Spec with fewer blocks or channels: the same head size, ratios and schedule; the VAE's width in proportion.

    Raises:
        ConfigError: the width is no multiple of the model's head size.
    """
    whole = spec.transformer
    depth, width = whole.depth if depth is None else depth, whole.width if width is None else width
    if (depth, width) == (whole.depth, whole.width):
        return spec
    if depth < 1 or width < whole.head_dim or width % whole.head_dim:
        raise ConfigError(f"--depth must be positive and --width a multiple of {whole.head_dim}, got {depth}, {width}")
    transformer: Any = whole.resized(depth, width)
    steps = round(spec.vae.base_channels * width / whole.width / _VAE_STEP)
    vae = replace(spec.vae, base_channels=_VAE_STEP * max(1, steps))
    return replace(spec, name=f"{spec.name}-depth{depth}-width{width}", transformer=transformer, vae=vae, hub=None)


def given_policies(keep: Sequence[float], stop_scale: int | None) -> tuple[str, ...]:
    """Policies in words: the shares with all scales, the same without the last two, and the controls."""
    stop = f",stop={stop_scale}" if stop_scale is not None else ""
    given = f"top-k:share={'+'.join(f'{share:g}' for share in keep)}+,score=random,fill=zero{stop}"
    controls = ("none:skip_last=1", "none:skip_last=2")
    if stop_scale is not None:
        controls += (f"none:stop={stop_scale}",)
    return (given, f"{given},skip_last=2", *controls)


def check_policies(texts: Sequence[str], schedule: ScaleSchedule) -> None:
    """Raises ConfigError for an invalid policy, or one that does not fit the schedule; saved policies are unknown."""
    for text in texts:
        policy = parse_policy(text)
        if policy is not None:
            policy.check(schedule)


def check_servable(model: str, batch: Sequence[int], device: str, classes: Sequence[int] | None) -> None:
    """Checks that bundles of the model's shape can serve such calls, before gigabytes are written for them.

    Raises:
        ConfigError: more images than the engines take rows, or classes for a model of texts.
        IncompatibleBundleError: ONNX Runtime has no provider for the device.
    """
    spec, most = find_model(model), OnnxRuntimeBuilder().max_rows
    check_provider(torch.device(device))
    if classes and spec.transformer.reads_text:
        raise ConfigError(f"{spec.name} draws texts, not classes", hint="leave --class out")
    if 2 * max(batch) > most:
        raise ConfigError(
            f"--batch {max(batch)} takes {2 * max(batch)} rows with guidance; these engines take {most}",
            hint=f"at most {most // 2} images a call",
        )


def random_bundles(
    model: str,
    folder: Path,
    *,
    size: str | None,
    depth: int | None,
    width: int | None,
    int8: bool = False,
    progress: Progress = silent,
) -> tuple[list[Bundle], Sources]:
    """Builds a bundle of random weights, and their checkpoint.

    Args:
        int8: build a second bundle of them, whose quantized last scales multiply 8-bit integers. (A decoder of random
            weights strays too far in 8 bits to be verified.)
    """
    spec, named = smaller(find_model(model), depth, width), {"float32": BackendOptions()}
    if int8:
        named["int8"] = BackendOptions(quantize="int8")
    options = [
        BuildOptions(folder / name, size, builder=choose_builder(backend, spec, size or spec.size, "float32"))
        for name, backend in named.items()
    ]
    for option in options:
        check_options(BuildPlan(spec, Sources(Path(), Path()), option))
    sources = write_checkpoint(spec, folder / "checkpoint")
    return [build(plan_build(spec, sources, option), progress)[0] for option in options], sources
