"""Planning and running of a fetch of benchmarks that others publish: prompts and questions, never pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldp_calibration.evaluation.benchmarks.published import (
    MOST_BYTES,
    PUBLISHED,
    RECORD,
    Published,
    PublishedFile,
    fetched_files,
    fetched_folder,
    pinned_commits,
)
from ldp_runtime.errors import ConfigError, HubError, IntegrityError, LdpError, suggestion
from ldp_runtime.system.disk import acquired, remove_leftovers, write_durably

from ldp_export.hub.client import HubFile, UnreachableHubError, endpoint, list_repository
from ldp_export.hub.download import RemoteFile, download, require_below
from ldp_export.hub.raw import GITHUB, RawFile
from ldp_export.progress import Progress, ProgressEvent, silent


@dataclass(frozen=True)
class PlannedFile:
    """A file of a benchmark: what is known of it, and its place.

    Attributes:
        remote: the file to download, or None where the hub must be asked first.
    """

    published: PublishedFile
    place: Path
    remote: RemoteFile | None

    @property
    def commit(self) -> str:
        return self.remote.commit if isinstance(self.remote, HubFile) else self.published.revision

    @property
    def hash(self) -> str | None:
        """Known hash of the content: SHA-256, or git's id."""
        listed = self.remote.etag if isinstance(self.remote, HubFile) else None
        return self.published.sha256 or self.published.git_id or listed

    def to_json(self) -> dict[str, Any]:
        return {
            "repository": self.published.repository,
            "path": self.published.path,
            "commit": self.commit,
            "hash": self.hash,
            "bytes": None if self.remote is None else self.remote.size,
            "place": str(self.place),
        }


@dataclass(frozen=True)
class BenchmarkPlan:
    """A checked fetch of one benchmark.

    Attributes:
        is_here: all files are here, with their hashes.
        unasked: reason for which the hub could not be asked, else empty.
    """

    published: Published
    folder: Path
    files: tuple[PlannedFile, ...]
    is_here: bool
    accepted: bool
    unasked: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "benchmark": self.published.name,
            "licence": self.published.licence,
            "terms": self.published.terms or None,
            "accepted": self.accepted,
            "prompts": self.published.prompts,
            "folder": str(self.folder),
            "here": self.is_here,
            "unasked": self.unasked or None,
            "files": [file.to_json() for file in self.files],
        }


def chosen_benchmarks(names: Sequence[str], accepted: Collection[str], with_terms: bool) -> list[Published]:
    """Benchmarks by name; without names, all whose licence permits any use, and those whose terms are accepted.

    Args:
        with_terms: let through what nobody has accepted, for showing.

    Raises:
        ConfigError: a name is none, or its terms must be accepted.
    """
    for name in (*names, *accepted):
        if name not in PUBLISHED:
            known = ", ".join(PUBLISHED)
            raise ConfigError(
                f"there is no benchmark {name!r} to fetch", hint=f"{suggestion(name, PUBLISHED)}there are {known}"
            )
    if not names:
        return [one for one in PUBLISHED.values() if with_terms or not one.terms or one.name in accepted]
    chosen = [PUBLISHED[name] for name in dict.fromkeys(names)]
    refused = [one for one in chosen if one.terms and one.name not in accepted]
    if refused and not with_terms:
        raise ConfigError(
            f"{refused[0].name} is not fetched without your word: {refused[0].terms}",
            hint=f"if you may use it, add --accept-license {refused[0].name}",
        )
    return chosen


def plan_benchmark(
    published: Published,
    local_dir: Path | None = None,
    *,
    accepted: bool = False,
    mirror: str = GITHUB,
    ask: bool = True,
) -> BenchmarkPlan:
    """Files of a benchmark and their places. The hub is asked for those that no hash pins, unless they are here.

    Args:
        local_dir: folder below which benchmarks lie, instead of this program's cache.
        mirror: server of GitHub's files.
        ask: False: a hub that cannot be reached is no error, for showing.

    Raises:
        HubError: the hub cannot be reached, or lacks a file.
    """
    folder = fetched_folder(local_dir) / published.name
    here, unasked = _is_here(published, local_dir), ""
    listed = dict[str, HubFile]()
    if not here and any(file.host == "datasets" for file in published.files):
        try:
            listed = _listed(published, pinned_commits(folder))
        except UnreachableHubError as error:
            if ask:
                raise
            unasked = error.message
    files = tuple(
        PlannedFile(file, folder / file.name, RawFile(file, mirror) if file.host == "github" else listed.get(file.path))
        for file in published.files
    )
    return BenchmarkPlan(published, folder, files, here, accepted or not published.terms, unasked)


def _is_here(published: Published, local_dir: Path | None) -> bool:
    try:
        fetched_files(published, local_dir)
    except LdpError:
        return False
    return True


def _listed(published: Published, pinned: Any) -> dict[str, HubFile]:
    """Files as the hub lists them, at the commit of an earlier fetch if there was one."""
    found = dict[str, HubFile]()
    for repository, revision in {(f.repository, f.revision) for f in published.files if f.host == "datasets"}:
        at = pinned.get(repository, revision)
        there = {file.path: file for file in list_repository(repository, at, "datasets")}
        absent = [f.path for f in published.files if f.repository == repository and f.path not in there]
        large = [f.path for f in published.files if f.path in there and there[f.path].size > MOST_BYTES]
        if absent or large:
            what = (
                f"lacks {', '.join(absent)}"
                if absent
                else f"lists {', '.join(large)} with more than {MOST_BYTES} bytes"
            )
            raise HubError(
                f"{repository} at {at} on {endpoint()} {what}",
                hint="its publishers changed it; look for its files by hand",
            )
        found |= {f.path: there[f.path] for f in published.files if f.repository == repository}
    return found


def fetch_benchmark(plan: BenchmarkPlan, progress: Progress = silent) -> None:
    """Downloads the files of a benchmark and writes the record of their hashes last: without it nothing is used.

    Stopped at any moment it goes on where it was, when it is run again.

    Raises:
        HubError: the connection failed. IntegrityError: a file has another hash. CapacityError: the disk is full.
    """
    if plan.is_here:
        (plan.folder / f"{RECORD}.lock").unlink(missing_ok=True)  # of a process that was killed behind its last write
        return
    entries = list[dict[str, Any]]()
    for index, file in enumerate(plan.files):
        assert file.remote is not None
        name = f"{plan.published.name}: {file.published.name}"
        progress(ProgressEvent(name, index, len(plan.files), "started"))
        content = _received(plan, file, file.remote)
        entries.append(file.to_json() | {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
        progress(ProgressEvent(name, index, len(plan.files), "finished", f"{len(content) / 1e3:.0f} kB"))
    record = {"format": 1} | plan.to_json() | {"here": True, "files": [_portable(entry) for entry in entries]}
    del record["folder"], record["unasked"]
    _write_record(plan.folder, f"{json.dumps(record, indent=1)}\n".encode())


def _write_record(folder: Path, content: bytes) -> None:
    """Writes the record, alone in the folder, and removes what killed processes left of it."""
    lock = folder / f"{RECORD}.lock"
    held = acquired(lock)
    try:
        remove_leftovers(folder)
        write_durably(folder / RECORD, content)
    finally:
        held.release()
        lock.unlink(missing_ok=True)


def _received(plan: BenchmarkPlan, file: PlannedFile, remote: RemoteFile) -> bytes:
    """Content of a file, downloaded unless it is here."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    require_below(file.place, plan.folder)
    if file.place.exists() and not remote.matches(file.place):
        if not file.place.is_file():
            raise ConfigError(f"{file.place} is no file", hint="remove it, or name another folder with --local-dir")
        file.place.unlink()  # damaged, or of another commit
    download(remote, file.place)
    content = file.place.read_bytes()
    if not file.published.is_content(content):
        raise IntegrityError(f"{file.place} was changed while it was fetched", hint="run it again")
    return content


def _portable(entry: dict[str, Any]) -> dict[str, Any]:
    """A record's entry without its place: folders are carried to other machines."""
    return {key: value for key, value in entry.items() if key != "place"}
