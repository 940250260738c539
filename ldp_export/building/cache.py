"""Stages of a build, cached by content: a stage whose inputs have not changed is not run again.

    OUTPUT/stages/NAME-KEY/   files of the stage, and stage.json: its inputs and the hashes of its files

A stage is written into a scratch folder and renamed when complete, so a killed build leaves no incomplete stage.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldp_runtime.bundle.files import describe_files, hash_file
from ldp_runtime.bundle.manifest import FileEntry
from ldp_runtime.disk import SCRATCH

from ldp_export.builders.base import STAGE_FILE
from ldp_export.progress import Progress, ProgressEvent

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One step of a build.

    Attributes:
        name: name of the stage, and of the folder of its files in the bundle.
        inputs: everything that the result depends on, as plain JSON; changing any value changes the key.
        run: writes the stage's files into a folder, and may report progress in words to a callback.
        spent: folder that is no longer needed once this stage is complete, and is deleted then.
    """

    name: str
    inputs: Mapping[str, Any]
    run: Callable[[Path, Callable[[str], None]], None]
    spent: Path | None = None

    @property
    def key(self) -> str:
        canonical = json.dumps(self.inputs, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(f"{self.name}:{canonical}".encode()).hexdigest()[:16]

    def place(self, cache: Path) -> Path:
        """Folder of the stage's files once it has run."""
        return cache / f"{self.name}-{self.key}"


def run_stages(stages: list[Stage], cache: Path, progress: Progress) -> dict[str, Path]:
    """Runs the stages that are not cached; returns the folder of each stage's files by its name."""
    cache.mkdir(parents=True, exist_ok=True)
    folders = {}
    for index, stage in enumerate(stages):
        place = stage.place(cache)
        if is_complete(place):
            progress(ProgressEvent(stage.name, index, len(stages), "reused"))
        else:
            _run(stage, place, cache, index, len(stages), progress)
        if stage.spent is not None:
            shutil.rmtree(stage.spent, ignore_errors=True)
        folders[stage.name] = place
    return folders


def _run(stage: Stage, place: Path, cache: Path, index: int, count: int, progress: Progress) -> None:
    started = time.perf_counter()
    progress(ProgressEvent(stage.name, index, count, "started", what_changed(stage, cache)))
    scratch = cache / f"{SCRATCH}{uuid.uuid4().hex}"
    scratch.mkdir()
    try:
        stage.run(scratch, lambda detail: progress(ProgressEvent(stage.name, index, count, "advanced", detail)))
        names = [str(p.relative_to(scratch)) for p in scratch.rglob("*") if p.is_file()]
        files = {name: entry.model_dump() for name, entry in describe_files(scratch, names).items()}
        record = {"name": stage.name, "inputs": dict(stage.inputs), "files": files}
        (scratch / STAGE_FILE).write_text(json.dumps(record, indent=1))
        shutil.rmtree(place, ignore_errors=True)
        scratch.rename(place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    progress(ProgressEvent(stage.name, index, count, "finished", seconds=time.perf_counter() - started))


def is_complete(place: Path) -> bool:
    """True if the stage has run and its files still have the hashes that it noted."""
    try:
        return all(hash_file(place / name) == entry.sha256 for name, entry in files_of(place).items())
    except (OSError, ValueError, KeyError):
        return False


def files_of(place: Path) -> dict[str, FileEntry]:
    """Sizes and hashes of a stage's files, as noted when they were written."""
    noted = json.loads((place / STAGE_FILE).read_text())["files"]
    return {name: FileEntry.model_validate(entry) for name, entry in noted.items()}


def what_changed(stage: Stage, cache: Path) -> str:
    """Names of the inputs that differ from the newest earlier run of this stage, in words; "" if there is none."""
    earlier = sorted(cache.glob(f"{stage.name}-*/{STAGE_FILE}"), key=lambda p: p.stat().st_mtime)
    for record in reversed(earlier):
        try:
            known = json.loads(record.read_text())["inputs"]
        except (OSError, ValueError, KeyError):
            continue
        changed = sorted(
            k for k in {*known, *stage.inputs} if known.get(k) != json.loads(json.dumps(stage.inputs.get(k)))
        )
        return f"changed: {', '.join(changed)}" if changed else "its files were damaged"
    return ""
