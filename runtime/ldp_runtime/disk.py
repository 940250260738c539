"""Files written whole or not at all, by one process at a time, with room asked for before long work."""

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
    """The path, or the nearest folder above it that is there."""
    path = path.resolve()
    return path if path.exists() else existing_parent(path.parent)


def require_room(folder: Path, needed: int, what: str, hint: str) -> None:
    """Raises CapacityError where the disk of `folder` (which need not exist yet) has fewer than `needed` bytes free."""
    free = shutil.disk_usage(existing_parent(folder)).free
    if needed > free:
        raise CapacityError(
            f"{what} takes {gigabytes(needed)} on the disk of {folder}, {gigabytes(free)} are free", hint=hint
        )


def same_disk(one: Path, other: Path) -> bool:
    """Whether two folders, which need not exist yet, lie on one disk."""
    return existing_parent(one).stat().st_dev == existing_parent(other).stat().st_dev


def is_full(error: BaseException) -> bool:
    """True if the system said that a disk or a quota is full."""
    return system_error_number(error) in (errno.ENOSPC, errno.EDQUOT)


def system_error_number(error: BaseException) -> int | None:
    """Number of a system error; safetensors has it in its message only."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error)) if isinstance(error, SafetensorError) else None
    return int(found[1]) if found else None


@contextmanager
def full_disk_is_typed(folder: Path, kind: type[LdpError] = CapacityError) -> Generator[None]:
    """Error of the given kind where the disk of `folder` is full, for work that resumes."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if is_full(error):
            raise kind(
                f"the disk of {folder} is full", hint="free some space and run the command again: it resumes"
            ) from error
        raise


def gigabytes(count: float) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


#: A name that begins so is half-written, or was left by a process that was killed.
SCRATCH = ".tmp-"


def remove_leftovers(folder: Path) -> None:
    """Deletes what processes that were killed have left in a folder; no other may be writing there."""
    for scratch in folder.glob(f"{SCRATCH}*"):
        if scratch.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            scratch.unlink(missing_ok=True)


@contextmanager
def written_whole(path: Path) -> Generator[Path]:
    """Scratch path beside `path` that is renamed to it at the end; after an error nothing is left of it."""
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
        work: what the lock stands for, as in "build is writing to DIR".

    Raises:
        ConfigError: another process holds it; nothing is waited for.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            yield
    except Timeout as error:
        raise ConfigError(f"another {work}", hint="wait for it, or name another output") from error
