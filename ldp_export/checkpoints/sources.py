"""Locations of a model's files: part of the package, given by path, or fetched from the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ldp_runtime.bundle.files import describe_files
from ldp_runtime.bundle.manifest import FileEntry, SourcePart
from ldp_runtime.errors import CheckpointError
from ldp_runtime.system.small_files import is_plain_file

from ldp_export.checkpoints.files.parts import (
    CONFIG_FILE,
    INSTRUCTION_FILE,
    TOKENIZER_CONFIG,
    TOKENIZER_FILE,
    check_file,
    files_read,
)
from ldp_export.models.hub_files import TEXT_ENCODERS
from ldp_export.models.registry import NamedModel

#: Folder of the weights that are part of the package; each model has a folder in it.
EMBEDDED = Path(__file__).parent / "embedded"


@dataclass(frozen=True)
class Sources:
    """Files or folders of a model's parts; without a text encoder, its bundle takes text features.

    Attributes:
        text_encoder, text_encoder_2: folders in the layout of `transformers`; the second is of families with two.
        published: names of the parts that are files of the registry's model, not one's own.
        here: False before the files are there: paths are then names for a plan, and nothing is read.
    """

    transformer: Path
    vae: Path
    text_encoder: Path | None = None
    text_encoder_2: Path | None = None
    published: tuple[str, ...] = ()
    here: bool = True

    @property
    def text_encoders(self) -> tuple[Path, ...]:
        """Folders of the text encoders, in their order."""
        return tuple(path for path in (self.text_encoder, self.text_encoder_2) if path is not None)

    @classmethod
    def of_parts(cls, places: Mapping[str, Path], here: bool = True) -> Sources:
        """Parts at these paths, by name; text encoders may be left out."""
        encoders = (places.get(name) for name in TEXT_ENCODERS)
        return cls(places["transformer"], places["vae"], here=here).with_text(tuple(encoders))

    def with_text(self, folders: Sequence[Path | None]) -> Sources:
        """The same transformer and VAE with these text encoders."""
        first, second = (*folders, None, None)[:2]
        return replace(self, text_encoder=first, text_encoder_2=second)

    def all_published(self) -> Sources:
        """The same parts, each a file of the registry's model."""
        return replace(self, published=tuple(part for part, _ in self.items()))

    def check(self) -> None:
        """Raises CheckpointError if a part does not exist, or is neither a file nor a folder."""
        for part, path in self.items():
            if not path.exists():
                raise CheckpointError(
                    f"the {part.replace('_', ' ')} {path} does not exist", hint="check the path, or fetch the file"
                )
            if not path.is_dir():
                check_file(path)

    def items(self) -> list[tuple[str, Path]]:
        names = ("transformer", "vae", *TEXT_ENCODERS)
        return [(name, path) for name in names if (path := getattr(self, name)) is not None]

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each part: of its file, or of those files of its folder that are read, in the order of names.

        Raises:
            CheckpointError: a folder holds no checkpoint.
        """
        return {part: hash_part(path) for part, path in self.items()}

    def described(self, spec: NamedModel) -> dict[str, SourcePart]:
        """Origin of each part, for the manifest: its files, and where the model's publisher keeps them."""
        return {part: self._described(part, path, spec) for part, path in self.items()}

    def _described(self, part: str, path: Path, spec: NamedModel) -> SourcePart:
        digest, files = _contents(path)
        repository, revision, licence = _publication(part, spec) if part in self.published else ("", "", "")
        return SourcePart(sha256=digest, files=files, repository=repository, revision=revision, licence=licence)

    def size(self) -> int:
        """Bytes of all files that are read; 0 before they are there."""
        if not self.here:
            return 0
        return sum(file.stat().st_size for _, path in self.items() for file in _files(path))


def hash_part(path: Path) -> str:
    """SHA-256 of one part; see `Sources.hashes`."""
    return _contents(path)[0]


def _publication(name: str, spec: NamedModel) -> tuple[str, str, str]:
    """Repository, revision and licence of a part of a registry's model; a part of this package has a licence only."""
    part = None if spec.hub is None else spec.hub.part(name)
    return ("", "", spec.licence) if part is None else (part.repository, part.revision, part.licence or spec.licence)


def _contents(path: Path) -> tuple[str, dict[str, FileEntry]]:
    """Hash of a part as `hash_part` gives it, and size and hash of each of its files that is read, by name."""
    folder = path if path.is_dir() else path.parent
    names = [file.relative_to(folder).as_posix() for file in _files(path)]
    entries = describe_files(folder, names)
    if names == [path.name] and not path.is_dir():
        return entries[path.name].sha256, entries
    lines = "".join(f"{name}:{entries[name].sha256}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest(), entries


def _files(path: Path) -> list[Path]:
    """Files of a part that are read: weights, and what a text encoder has beside them. Others do not change it."""
    names = [CONFIG_FILE, TOKENIZER_FILE] if path.is_dir() else []
    if names and is_plain_file(path / INSTRUCTION_FILE):
        names += [TOKENIZER_CONFIG, INSTRUCTION_FILE]
    beside = [path / name for name in names]
    return sorted([*files_read(path), *(file for file in beside if is_plain_file(file))])
