"""A fetched model, converted into a folder from which `build --local-dir` takes it."""

from __future__ import annotations

import time
from pathlib import Path

from ldp_runtime.errors import ConfigError

from ldp_export.hub.local import TEXT_ENCODER, TRANSFORMER, VAE
from ldp_export.models.convert import Conversion, convert, plan_conversion
from ldp_export.models.sources import Sources
from ldp_export.progress import Progress, ProgressEvent, silent


def convert_model(sources: Sources, folder: Path, precision: str, progress: Progress = silent) -> Sources:
    """Converts every part that is not converted yet; the folder then needs nothing of the sources.

    Raises:
        ConfigError: unknown precision. CheckpointError, CapacityError: see `plan_conversion`, `convert`.
    """
    targets = {"transformer": folder / TRANSFORMER, "vae": folder / VAE, "text_encoder": folder / TEXT_ENCODER}
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file", hint="name a folder")
    parts = dict(sources.items())
    plans = [
        plan_conversion(path, targets[part], precision) for part, path in parts.items() if not targets[part].exists()
    ]
    for index, plan in enumerate(plans):
        run_conversion(plan, progress, index, len(plans))
    return Sources(targets["transformer"], targets["vae"], targets["text_encoder"] if sources.text_encoder else None)


def run_conversion(plan: Conversion, progress: Progress, index: int = 0, count: int = 1) -> None:
    """Converts one checkpoint and reports how far it is."""
    stage, started = f"convert {plan.target.name}", time.perf_counter()
    progress(ProgressEvent(stage, index, count, "started", f"{plan.bytes / 1e9:.2f} GB"))

    def say(name: str, done: int, total: int) -> None:
        progress(ProgressEvent(stage, index, count, "advanced", f"{done / 1e9:.2f} of {total / 1e9:.2f} GB, {name}"))

    convert(plan, say)
    progress(ProgressEvent(stage, index, count, "finished", seconds=time.perf_counter() - started))
