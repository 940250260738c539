"""Locations of a model's files: part of the package, given by path, or fetched from the hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ldp_runtime.bundle.files import describe_files
from ldp_runtime.bundle.manifest import FileEntry, SourcePart
from ldp_runtime.errors import CheckpointError

from ldp_export.models.registry import NamedModel

INDEX_NAME = "model.safetensors.index.json"
#: Folder of the weights that are part of the package; each model has a folder in it.
EMBEDDED = Path(__file__).parent / "embedded"


@dataclass(frozen=True)
class Sources:
    """Files or folders of a model's parts; without a text encoder, its bundle takes text features.

    Attributes:
        published: names of the parts that are files of the registry's model, not one's own.
    """

    transformer: Path
    vae: Path
    text_encoder: Path | None = None
    published: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises CheckpointError if a file or folder does not exist."""
        for part, path in self.items():
            if not path.exists():
                raise CheckpointError(
                    f"the {part.replace('_', ' ')} {path} does not exist",
                    hint="check the path; ldp-export fetch downloads the files of a registry model",
                )

    def items(self) -> list[tuple[str, Path]]:
        pairs = [("transformer", self.transformer), ("vae", self.vae), ("text_encoder", self.text_encoder)]
        return [(part, path) for part, path in pairs if path is not None]

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each part: of its file, or of all files of its folder in the order of their names."""
        return {part: hash_tree(path) for part, path in self.items()}

    def described(self, spec: NamedModel) -> dict[str, SourcePart]:
        """Origin of each part, for the manifest: its files, and where the model's publisher keeps them."""
        return {part: self._described(part, path, spec) for part, path in self.items()}

    def _described(self, part: str, path: Path, spec: NamedModel) -> SourcePart:
        digest, files = _contents(path)
        repository, revision, licence = _publication(part, spec) if part in self.published else ("", "", "")
        return SourcePart(sha256=digest, files=files, repository=repository, revision=revision, licence=licence)

    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for _, path in self.items() for file in _files(path))


def hash_tree(path: Path) -> str:
    """SHA-256 of a file, or of the names and hashes of all files of a folder."""
    return _contents(path)[0]


def _publication(part: str, spec: NamedModel) -> tuple[str, str, str]:
    """Repository, revision and licence of a part of a registry's model; a part of this package has a licence only."""
    hub = spec.hub
    if hub is None:
        return "", "", spec.licence
    if part == "text_encoder" and hub.text_encoder is not None:
        return hub.text_encoder, hub.text_encoder_revision, hub.text_encoder_licence
    return hub.repository, hub.revision, spec.licence


def _contents(path: Path) -> tuple[str, dict[str, FileEntry]]:
    """Hash of a part as `hash_tree` gives it, and size and hash of each of its files by name."""
    if path.is_file():
        (entry,) = describe_files(path.parent, [path.name]).values()
        return entry.sha256, {path.name: entry}
    files = {file.relative_to(path).as_posix(): file for file in _files(path)}
    entries = describe_files(path, files)
    lines = "".join(f"{name}:{entries[name].sha256}\n" for name in files)
    return hashlib.sha256(lines.encode()).hexdigest(), entries


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
