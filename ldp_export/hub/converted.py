"""A fetched model, converted into a folder from which `build --local-dir` takes it."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from ldp_runtime.errors import ConfigError

from ldp_export.hub.local import TEXT_ENCODER, TRANSFORMER, VAE
from ldp_export.models.convert import PRECISIONS, Conversion, check_precision, convert, plan_conversion
from ldp_export.models.sources import Sources
from ldp_export.models.state_files import read_state
from ldp_export.progress import Progress, ProgressEvent, silent


def convert_model(sources: Sources, folder: Path, precision: str, progress: Progress = silent) -> Sources:
    """Converts every part that is not converted yet; the folder then needs nothing of the sources.

    Raises:
        ConfigError: unknown precision, or see `check_converted`.
        CheckpointError, CapacityError: see `plan_conversion`, `convert`.
    """
    check_converted(folder, precision)
    targets = _targets(folder)
    # The transformer last: the folder counts as converted once it is there.
    plans = [
        plan_conversion(path, targets[part], precision)
        for part, path in reversed(sources.items())
        if not targets[part].exists()
    ]
    for index, plan in enumerate(plans):
        run_conversion(plan, progress, index, len(plans))
    return Sources(targets["transformer"], targets["vae"], targets["text_encoder"] if sources.text_encoder else None)


def _targets(folder: Path) -> dict[str, Path]:
    return {"transformer": folder / TRANSFORMER, "vae": folder / VAE, "text_encoder": folder / TEXT_ENCODER}


def check_converted(folder: Path, precision: str) -> None:
    """Raises ConfigError where the folder is a file, or holds a part that was converted to another precision before."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file", hint="name a folder")
    check_precision(precision)
    others = set(PRECISIONS.values()) - {torch.float32, PRECISIONS[precision]}
    for target in filter(Path.exists, _targets(folder).values()):
        found = others & {tensor.dtype for tensor in read_state(target).values()}
        if found:
            raise ConfigError(
                f"{target} holds {str(found.pop()).removeprefix('torch.')} from an earlier conversion, not {precision}",
                hint="delete it, or name another folder",
            )


def run_conversion(plan: Conversion, progress: Progress, index: int = 0, count: int = 1) -> None:
    """Converts one checkpoint and reports how far it is."""
    stage, started = f"convert {plan.target.name}", time.perf_counter()
    progress(ProgressEvent(stage, index, count, "started", f"{plan.bytes / 1e9:.2f} GB"))

    def say(name: str, done: int, total: int) -> None:
        progress(ProgressEvent(stage, index, count, "advanced", f"{done / 1e9:.2f} of {total / 1e9:.2f} GB, {name}"))

    convert(plan, say)
    progress(ProgressEvent(stage, index, count, "finished", seconds=time.perf_counter() - started))
