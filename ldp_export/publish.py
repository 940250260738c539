"""Publishing a bundle: a version appears whole or not at all, and one atomic replacement makes it current."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path

from ldp_runtime.bundle import (
    CURRENT,
    MANIFEST,
    REPORTS,
    VERSIONS,
    Manifest,
    check_files,
    read_manifest,
    report_path,
)
from ldp_runtime.errors import LdpError

from ldp_export.scratch import SCRATCH


def assemble_version(root: Path, manifest: Manifest, files: dict[str, Path]) -> Path:
    """Puts a version's files (bundle name -> where they lie) under `root/versions`; returns its folder.

    Files are linked where the file system can, so stages and versions share their disk space.
    """
    place = root / VERSIONS / manifest.version
    if _is_whole(place, manifest):
        return place  # content-addressed: the same files are already there
    scratch, damaged = (root / VERSIONS / f"{SCRATCH}{uuid.uuid4().hex}" for _ in range(2))
    try:
        for name, source in files.items():
            target = scratch / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(source, target)
        write_durably(scratch / MANIFEST, manifest.model_dump_json(indent=1).encode())
        if place.exists():
            place.rename(damaged)
        scratch.rename(place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(damaged, ignore_errors=True)
    return place


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    """Whether the version lies in `folder` with all its files as they were built."""
    try:
        check_files(folder, read_manifest(folder).files, "full")
    except LdpError:
        return False
    return read_manifest(folder).digest == manifest.digest


def _link(source: Path, target: Path) -> None:
    source.chmod(0o644)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def make_current(root: Path, manifest: Manifest) -> None:
    """Points CURRENT at a version, atomically; the version it named before is kept, older ones are removed."""
    pointer = root / CURRENT
    before = pointer.read_text().strip() if pointer.is_file() else ""
    write_durably(pointer, f"{manifest.version}\n".encode())
    for folder in (root / VERSIONS).iterdir():
        if folder.is_dir() and folder.name not in (manifest.version, before):
            shutil.rmtree(folder, ignore_errors=True)
            (root / REPORTS / f"{folder.name}.json").unlink(missing_ok=True)


def write_report(root: Path, manifest: Manifest, report: dict) -> Path:
    """Saves what verification found beside the version it speaks of."""
    path = report_path(root, manifest)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, json.dumps(report, indent=1).encode())
    return path


def write_durably(path: Path, content: bytes) -> None:
    """Replaces a file atomically: readers see the old content or the new one, also after a crash."""
    scratch = path.with_name(f"{SCRATCH}{uuid.uuid4().hex}")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
