"""Stages of a build, cached by content: a stage whose inputs have not changed is not run again.

    OUTPUT/stages/NAME-KEY/   files of the stage, and stage.json: its inputs and the hashes of its files

A stage is written into a scratch folder and renamed when complete, so a killed build leaves no incomplete stage.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldp_runtime.bundle.files import describe_files, hash_file
from ldp_runtime.bundle.manifest import FileEntry
from ldp_runtime.system.disk import put_in_place, remove_files, scratch_path
from ldp_runtime.system.small_files import is_plain_file, read_json, stays_inside

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
            remove_stage(stage.spent)
        folders[stage.name] = place
    return folders


def _run(stage: Stage, place: Path, cache: Path, index: int, count: int, progress: Progress) -> None:
    started = time.perf_counter()
    progress(ProgressEvent(stage.name, index, count, "started", what_changed(stage, cache)))
    scratch = scratch_path(cache)
    scratch.mkdir()
    try:
        stage.run(scratch, lambda detail: progress(ProgressEvent(stage.name, index, count, "advanced", detail)))
        names = [p.relative_to(scratch).as_posix() for p in scratch.rglob("*") if p.is_file()]
        files = {name: entry.model_dump() for name, entry in describe_files(scratch, names).items()}
        record = {"name": stage.name, "inputs": dict(stage.inputs), "files": files}
        (scratch / STAGE_FILE).write_text(json.dumps(record, indent=1))
        put_in_place(scratch, place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    progress(ProgressEvent(stage.name, index, count, "finished", seconds=time.perf_counter() - started))


def is_complete(place: Path) -> bool:
    """True if the stage has run and its files still have the hashes that it noted."""
    try:
        noted = files_of(place)
        return all(is_plain_file(place / n) and hash_file(place / n) == entry.sha256 for n, entry in noted.items())
    except (OSError, ValueError, KeyError):
        return False


def files_of(place: Path) -> dict[str, FileEntry]:
    """Sizes and hashes of a stage's files, as noted when they were written.

    Raises:
        ValueError, KeyError, OSError: the note is missing or damaged.
    """
    noted = read_json(place / STAGE_FILE)
    if not isinstance(noted, dict) or not isinstance(noted["files"], dict):
        raise ValueError(f"{place / STAGE_FILE} notes no files")
    files = {name: FileEntry.model_validate(entry) for name, entry in noted["files"].items()}
    if odd := [name for name in files if not stays_inside(name)]:
        raise ValueError(f"{place / STAGE_FILE} names {odd[0]!r}")
    return files


def is_stage(place: Path) -> bool:
    """True for the folder of a stage that a build put there: its note says the name that the folder has."""
    try:
        name = read_json(place / STAGE_FILE)["name"]
        files_of(place)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    m = STAGE_NAME.fullmatch(place.name)
    return m is not None and m[1] == name and not place.is_symlink()


#: Name of a stage's folder: its name, and the first digits of the hash of its inputs.
STAGE_NAME = re.compile("([a-z][a-z0-9_.]*)-[0-9a-f]{16}")


def remove_stage(place: Path) -> None:
    """Deletes the files that a stage noted; anything else stays, and so does a folder that is no stage."""
    if is_stage(place):
        remove_files(place, [*files_of(place), STAGE_FILE])


def what_changed(stage: Stage, cache: Path) -> str:
    """Names of the inputs that differ from the newest earlier run of this stage, in words; "" if there is none."""
    earlier = sorted(cache.glob(f"{stage.name}-*/{STAGE_FILE}"), key=lambda p: p.stat().st_mtime)
    for record in reversed(earlier):
        try:
            known = dict(read_json(record)["inputs"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        changed = sorted(
            k for k in {*known, *stage.inputs} if known.get(k) != json.loads(json.dumps(stage.inputs.get(k)))
        )
        return f"changed: {', '.join(changed)}" if changed else "its files were damaged"
    return ""
