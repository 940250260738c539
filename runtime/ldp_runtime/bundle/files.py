"""Bundle: a folder of engines and everything that they depend on, described by a manifest.

    OUTPUT/
      CURRENT                     name of the version that serves; replaced atomically
      PREVIOUS                    name of the version that served before it
      versions/DIGEST/            hashed content, never changed
        manifest.json  constants.safetensors  tokenizer.json  reference/
        text_encoder/  prompt/  blocks/  last_blocks/  decoder/             one folder per graph or chunk of one
      reports/DIGEST.json         what `verify` found, on which machine

The manifest is read and checked before any engine is opened. Its digest covers every file's hash, so edits by hand
are noticed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from ldp_runtime.bundle.manifest import SCHEMA_VERSION, FileEntry, Manifest, content_digest
from ldp_runtime.bundle.older_manifest import OLDER_SCHEMAS, from_schema_3
from ldp_runtime.bundle.parsing import complaint
from ldp_runtime.errors import ConfigError, IncompatibleBundleError, IntegrityError
from ldp_runtime.system.small_files import is_plain_file, read_json, read_small, stays_inside

MANIFEST, CURRENT, PREVIOUS, VERSIONS, REPORTS = "manifest.json", "CURRENT", "PREVIOUS", "versions", "reports"
#: Folder of the policies that calibration saved, by version.
SAVED = "profiles"
#: Name of a version's folder: the first digits of its digest.
VERSION_NAME = re.compile("[0-9a-f]{16}")


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


def open_bundle(path: Path | str, integrity: Integrity = "full", expected_digest: str | None = None) -> Bundle:
    """Reads and checks a bundle; opens no engine.

    Args:
        path: output path of a build, or the folder of one version, or a link to either.
        integrity: see `Integrity`.
        expected_digest: digest of the only bundle to accept, or its first 16 digits or more; None accepts any.

    Raises:
        ConfigError: there is no bundle at `path`, or no such `integrity`, or `expected_digest` is no digest.
        IntegrityError: the manifest was edited or contradicts itself; a file is missing, truncated or changed; or the
            bundle has another digest than expected.
        IncompatibleBundleError: the bundle was written by another version of the toolkit.
    """
    if integrity not in get_args(Integrity):
        raise ConfigError(
            f"integrity must be one of {', '.join(get_args(Integrity))}, got {integrity!r}",
            hint="full compares hashes, sizes only the lengths of files",
        )
    _check_form(expected_digest)
    folder, root = _locate(_given(path))
    manifest = read_manifest(folder)
    if root is not None and folder.name != manifest.version:
        raise IntegrityError(
            f"{folder} holds the version {manifest.version}", hint="restore the folder's name, or rebuild the bundle"
        )
    require_digest(manifest, folder, expected_digest)
    check_manifest(manifest, folder)
    check_files(folder, manifest.files, integrity)
    return Bundle(manifest, folder, root, read_state(root, manifest))


def _given(path: object) -> Path:
    """Path that a caller named.

    Raises:
        ConfigError: it is none.
    """
    try:
        given = Path(path)  # pyright: ignore[reportArgumentType]
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            given.lstat()  # tells of a zero byte, and of a name too long
        return given
    except (TypeError, ValueError, OSError) as error:
        raise ConfigError(
            f"a bundle is named by its path, got {path!r:.200}: {error}", hint="the --output of a build"
        ) from error


def _check_form(expected: str | None) -> None:
    if expected is not None and not re.fullmatch("[0-9a-fA-F]{16,64}", str(expected)):
        raise ConfigError(
            f"{expected!r} is no digest: 64 hexadecimal digits, or the first 16 or more of them",
            hint="`ldp-export inspect` prints a bundle's digest",
        )


def require_digest(manifest: Manifest, folder: Path, expected: str | None) -> None:
    """Raises IntegrityError unless a manifest has the expected digest; None accepts any."""
    _check_form(expected)
    if expected is not None and not manifest.digest.startswith(expected.lower()):
        raise IntegrityError(
            f"the bundle {folder} has the digest {manifest.digest}, expected {expected.lower()}",
            hint="use the bundle that was meant, or expect this one's digest if you trust where it came from",
        )


def _locate(path: Path) -> tuple[Path, Path | None]:
    """Folder of the version at a path, with its links resolved, and the output path of the build that it belongs to."""
    path = path.absolute()
    if is_plain_file(path / MANIFEST):
        return _version_folder(path)
    pointer = path / CURRENT
    if not os.path.lexists(pointer):
        raise ConfigError(f"there is no bundle at {shlex.quote(str(path))}", hint=_advice(path))
    try:
        name = read_small(pointer, 4096).decode(errors="replace").strip()
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{pointer} cannot be read: {error}", hint="rebuild the bundle") from error
    folder = path / VERSIONS / name
    if not VERSION_NAME.fullmatch(name) or not is_plain_file(folder / MANIFEST):
        raise IntegrityError(
            f"{pointer} names the version {name[:80]!r}, which is not under {path / VERSIONS}",
            hint="rebuild the bundle",
        )
    return folder, path


def _version_folder(path: Path) -> tuple[Path, Path | None]:
    """Folder of a version that was named itself, directly or by a link, and its root; None if it lies alone."""
    resolved = path.resolve()
    for folder in (path, resolved):  # a version may be a link itself, as to another disk
        if folder.parent.name == VERSIONS and VERSION_NAME.fullmatch(folder.name):
            return folder, folder.parent.parent
    return resolved, resolved.parent.parent if resolved.parent.name == VERSIONS else None


def check_manifest(manifest: Manifest, folder: Path) -> None:
    """Checks that a manifest names only files inside its folder, and every graph that a model needs.

    Raises:
        IntegrityError: it does not. Its digest shows damage only: whoever writes a manifest can seal it.
    """
    names = [*manifest.files, *(graph.file for graph in manifest.graphs.values())]
    problems = [f"the name {name[:80]!r} leaves the folder" for name in names if not stays_inside(name)]
    needed = {"constants.safetensors": CONSTANTS} | {name: graph.file for name, graph in manifest.graphs.items()}
    if manifest.has_text_encoder:
        needed[TOKENIZER] = TOKENIZER
    problems += [
        f"{what} needs {file!r}, which is not listed" for what, file in needed.items() if file not in manifest.files
    ]
    kinds = ["prompt", "blocks", "decoder"]
    kinds += ["text_encoder"] if manifest.has_text_encoder else []
    kinds += ["residual"] if manifest.model.adds_residual else []
    problems += [f"there is no graph of the kind {kind}" for kind in kinds if not manifest.chunks(kind)]
    sets = [("prompt", ""), ("blocks", ""), *(("blocks", entry.name) for entry in manifest.quantized)]
    problems += [
        f"{scales or 'all'} scales: {kind} does not cover the {manifest.model.depth} blocks"
        for kind, scales in sets
        if not _covers(manifest, kind, scales)
    ]
    problems += _unlisted(manifest, folder)
    if problems:
        raise IntegrityError(
            f"the manifest of {folder} contradicts itself:\n  " + "\n  ".join(problems[:10]),
            hint="rebuild the bundle, or copy it again from where it was built",
        )


def _covers(manifest: Manifest, kind: str, scales: str) -> bool:
    """True if the chunks of a kind follow each other from the first to the last block."""
    reached = 0
    for graph in manifest.chunks(kind, scales):
        if graph.first != reached or graph.last <= graph.first:
            return False
        reached = graph.last
    return reached == manifest.model.depth


def _unlisted(manifest: Manifest, folder: Path) -> list[str]:
    """Files beside a graph that no hash covers: an engine might read them. Hidden files, as systems leave, are none."""
    places = {str(Path(graph.file).parent) for graph in manifest.graphs.values() if stays_inside(graph.file)} - {"."}
    return [
        f"{place}/{path.name} lies beside an engine and is not listed"
        for place in sorted(places)
        if (folder / place).is_dir()
        for path in sorted((folder / place).iterdir())
        if not path.name.startswith(".") and f"{place}/{path.name}" not in manifest.files and is_plain_file(path)
    ]


def is_bundle(path: Path) -> bool:
    """True if a path looks like a bundle, or like one version of it."""
    return is_plain_file(path / CURRENT) or is_plain_file(path / MANIFEST)


def _advice(path: Path) -> str:
    """Words for what to do where there is no bundle: it may be in this folder, or around it."""
    around = next((parent for parent in path.parents if is_plain_file(parent / CURRENT)), None)
    if around is not None:
        return f"name the bundle itself: {shlex.quote(str(around))}"
    inside: list[Path] = []
    with suppress(OSError):  # no folder, or one that may not be read
        inside = [child for child in islice(path.iterdir(), _LOOKED_AT) if is_bundle(child)]
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
        raw: Any = read_json(path)
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
        if not is_plain_file(path):
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
    """Result of the last verification of this version; "unverified" if there was none.

    A report that cannot be read, or says nothing of this version, may have said "rejected", and so counts as that.
    """
    if root is None or not os.path.lexists(report_path(root, manifest)):
        return "unverified"
    try:
        report = read_json(report_path(root, manifest))
        known = report["digest"] == manifest.digest and report["state"] == "verified"
        return "verified" if known else "rejected"
    except (ValueError, KeyError, TypeError, OSError):
        return "rejected"
