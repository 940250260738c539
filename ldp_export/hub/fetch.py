"""Planning and running of a model's fetch: the files to download, their origin, and the parts already here."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ldp_runtime.errors import CheckpointError, ConfigError, HubError
from ldp_runtime.system.disk import gigabytes, require_room
from ldp_runtime.system.small_files import is_plain_file, kind_of

from ldp_export.checkpoints.released import released_bytes
from ldp_export.checkpoints.sources import Sources
from ldp_export.hub.client import HubFile, cache_folder, endpoint, list_repository
from ldp_export.hub.download import PARTIAL, blob_path, download, download_to_cache, require_below
from ldp_export.hub.local import CONVERTED, LocalFiles, local_files, part_place
from ldp_export.models.hub_files import HubFiles, HubPart
from ldp_export.models.registry import NamedModel
from ldp_export.progress import Progress, ProgressEvent, silent

#: Seconds between two reports of a download.
_REPORT_EVERY = 0.2
#: Share and bytes by which a published transformer's file, for its container, may differ from the size of its weights
#: in float32 (or 16 bits).
_SIZE_TOLERANCE = (0.02, 2**20)
#: Files of a repository in the layout of `transformers`, in words.
_WHOLE = "encoder and tokenizer"


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
        hub = hub.at(revision)
    hub = hub if text_encoder else hub.without_text()
    listed = {repository: list_repository(repository, at) for repository, at in hub.repositories.items()}
    files: dict[tuple[str, str], WantedFile] = {}
    for part in hub.parts:
        chosen = _files_of(part, listed[part.repository])
        if part == hub.main:
            _check_size(spec, part, chosen)
        folder = None if local_dir is None else local_dir / part.folder
        files |= {(part.repository, file.path): _wanted(file, folder) for file in chosen}
    plan = FetchPlan(spec, hub, tuple(files.values()), local_dir)
    hint = "free some space, or choose another disk with --local-dir or HF_HUB_CACHE"
    require_room(plan.folder, plan.bytes_to_fetch, f"fetching {spec.name}", hint)
    return plan


def registry_plan(spec: NamedModel, reason: str, local_dir: Path | None = None, text_encoder: bool = True) -> FetchPlan:
    """Plan of a fetch from the registry alone, for showing: whole parts instead of files, and no hashes.

    Args:
        reason: words for why the hub was not asked.
    """
    hub, sizes = _published(spec), released_bytes(spec)
    hub = hub if text_encoder else hub.without_text()
    here = not local_files(spec, local_dir, text_encoder).missing
    folder = local_dir or cache_folder()
    files = [
        WantedFile(
            HubFile(part.repository, part.revision, part.revision, part.path or _WHOLE, sizes[part.name], "", None),
            folder,
            "complete" if here else "absent",
            sizes[part.name] if here else 0,
        )
        for part in hub.parts
    ]
    return FetchPlan(spec, hub, tuple(files), local_dir, reason)


def _files_of(part: HubPart, listed: list[HubFile]) -> list[HubFile]:
    """Files of a part; raises HubError if its repository lacks one."""
    names = [file.path for file in listed]
    chosen = set(part.chosen(names))
    _require(chosen, part.required(names), part.repository, part.revision, listed)
    return [file for file in listed if file.path in chosen]


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


def _require(there: set[str], names: Iterable[str], repository: str, revision: str, all_: list[HubFile]) -> None:
    absent = [name for name in names if name not in there]
    if absent:
        held = ", ".join(sorted(file.path for file in all_)[:12])
        raise HubError(
            f"{repository} at {revision} lacks {', '.join(absent)}; it holds {held or 'nothing'}",
            hint="try --revision main, or name the files you have with --weights and --vae",
        )


def _check_size(spec: NamedModel, transformer: HubPart, files: list[HubFile]) -> None:
    """Raises CheckpointError, before gigabytes are fetched, if the transformer has another size than its name says."""
    size = sum(file.size for file in files if not file.path.endswith(".json"))
    expected = released_bytes(spec)["transformer"]
    allowed = _SIZE_TOLERANCE[0] * expected + _SIZE_TOLERANCE[1]
    if any(abs(size - expected * share) < allowed for share in (1, 0.5)):
        return
    raise CheckpointError(
        f"{transformer.path} of {transformer.repository} has {gigabytes(size)}; the transformer of {spec.name} has "
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
    return Sources.of_parts({part.name: _fetched_place(part, paths) for part in plan.hub.parts}).all_published()


def _fetched_place(part: HubPart, paths: dict[tuple[str, str], Path]) -> Path:
    name = next(iter(part.chosen(path for repository, path in paths if repository == part.repository)))
    return part_place(part, paths[part.repository, name], name)


def fetched_sources(spec: NamedModel, local_dir: Path | None, text_encoders: tuple[Path | None, ...]) -> Sources:
    """Parts of a hub model, from the cache of this machine or from `local_dir`. Downloads nothing.

    Args:
        text_encoders: text encoders of one's own, which the hub's then are not asked for.

    Raises:
        CheckpointError: files are missing in the cache or the folder.
    """
    _published(spec)
    own = any(path is not None for path in text_encoders)
    sources = _found(spec, local_dir, not own)
    if not own:
        return sources.all_published()
    return sources.with_text(()).all_published().with_text(text_encoders)


def _found(spec: NamedModel, folder: Path | None, text_encoder: bool) -> Sources:
    if folder is not None:
        converted = {name: folder / path for name, path in CONVERTED.items()}
        if converted["transformer"].exists():
            return Sources.of_parts({name: path for name, path in converted.items() if path.exists() or name == "vae"})
    here = local_files(spec, folder, text_encoder)
    where, option = (f"the cache {cache_folder()}", "") if folder is None else (str(folder), f" --local-dir {folder}")
    _require_local(spec, here, where, option)
    return Sources.of_parts({part.name: here.place(part) for part in dict.fromkeys(file.part for file in here.files)})


def _require_local(spec: NamedModel, here: LocalFiles, where: str, option: str) -> None:
    if here.missing:
        raise CheckpointError(
            f"{where} lacks {', '.join(here.missing[:5])} of {spec.name}",
            hint=f"fetch it where the hub can be reached: ldp-export fetch {spec.name}{option}",
        )


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
