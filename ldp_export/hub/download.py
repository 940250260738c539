"""Downloads that resume where they were interrupted, and appear only when their hash is right.

The hub's client restarts a download that was interrupted by the end of the process. Here the received part stays
beside the target under a fixed name, and the next try asks for the rest with a Range request.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from ldp_runtime.errors import HubError, IntegrityError
from ldp_runtime.system.disk import acquired, full_disk_is_typed, is_full, write_durably, written_whole
from ldp_runtime.system.small_files import is_plain_file

from ldp_export.hub.client import HubFile, cache_folder

#: Ending of the name of a file that is received in part.
PARTIAL = ".partial"
OnBytes = Callable[[int], None]


class RemoteFile(Protocol):
    """A file of a server, whose content is known by its hash.

    Attributes:
        path: in its repository.
        size: bytes, or None where the server did not list them; most_bytes: never more.
        server: its address; mirror: words for a hint, to ask another one.
        expected: size and hash, in words.
    """

    @property
    def repository(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int | None: ...
    @property
    def most_bytes(self) -> int: ...
    @property
    def server(self) -> str: ...
    @property
    def mirror(self) -> str: ...
    @property
    def expected(self) -> str: ...
    def url(self) -> str: ...
    def headers(self) -> dict[str, str]: ...
    def errors(self) -> AbstractContextManager[None]: ...
    def is_complete(self, path: Path) -> bool: ...
    def matches(self, path: Path) -> bool: ...


def download(file: RemoteFile, target: Path, on_bytes: OnBytes = lambda count: None) -> None:
    """Writes a file of a server to `target`, which appears complete and checked, or not at all.

    Another file that is there already is replaced once its successor is complete.

    Args:
        on_bytes: called with the number of bytes received so far, those of earlier tries included.

    Raises:
        HubError: the connection failed; the received part is kept, and the next call resumes.
        IntegrityError: the server sent another content than is expected; the received file is deleted.
        CapacityError: the disk is full.
        ConfigError: the disk has no locks.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, lock = target.with_name(target.name + PARTIAL), target.with_name(target.name + ".lock")
    held = acquired(lock)
    try:
        if file.is_complete(target):
            return
        _forget_foreign(partial)
        with full_disk_is_typed(target.parent), file.errors():
            _receive(file, partial, on_bytes)
        if not file.matches(partial):
            size = partial.stat().st_size
            partial.unlink()
            raise IntegrityError(
                f"{file.server} served {size} bytes as {file.path} of {file.repository} that are not {file.expected}; "
                "they were deleted",
                hint=f"run it again; if it fails again, a proxy or mirror changes files: {file.mirror}",
            )
        partial.replace(target)
    finally:
        held.release()
        if target.exists():
            lock.unlink(missing_ok=True)


def _forget_foreign(partial: Path) -> None:
    """Removes a beginning that is a link, or has a second name: appending to it would change another file."""
    if partial.is_symlink() or (partial.exists() and (not is_plain_file(partial) or partial.stat().st_nlink > 1)):
        partial.unlink()


def download_to_cache(file: HubFile, on_bytes: OnBytes = lambda count: None) -> Path:
    """Downloads a file into the hub's cache on this machine, where other programs find it too.

    Blob, snapshot and reference are written here, in the client's layout: it would take their names from the server.
    """
    blob, cache = blob_path(file), repository_cache(file.repository)
    download(file, blob, on_bytes)
    entry = cache / "snapshots" / file.commit / file.path
    require_below(entry, cache)
    entry.parent.mkdir(parents=True, exist_ok=True)
    if not entry.exists() or not entry.samefile(blob):
        with written_whole(entry) as scratch:
            _refer(scratch, entry.parent, blob)
    if file.revision != file.commit:
        reference = cache / "refs" / file.revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        write_durably(reference, file.commit.encode())
    return entry


def _refer(link: Path, folder: Path, blob: Path) -> None:
    """Makes a relative link in `folder` to the content of a file, or a copy where the disk has no links."""
    try:
        link.symlink_to(os.path.relpath(blob, folder))
    except OSError as error:
        if is_full(error):
            raise
        shutil.copyfile(blob, link)


def require_below(path: Path, folder: Path) -> None:
    """Raises HubError if links lead a path out of the folder that was asked for."""
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise HubError(
            f"{path} lies in {path.parent.resolve()}, outside {folder}", hint="remove the link, or name another folder"
        )


def blob_path(file: HubFile) -> Path:
    """Path of a file's content in the cache."""
    return repository_cache(file.repository) / "blobs" / file.etag


def repository_cache(repository: str) -> Path:
    """Folder of a repository in the cache."""
    return cache_folder() / f"models--{repository.replace('/', '--')}"


def _receive(file: RemoteFile, partial: Path, on_bytes: OnBytes) -> None:
    """Appends the missing bytes; the client itself resumes a broken connection a few times."""
    from huggingface_hub.file_download import http_get

    have = partial.stat().st_size if partial.exists() else 0
    if have > file.most_bytes:
        partial.unlink()
        have = 0
    if have and file.size is None and file.matches(partial):  # nothing says beforehand that it has all
        return
    with partial.open("ab") as handle, _quiet_client():
        counted = cast(BinaryIO, _Counted(handle, on_bytes, file.most_bytes))
        try:
            http_get(file.url(), counted, resume_size=have, headers=file.headers(), expected_size=file.size)
        except OSError as error:
            if error.errno is None and "Consistency check" in str(error):
                arrived, size = partial.stat().st_size, f" of {file.size}" if file.size else ""
                raise HubError(
                    f"{file.path} ended after {arrived}{size} bytes", hint="run it again: it resumes"
                ) from error
            if _is_no_range(error):
                handle.truncate(0)
            raise
        except _Endless as error:
            handle.truncate(0)
            listed = "the listed " if file.size is not None else ""
            raise IntegrityError(
                f"{file.server} serves more than {listed}{file.most_bytes} bytes as {file.path} of {file.repository}; "
                "they were deleted",
                hint=f"run it again; if it fails again, a proxy or mirror changes files: {file.mirror}",
            ) from error


def _is_no_range(error: Exception) -> bool:
    """True if a server says that a file has no bytes after those that are here: they are another file's."""
    return getattr(getattr(error, "response", None), "status_code", None) == 416


class _Endless(Exception):
    """More bytes arrive than a file may have."""


class _Counted(io.RawIOBase):
    """A file that reports its length after every write, and takes no more bytes than it may have."""

    def __init__(self, file: BinaryIO, on_bytes: OnBytes, most: int) -> None:
        self._file, self._on_bytes, self._most = file, on_bytes, most

    def write(self, data: bytes, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self._file.tell() + len(data) > self._most:
            raise _Endless
        count = self._file.write(data)
        self._on_bytes(self._file.tell())
        return count

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def truncate(self, size: int | None = None, /) -> int:
        return self._file.truncate(size)


@contextmanager
def _quiet_client() -> Generator[None]:
    """Switches off the client's progress bars and warnings within its scope: this package shows its own."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    were_off, verbosity = are_progress_bars_disabled(), logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if not were_off:
            enable_progress_bars()
