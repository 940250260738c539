"""Locations of a model's files: part of the package, given by path, or fetched from the hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ldp_runtime.bundle.files import hash_file
from ldp_runtime.errors import CheckpointError

#: Folder of the weights that are part of the package; each model has a folder in it.
EMBEDDED = Path(__file__).parent / "embedded"


@dataclass(frozen=True)
class Sources:
    """Files or folders of a model's parts; without a text encoder, its bundle takes text features."""

    transformer: Path
    vae: Path
    text_encoder: Path | None = None

    def check(self) -> None:
        """Raises CheckpointError if a file or folder does not exist."""
        for part, path in self.items():
            if not path.exists():
                raise CheckpointError(f"the {part.replace('_', ' ')} {path} does not exist")

    def items(self) -> list[tuple[str, Path]]:
        pairs = [("transformer", self.transformer), ("vae", self.vae), ("text_encoder", self.text_encoder)]
        return [(part, path) for part, path in pairs if path is not None]

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each part: of its file, or of all files of its folder in the order of their names."""
        return {part: hash_tree(path) for part, path in self.items()}

    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for _, path in self.items() for file in _files(path))


def hash_tree(path: Path) -> str:
    if path.is_file():
        return hash_file(path)
    digest = hashlib.sha256()
    for file in _files(path):
        digest.update(f"{file.relative_to(path)}:{hash_file(file)}\n".encode())
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
