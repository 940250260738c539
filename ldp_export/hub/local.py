"""Files of a model on this machine: in the hub's cache, or in a folder that was fetched with --local-dir."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ldp_runtime.system.small_files import read_json

from ldp_export.checkpoints.files.parts import INDEX_NAME, shards_of
from ldp_export.hub.client import cache_folder, hub_module
from ldp_export.hub.download import PARTIAL, repository_cache
from ldp_export.models.registry import HubFiles, NamedModel

#: Names in a --local-dir: of the text encoder's folder, and of the transformer and the VAE once they are converted.
TEXT_ENCODER = "text_encoder"
TRANSFORMER, VAE = "transformer", "vae.safetensors"
_SINGLE = "model.safetensors"

Locate = Callable[[str], Path | None]


@dataclass(frozen=True)
class LocalFiles:
    """Files of a model: their path in the repository, and their path on this machine (None: not here).

    Attributes:
        begun: True if the download of a file has begun.
    """

    files: tuple[tuple[str, Path | None], ...]
    begun: bool = False

    @property
    def missing(self) -> list[str]:
        return [name for name, path in self.files if path is None]

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for _, path in self.files if path is not None)

    @property
    def state(self) -> Literal["complete", "partial", "absent"]:
        if not self.missing:
            return "complete"
        return "partial" if self.begun or len(self.missing) < len(self.files) else "absent"


def local_files(spec: NamedModel, local_dir: Path | None = None, text_encoder: bool = True) -> LocalFiles:
    """Finds a model's files on the disk; needs no network, and reads only the indexes of shards."""
    hub = spec.hub
    if hub is None:
        return LocalFiles(())
    locate = _in_folder(local_dir) if local_dir else _in_cache(hub.repository, hub.revision)
    files = part_files(hub.transformer, locate) + part_files(hub.vae, locate)
    begun = _has_partial(local_dir or repository_cache(hub.repository))
    if text_encoder and hub.text_encoder is not None:
        folder = None if local_dir is None else local_dir / TEXT_ENCODER
        locate = _in_folder(folder) if folder else _in_cache(hub.text_encoder, hub.text_encoder_revision)
        files += text_encoder_files(locate)
    return LocalFiles(tuple(files), begun)


def part_files(name: str, locate: Locate) -> list[tuple[str, Path | None]]:
    """Files of a part: the file itself, or a folder's index and the shards that it names."""
    if is_file(name):
        return [(name, locate(name))]
    index = f"{name}/{INDEX_NAME}"
    place = locate(index)
    shards = shard_names(place) if place else []
    return [(index, place), *((f"{name}/{shard}", locate(f"{name}/{shard}")) for shard in shards)]


def text_encoder_files(locate: Locate) -> list[tuple[str, Path | None]]:
    files = [(name, locate(name)) for name in ("config.json", "tokenizer.json")]
    index, single = locate(INDEX_NAME), locate(_SINGLE)
    if index is not None and single is None:
        return files + [(INDEX_NAME, index), *((shard, locate(shard)) for shard in shard_names(index))]
    return files + [(_SINGLE, single)]


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


def is_file(name: str) -> bool:
    """True if a transformer's name has an ending, as files have; else it names a folder of shards."""
    return bool(Path(name).suffix)


def is_file_of(hub: HubFiles, path: str) -> bool:
    """True if a path of the repository belongs to the transformer or the VAE."""
    return path in (hub.transformer, hub.vae) or (
        path.startswith(f"{hub.transformer}/") and path.endswith((".safetensors", ".index.json"))
    )


def is_file_of_text_encoder(path: str) -> bool:
    return "/" not in path and (
        path in ("config.json", "tokenizer.json") or path.endswith((".safetensors", ".safetensors.index.json"))
    )
