"""Conversion of a fetched model into a folder from which `build --local-dir` takes it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldp_runtime.errors import ConfigError
from ldp_runtime.system.disk import require_room, write_durably
from ldp_runtime.system.small_files import read_json

from ldp_export.checkpoints.convert import PRECISIONS, Conversion, check_precision, convert, plan_conversion
from ldp_export.checkpoints.released import released_bytes
from ldp_export.checkpoints.sources import Sources
from ldp_export.hub.local import CONVERTED
from ldp_export.models.hub_files import TEXT_ENCODERS
from ldp_export.models.registry import NamedModel
from ldp_export.progress import Progress, ProgressEvent, silent

#: File that records the precision and the source revisions of a folder's converted parts.
RECORD = "converted.json"


def check_converted(folder: Path, precision: str, revisions: Mapping[str, str]) -> None:
    """Checks that a conversion may begin or continue in the folder.

    Args:
        revisions: commit by repository, of the files to be converted.

    Raises:
        ConfigError: the folder is a file, or holds parts of another precision or revision, or parts without a record.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file", hint="name a folder")
    check_precision(precision)
    there = [target.name for target in _targets(folder).values() if target.exists()]
    if not there:
        return
    record = _record(folder)
    before = record["revisions"]
    problems = [] if record["precision"] == precision else [f"{record['precision']}, not {precision}"]
    problems += [
        f"{repository} at {before[repository][:12]}, not {commit[:12]}"
        for repository, commit in revisions.items()
        if before.get(repository, commit) != commit
    ]
    if problems:
        raise ConfigError(
            f"{folder} holds {', '.join(there)} of an earlier conversion: {'; '.join(problems)}",
            hint="delete it, or name another folder",
        )


def check_room(spec: NamedModel, folder: Path, precision: str, text_encoder: bool, to_fetch: int) -> None:
    """Checks that all converted parts fit on the folder's disk, before gigabytes are downloaded.

    Args:
        text_encoder: True if text encoders are converted too.
        to_fetch: bytes still to be downloaded to the same disk; 0 if they go to another disk.

    Raises:
        CapacityError: the disk is too small.
    """
    share = PRECISIONS[precision].itemsize / 4
    parts = {part: size * (1 if part == "vae" else share) for part, size in released_bytes(spec).items()}
    done = {part for part, target in _targets(folder).items() if target.exists()}
    left = parts.keys() - done - (set() if text_encoder else set(TEXT_ENCODERS))
    needed = sum(parts[part] for part in left)
    require_room(folder, int(needed) + to_fetch, f"converting {spec.name}", "free some space, or choose another disk")


def convert_model(
    sources: Sources,
    folder: Path,
    precision: str,
    progress: Progress = silent,
    revisions: Mapping[str, str] | None = None,
) -> Sources:
    """Converts every part that is not converted yet; the sources are then no longer needed.

    Raises:
        ConfigError: unknown precision; see also `check_converted`.
        CheckpointError, CapacityError: see `plan_conversion` and `convert`.
    """
    revisions = {} if revisions is None else dict(revisions)
    check_converted(folder, precision, revisions)
    targets = _targets(folder)
    # The transformer is last, because the folder counts as converted once its transformer exists.
    plans = [
        plan_conversion(path, targets[part], precision)
        for part, path in reversed(sources.items())
        if not targets[part].exists()
    ]
    if plans:
        folder.mkdir(parents=True, exist_ok=True)
        known = _record(folder)["revisions"] | revisions
        record = json.dumps({"precision": precision, "revisions": known}, indent=1) + "\n"
        write_durably(folder / RECORD, record.encode())
    for index, plan in enumerate(plans):
        run_conversion(plan, progress, index, len(plans))
    return replace(sources, **{part: targets[part] for part, _ in sources.items()})


def _targets(folder: Path) -> dict[str, Path]:
    return {part: folder / name for part, name in CONVERTED.items()}


def _record(folder: Path) -> dict[str, Any]:
    """Record of the folder's conversions; without a valid one, an unknown precision and no revisions."""
    try:
        record = read_json(folder / RECORD)
        revisions = {str(name): str(commit) for name, commit in record["revisions"].items()}
        return {"precision": str(record["precision"]), "revisions": revisions}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {"precision": "an unknown precision", "revisions": {}}


def run_conversion(plan: Conversion, progress: Progress, index: int = 0, count: int = 1) -> None:
    """Converts one checkpoint and reports its progress."""
    stage, started = f"convert {plan.target.name}", time.perf_counter()
    progress(ProgressEvent(stage, index, count, "started", f"{plan.bytes / 1e9:.2f} GB"))

    def say(name: str, done: int, total: int) -> None:
        progress(ProgressEvent(stage, index, count, "advanced", f"{done / 1e9:.2f} of {total / 1e9:.2f} GB, {name}"))

    convert(plan, say)
    progress(ProgressEvent(stage, index, count, "finished", seconds=time.perf_counter() - started))
