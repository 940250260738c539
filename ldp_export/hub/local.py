"""Files of a model on this machine: in the hub's cache, or in a folder that was fetched with --local-dir."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from ldp_runtime.system.small_files import read_json

from ldp_export.checkpoints.files.parts import shards_of
from ldp_export.hub.client import cache_folder, hub_module
from ldp_export.hub.download import PARTIAL, repository_cache
from ldp_export.models.hub_files import INDEX_NAME, SINGLE_NAME, HubPart
from ldp_export.models.registry import NamedModel

#: Names of converted parts in a --local-dir.
CONVERTED = {
    "transformer": "transformer",
    "vae": "vae.safetensors",
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
}

Locate = Callable[[str], Path | None]


@dataclass(frozen=True)
class LocalFile:
    """A file of a part: its path in the repository, and its path on this machine (None: not here)."""

    part: HubPart
    name: str
    path: Path | None


@dataclass(frozen=True)
class LocalFiles:
    """Files of a model.

    Attributes:
        begun: True if the download of a file has begun.
    """

    files: tuple[LocalFile, ...]
    begun: bool = False

    @property
    def missing(self) -> list[str]:
        """Names of the files that are not here, with the repository's where it is not the model's."""
        lacking = [file for file in self.files if file.path is None]
        own = self.files[0].part.repository if self.files else ""
        return [f.name if f.part.repository == own else f"{f.part.repository}/{f.name}" for f in lacking]

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in {file.path for file in self.files} if path is not None)

    @property
    def state(self) -> Literal["complete", "partial", "absent"]:
        if not self.missing:
            return "complete"
        return "partial" if self.begun or len(self.missing) < len(self.files) else "absent"

    def place(self, part: HubPart) -> Path:
        """Path of a part that is here: of its file, or of its folder."""
        file = next(file for file in self.files if file.part == part and file.path is not None)
        assert file.path is not None
        return part_place(part, file.path, file.name)


def local_files(spec: NamedModel, local_dir: Path | None = None, text_encoder: bool = True) -> LocalFiles:
    """Finds a model's files on the disk; needs no network, and reads only the indexes of shards."""
    if spec.hub is None:
        return LocalFiles(())
    hub = spec.hub if text_encoder else spec.hub.without_text()
    files, folders = [], set[Path]()
    for part in hub.parts:
        locate = _in_folder(local_dir / part.folder) if local_dir else _in_cache(part.repository, part.revision)
        files += [LocalFile(part, name, locate(name)) for name in part_files(part, locate)]
        folders.add(local_dir or repository_cache(part.repository))
    return LocalFiles(tuple(files), any(map(_has_partial, folders)))


def part_files(part: HubPart, locate: Locate) -> list[str]:
    """Names of a part's files: the file itself, or a folder's index and the shards that it names."""
    if part.is_file:
        return [part.path, *part.beside]
    index = locate(part.within(INDEX_NAME))
    if index is None and not part.path:
        return [*part.beside, SINGLE_NAME]
    shards = shard_names(index) if index else []
    return [*part.beside, part.within(INDEX_NAME), *map(part.within, shards)]


def part_place(part: HubPart, path: Path, name: str) -> Path:
    """Path of a part on this machine, from that of the file `name` of its repository."""
    return path.parents[len(PurePosixPath(name).parts) - 1] / part.path


def shard_names(index: Path) -> list[str]:
    """Names of the shards in an index file; empty if it cannot be read."""
    try:
        return shards_of(read_json(index))
    except (OSError, ValueError):
        return []


def _in_folder(folder: Path) -> Locate:
    return lambda name: folder / name if (folder / name).is_file() else None


def _in_cache(repository: str, revision: str) -> Locate:
    hub = hub_module()

    def locate(name: str) -> Path | None:
        path = hub.try_to_load_from_cache(repository, name, cache_dir=cache_folder(), revision=revision)
        return Path(path) if isinstance(path, str) else None

    return locate


def _has_partial(folder: Path) -> bool:
    return folder.is_dir() and next(folder.rglob(f"*{PARTIAL}"), None) is not None
