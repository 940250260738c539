"""Safe writing: files are written whole or not at all, by one process at a time; disk space is checked beforehand."""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ldp_runtime.errors import CapacityError, ConfigError, LdpError


def existing_parent(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    path = path.resolve()
    return path if path.exists() else existing_parent(path.parent)


def require_room(folder: Path, needed: int, what: str, hint: str) -> None:
    """Raises CapacityError if the disk of `folder` (which need not exist yet) has fewer than `needed` bytes free."""
    free = shutil.disk_usage(existing_parent(folder)).free
    if needed > free:
        raise CapacityError(
            f"{what} takes {gigabytes(needed)} on the disk of {folder}, {gigabytes(free)} are free", hint=hint
        )


def same_disk(one: Path, other: Path) -> bool:
    """True if two folders, which need not exist yet, lie on the same disk."""
    return existing_parent(one).stat().st_dev == existing_parent(other).stat().st_dev


def is_full(error: BaseException) -> bool:
    """True if the error says that a disk or a quota is full."""
    return system_error_number(error) in (errno.ENOSPC, errno.EDQUOT)


def system_error_number(error: BaseException) -> int | None:
    """Number (errno) of a system error; safetensors states it in its message only."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"\(os error (\d+)\)", str(error)) if isinstance(error, SafetensorError) else None
    return int(match[1]) if match else None


@contextmanager
def full_disk_is_typed(folder: Path, kind: type[LdpError] = CapacityError) -> Generator[None]:
    """Raises an error of the given kind if work that can be resumed finds the disk of `folder` full."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if is_full(error):
            raise kind(
                f"the disk of {folder} is full", hint="free some space and run the command again: it resumes"
            ) from error
        raise


def gigabytes(count: float) -> str:
    """Number of bytes as text, in GB or MB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


#: Prefix of scratch files and folders: half-written, or left by a process that was killed.
SCRATCH = ".tmp-"


def remove_leftovers(folder: Path) -> None:
    """Deletes scratch files that killed processes left in a folder; no other process may be writing there."""
    for scratch in folder.glob(f"{SCRATCH}*"):
        if scratch.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            scratch.unlink(missing_ok=True)


@contextmanager
def written_whole(path: Path) -> Generator[Path]:
    """Scratch path beside `path`, renamed to `path` at the end; after an error it is deleted."""
    scratch = path.with_name(f"{SCRATCH}{uuid.uuid4().hex}")
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_durably(path: Path, content: bytes) -> None:
    """Replaces a file atomically: readers see the old content or the new one, also after a crash."""
    with written_whole(path) as scratch, scratch.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def exclusive(lock: Path, work: str) -> Generator[None]:
    """Holds a lock file for the duration.

    Args:
        work: the work that the lock protects, for the error message, such as "build is writing to DIR".

    Raises:
        ConfigError: another process holds the lock; this one does not wait for it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout as error:
        raise ConfigError(f"another {work}", hint="wait for it, or name another output") from error
