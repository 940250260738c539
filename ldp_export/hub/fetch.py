"""Planning and running of a model's fetch: the files to download, their origin, and the parts already here."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ldp_runtime.errors import CheckpointError, ConfigError, HubError
from ldp_runtime.system.disk import gigabytes, require_room
from ldp_runtime.system.small_files import is_plain_file, kind_of

from ldp_export.checkpoints.files.parts import INDEX_NAME
from ldp_export.checkpoints.released import released_bytes
from ldp_export.checkpoints.sources import Sources
from ldp_export.hub.client import HubFile, cache_folder, endpoint, list_repository
from ldp_export.hub.download import PARTIAL, blob_path, download, download_to_cache, require_below
from ldp_export.hub.local import (
    TEXT_ENCODER,
    TRANSFORMER,
    VAE,
    LocalFiles,
    is_file,
    is_file_of,
    is_file_of_text_encoder,
    local_files,
)
from ldp_export.models.registry import HubFiles, NamedModel
from ldp_export.progress import Progress, ProgressEvent, silent

#: Seconds between two reports of a download.
_REPORT_EVERY = 0.2
#: Share and bytes by which a published transformer's file, for its container, may differ from the size of its weights
#: in float32 (or 16 bits).
_SIZE_TOLERANCE = (0.02, 2**20)


@dataclass(frozen=True)
class WantedFile:
    """A file of the hub, its path on this machine, and the bytes of it that are already here.

    Attributes:
        place: path of its content once it is fetched.
        state: complete, partial (the download has begun), or absent.
        have: number of its bytes that are here.
    """

    file: HubFile
    place: Path
    state: Literal["complete", "partial", "absent"]
    have: int

    @property
    def to_fetch(self) -> int:
        return self.file.size - self.have


@dataclass(frozen=True)
class FetchPlan:
    """A checked fetch; planning it asks the hub for its lists of files and downloads nothing.

    Attributes:
        registry_only: reason for which the hub could not be asked, so that sizes are the registry's; else empty.
    """

    spec: NamedModel
    hub: HubFiles
    files: tuple[WantedFile, ...]
    local_dir: Path | None
    registry_only: str = ""

    @cached_property
    def bytes(self) -> int:
        return sum(wanted.file.size for wanted in self.files)

    @cached_property
    def bytes_to_fetch(self) -> int:
        return sum(wanted.to_fetch for wanted in self.files)

    @property
    def folder(self) -> Path:
        return self.local_dir or cache_folder()

    @property
    def revisions(self) -> dict[str, str]:
        """Commit of each repository."""
        return {wanted.file.repository: wanted.file.commit for wanted in self.files}

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.spec.name,
            "hub": endpoint(),
            "revisions": self.revisions,
            "folder": str(self.folder),
            "registry_only": self.registry_only or None,
            "bytes": self.bytes,
            "bytes_to_fetch": self.bytes_to_fetch,
            "files": [
                {
                    "repository": wanted.file.repository,
                    "path": wanted.file.path,
                    "bytes": wanted.file.size,
                    "hash": wanted.file.etag,
                    "state": wanted.state,
                    "bytes_here": wanted.have,
                    "place": str(wanted.place),
                }
                for wanted in self.files
            ],
        }


def plan_fetch(
    spec: NamedModel, revision: str | None = None, local_dir: Path | None = None, text_encoder: bool = True
) -> FetchPlan:
    """Asks the hub for its files and compares them with those on this machine.

    Args:
        revision: revision of the model's repository, instead of the registry's.
        local_dir: a separate folder instead of the hub's cache, to be carried to another machine.
        text_encoder: fetch the text encoder too, if the model has one.

    Raises:
        ConfigError: no hub holds the model.
        HubError: a file is missing on the hub; see also `list_repository`.
        CheckpointError: the hub's transformer has another size than the model of that name.
        CapacityError: the disk is too small.
    """
    hub = _published(spec)
    if revision is not None:
        hub = replace(hub, revision=revision)
    listed = list_repository(hub.repository, hub.revision)
    model = [file for file in listed if is_file_of(hub, file.path)]
    transformer = hub.transformer if is_file(hub.transformer) else f"{hub.transformer}/{INDEX_NAME}"
    _require(model, [transformer, hub.vae], hub.repository, hub.revision, listed)
    _check_size(spec, hub, model)
    encoder = _list_text_encoder(hub) if text_encoder else []
    folder = None if local_dir is None else local_dir / TEXT_ENCODER
    files = [_wanted(file, local_dir) for file in model] + [_wanted(file, folder) for file in encoder]
    plan = FetchPlan(spec, hub, tuple(files), local_dir)
    hint = "free some space, or choose another disk with --local-dir or HF_HUB_CACHE"
    require_room(plan.folder, plan.bytes_to_fetch, f"fetching {spec.name}", hint)
    return plan


def registry_plan(spec: NamedModel, reason: str, local_dir: Path | None = None, text_encoder: bool = True) -> FetchPlan:
    """Plan of a fetch from the registry alone, for showing: whole parts instead of files, and no hashes.

    Args:
        reason: words for why the hub was not asked.
    """
    hub, sizes = _published(spec), released_bytes(spec)
    parts = [(hub.repository, hub.revision, path, part) for path, part in _parts(hub)]
    if text_encoder and hub.text_encoder is not None:
        parts.append((hub.text_encoder, hub.text_encoder_revision, "encoder and tokenizer", "text_encoder"))
    here = not local_files(spec, local_dir, text_encoder).missing
    folder = local_dir or cache_folder()
    files = [
        WantedFile(
            HubFile(repository, revision, revision, path, sizes[part], "", None),
            folder,
            "complete" if here else "absent",
            sizes[part] if here else 0,
        )
        for repository, revision, path, part in parts
    ]
    return FetchPlan(spec, hub, tuple(files), local_dir, reason)


def _parts(hub: HubFiles) -> list[tuple[str, str]]:
    return [(hub.transformer, "transformer"), (hub.vae, "vae")]


def _list_text_encoder(hub: HubFiles) -> list[HubFile]:
    if hub.text_encoder is None:
        return []
    listed = list_repository(hub.text_encoder, hub.text_encoder_revision)
    files = [file for file in listed if is_file_of_text_encoder(file.path)]
    _require(files, ["config.json", "tokenizer.json"], hub.text_encoder, hub.text_encoder_revision, listed)
    return files


def _published(spec: NamedModel) -> HubFiles:
    if spec.hub is not None:
        return spec.hub
    held = "is part of this package" if spec.embedded else "was never released"
    raise ConfigError(
        f"{spec.name} {held}: there is nothing to fetch",
        hint="ldp-export build takes it without"
        if spec.embedded
        else "give your own files: build --weights FILE --vae FILE",
    )


def _require(
    files: Iterable[HubFile], names: Iterable[str], repository: str, revision: str, all_: list[HubFile]
) -> None:
    there = {file.path for file in files}
    absent = [name for name in names if name not in there]
    if absent:
        held = ", ".join(sorted(file.path for file in all_)[:12])
        raise HubError(
            f"{repository} at {revision} lacks {', '.join(absent)}; it holds {held or 'nothing'}",
            hint="try --revision main, or name the files you have with --weights and --vae",
        )


def _check_size(spec: NamedModel, hub: HubFiles, files: list[HubFile]) -> None:
    """Raises CheckpointError, before gigabytes are fetched, if the transformer has another size than its name says."""
    size = sum(file.size for file in files if file.path != hub.vae and not file.path.endswith(".json"))
    expected = released_bytes(spec)["transformer"]
    allowed = _SIZE_TOLERANCE[0] * expected + _SIZE_TOLERANCE[1]
    if any(abs(size - expected * share) < allowed for share in (1, 0.5)):
        return
    raise CheckpointError(
        f"{hub.transformer} of {hub.repository} has {gigabytes(size)}; the transformer of {spec.name} has "
        f"{gigabytes(expected)} in float32",
        hint="the revision or the mirror holds another model under this name: see --revision and HF_ENDPOINT",
    )


def _wanted(file: HubFile, folder: Path | None) -> WantedFile:
    place = blob_path(file) if folder is None else folder / file.path
    partial = place.with_name(place.name + PARTIAL)
    if place.is_file() and place.stat().st_size == file.size:
        return WantedFile(file, place, "complete", file.size)
    if is_plain_file(partial):
        return WantedFile(file, place, "partial", min(partial.stat().st_size, file.size))
    return WantedFile(file, place, "absent", 0)


def fetch(plan: FetchPlan, progress: Progress = silent) -> Sources:
    """Downloads the missing files, checks every file's hash, and returns the paths of the parts.

    Running it again after any failure continues where it stopped.

    Raises:
        HubError: the connection failed, or a link leads out of the folder.
        IntegrityError: a file has a wrong hash.
        CapacityError: the disk is full.
        ConfigError: a folder, a pipe or a device is in the way.
    """
    paths: dict[tuple[str, str], Path] = {}
    for index, wanted in enumerate(plan.files):
        meter = _Meter(wanted.file, index, len(plan.files), progress)
        paths[wanted.file.repository, wanted.file.path] = _fetch_one(wanted, plan.local_dir, meter)
    hub = plan.hub
    if plan.local_dir is not None:
        encoder = any(wanted.file.repository == hub.text_encoder for wanted in plan.files)
        return raw_sources(hub, plan.local_dir, encoder).all_published()
    vae = paths[hub.repository, hub.vae]
    root = _root(vae, hub.vae)
    encoder = next((path for (name, _), path in paths.items() if name == hub.text_encoder), None)
    return Sources(root / hub.transformer, vae, encoder.parent if encoder else None).all_published()


def fetched_sources(spec: NamedModel, local_dir: Path | None, text_encoder: Path | None) -> Sources:
    """Parts of a hub model, from the cache of this machine or from `local_dir`. Downloads nothing.

    Raises:
        CheckpointError: files are missing in the cache or the folder.
    """
    hub, own_encoder = _published(spec), text_encoder is None
    if local_dir is not None:
        sources = _from_folder(spec, hub, local_dir, own_encoder)
    else:
        sources = _from_cache(spec, hub, own_encoder)
    if own_encoder:
        return sources.all_published()
    return replace(replace(sources, text_encoder=None).all_published(), text_encoder=text_encoder)


def _from_folder(spec: NamedModel, hub: HubFiles, folder: Path, text_encoder: bool) -> Sources:
    converted = Sources(folder / TRANSFORMER, folder / VAE, folder / TEXT_ENCODER)
    if converted.transformer.exists():
        return (
            converted
            if converted.text_encoder and converted.text_encoder.exists()
            else replace(converted, text_encoder=None)
        )
    _require_local(spec, local_files(spec, folder, text_encoder), str(folder), f" --local-dir {folder}")
    return raw_sources(hub, folder, text_encoder and hub.text_encoder is not None)


def _from_cache(spec: NamedModel, hub: HubFiles, text_encoder: bool) -> Sources:
    here = local_files(spec, text_encoder=text_encoder)
    _require_local(spec, here, f"the cache {cache_folder()}")
    paths = {name: path for name, path in here.files if path is not None}
    vae = paths[hub.vae]
    encoder = paths.get("tokenizer.json")
    return Sources(_root(vae, hub.vae) / hub.transformer, vae, encoder.parent if encoder else None)


def _require_local(spec: NamedModel, here: LocalFiles, where: str, option: str = "") -> None:
    if here.missing:
        raise CheckpointError(
            f"{where} lacks {', '.join(here.missing[:5])} of {spec.name}",
            hint=f"fetch it where the hub can be reached: ldp-export fetch {spec.name}{option}",
        )


def raw_sources(hub: HubFiles, folder: Path, text_encoder: bool) -> Sources:
    """Parts in a folder that holds the repository's files under their own names."""
    return Sources(folder / hub.transformer, folder / hub.vae, folder / TEXT_ENCODER if text_encoder else None)


def _root(path: Path, name: str) -> Path:
    """Folder of the snapshot in which the file `name` is at `path`."""
    return path.parents[len(Path(name).parts) - 1]


def _fetch_one(wanted: WantedFile, local_dir: Path | None, meter: _Meter) -> Path:
    """Checks the hash of a file that is already here; downloads any other, which checks it too."""
    file, place = wanted.file, wanted.place
    require_below(place, cache_folder() if local_dir is None else local_dir)
    if place.exists() and not is_plain_file(place):
        raise ConfigError(f"{place} is {kind_of(place)}", hint="remove it, or name another folder")
    meter.begin(wanted.have)
    if place.is_file() and place.stat().st_size == file.size:  # here, or just fetched by another process
        meter.say("checking")
        file.require(place, hint=f"delete it and run the command again: rm '{place}'")
    path = download_to_cache(file, meter.advance) if local_dir is None else place
    if local_dir is not None:
        download(file, place, meter.advance)
    meter.finish()
    return path


class _Meter:
    """Reports one file's progress: bytes and rate, a few times a second."""

    def __init__(self, file: HubFile, index: int, count: int, progress: Progress) -> None:
        self._file, self._index, self._count, self._progress = file, index, count, progress
        self._started = self._reported = time.perf_counter()
        self._first = 0

    def begin(self, have: int) -> None:
        self._first = have
        self._report("started", f"resuming at {gigabytes(have)}" if 0 < have < self._file.size else "")

    def say(self, detail: str) -> None:
        self._report("advanced", f"{detail}, {gigabytes(self._file.size)}")

    def advance(self, have: int) -> None:
        now = time.perf_counter()
        if now - self._reported < _REPORT_EVERY:
            return
        self._reported = now
        rate = (have - self._first) / (now - self._started)
        self._report("advanced", f"{gigabytes(have)} of {gigabytes(self._file.size)}, {gigabytes(rate)}/s")

    def finish(self) -> None:
        self._report("finished", gigabytes(self._file.size), time.perf_counter() - self._started)

    def _report(self, state: Literal["started", "advanced", "finished"], detail: str, seconds: float = 0.0) -> None:
        self._progress(ProgressEvent(self._file.path, self._index, self._count, state, detail, seconds))
