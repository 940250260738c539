"""Bundle: a folder of engines and everything that they depend on, described by a manifest.

    OUTPUT/
      CURRENT                     name of the version that serves; replaced atomically
      versions/DIGEST/            hashed content, never changed
        manifest.json  constants.safetensors  tokenizer.json  reference/
        text_encoder/  prompt/  blocks/  last_blocks/  decoder/             one folder per graph or chunk of one
      reports/DIGEST.json         what `verify` found, on which machine

The manifest is read and checked before any engine is opened. Its digest covers every file's hash, so edits by hand
are noticed.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from ldp_runtime.bundle.manifest import SCHEMA_VERSION, FileEntry, Manifest, content_digest
from ldp_runtime.bundle.older_manifest import OLDER_SCHEMAS, from_schema_3
from ldp_runtime.bundle.parsing import complaint
from ldp_runtime.errors import ConfigError, IncompatibleBundleError, IntegrityError

MANIFEST, CURRENT, VERSIONS, REPORTS = "manifest.json", "CURRENT", "versions", "reports"


CONSTANTS, TOKENIZER, REFERENCE = "constants.safetensors", "tokenizer.json", "reference"


#: Most entries of a folder that are looked at for a bundle, to advise.
_LOOKED_AT = 1000


State = Literal["verified", "unverified", "rejected"]


#: Comparison of files with the manifest: by hash ("full"), or by size only (large models, trusted disks).
Integrity = Literal["full", "sizes"]


@dataclass(frozen=True)
class Bundle:
    """A manifest whose files were checked, and the folder that holds them.

    Attributes:
        folder: folder of this version.
        root: output path of the build that the version belongs to; None for a version's folder on its own.
        state: result of the last verification; see `read_state`.
    """

    manifest: Manifest
    folder: Path
    root: Path | None
    state: State

    def path(self, name: str) -> Path:
        return self.folder / name


def open_bundle(path: Path | str, integrity: Integrity = "full") -> Bundle:
    """Reads and checks a bundle; opens no engine.

    Args:
        path: output path of a build, or the folder of one version.
        integrity: see `Integrity`.

    Raises:
        ConfigError: there is no bundle at `path`, or no such `integrity`.
        IntegrityError: the manifest was edited, or a file is missing, truncated or changed.
        IncompatibleBundleError: the bundle was written by another version of the toolkit.
    """
    if integrity not in get_args(Integrity):
        raise ConfigError(
            f"integrity must be one of {', '.join(get_args(Integrity))}, got {integrity!r}",
            hint="full compares hashes, sizes only the lengths of files",
        )
    folder, root = _locate(Path(path))
    manifest = read_manifest(folder)
    if root is not None and folder.name != manifest.version:
        raise IntegrityError(
            f"{folder} holds the version {manifest.version}", hint="restore the folder's name, or rebuild the bundle"
        )
    check_files(folder, manifest.files, integrity)
    return Bundle(manifest, folder, root, read_state(root, manifest))


def _locate(path: Path) -> tuple[Path, Path | None]:
    if (path / MANIFEST).is_file():
        is_version = path.parent.name == VERSIONS and (path.parent.parent / CURRENT).exists()
        return path, path.parent.parent if is_version else None
    pointer = path / CURRENT
    if not pointer.is_file():
        raise ConfigError(f"there is no bundle at {shlex.quote(str(path))}", hint=_advice(path))
    name = pointer.read_text(errors="replace").strip()
    folder = path / VERSIONS / name
    if not name or not (folder / MANIFEST).is_file():
        raise IntegrityError(
            f"{pointer} names the version {name!r}, which is not under {path / VERSIONS}", hint="rebuild the bundle"
        )
    return folder, path


def is_bundle(path: Path) -> bool:
    """True if a path looks like a bundle, or like one version of it."""
    return (path / CURRENT).is_file() or (path / MANIFEST).is_file()


def _advice(path: Path) -> str:
    """Words for what to do where there is no bundle: it may be in this folder, or around it."""
    around = next((parent for parent in path.parents if (parent / CURRENT).is_file()), None)
    if around is not None:
        return f"name the bundle itself: {shlex.quote(str(around))}"
    inside = [child for child in islice(path.iterdir(), _LOOKED_AT) if is_bundle(child)] if path.is_dir() else []
    if inside:
        return f"name a bundle in it: {', '.join(shlex.quote(str(child)) for child in sorted(inside))}"
    return f"build one: ldp-export build --output {shlex.quote(str(path))}"


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a version's folder, with its digest checked.

    Raises:
        IntegrityError: the manifest cannot be read, or was edited.
        IncompatibleBundleError: it has another schema version.
    """
    path = folder / MANIFEST
    try:
        raw: Any = json.loads(path.read_text())
        written = raw.get("schema_version") if isinstance(raw, dict) else None
        if isinstance(written, int) and written not in (SCHEMA_VERSION, *OLDER_SCHEMAS):
            older, newest = (" and ".join(str(version) for version in OLDER_SCHEMAS), SCHEMA_VERSION)
            raise IncompatibleBundleError(
                f"{path} has schema version {written}; this runtime reads version {newest}, and {older}",
                hint="use the ldp-export that built it, or rebuild the bundle with this one",
            )
        manifest = Manifest.model_validate(from_schema_3(raw) if written in OLDER_SCHEMAS else raw)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"{path} is not a valid manifest: {complaint(error)}", hint="rebuild the bundle"
        ) from error
    content = {key: value for key, value in raw.items() if key != "digest"}
    computed = content_digest(content) if written in OLDER_SCHEMAS else manifest.computed_digest()
    if manifest.digest != computed:
        raise IntegrityError(
            f"{path} was changed after the build: its digest is {computed[:16]}, "
            f"it says {manifest.digest[:16] or 'nothing'}",
            hint="settings belong into the request; what the engines depend on takes a rebuild",
        )
    return manifest


def check_files(folder: Path, files: dict[str, FileEntry], integrity: Integrity) -> None:
    """Raises IntegrityError if files of a version are missing or differ from those in its manifest."""
    problems: list[str] = []
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != entry.size:
            problems.append(f"{name} has {path.stat().st_size} bytes instead of {entry.size}")
        elif integrity == "full" and hash_file(path) != entry.sha256:
            problems.append(f"{name} has another content (SHA-256) than was built")
    if problems:
        raise IntegrityError(
            f"the bundle {folder} is damaged:\n  " + "\n  ".join(problems),
            hint="copy it again from where it was built, or rebuild it",
        )


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, FileEntry]:
    """Size and hash of files, keyed by their path relative to `folder`."""
    return {
        name: FileEntry(size=(folder / name).stat().st_size, sha256=hash_file(folder / name)) for name in sorted(names)
    }


def report_path(root: Path, manifest: Manifest) -> Path:
    return root / REPORTS / f"{manifest.version}.json"


def read_state(root: Path | None, manifest: Manifest) -> State:
    """Result of the last verification of this version; "unverified" if there is none that can be read."""
    if root is None or not report_path(root, manifest).is_file():
        return "unverified"
    try:
        report = json.loads(report_path(root, manifest).read_text())
        known = report["digest"] == manifest.digest and report["state"] in ("verified", "rejected")
        return report["state"] if known else "unverified"
    except (ValueError, KeyError, TypeError, OSError):
        return "unverified"
