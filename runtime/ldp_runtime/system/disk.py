"""Safe writing: files are written whole or not at all, by one process at a time; disk space is checked beforehand."""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout
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
    """True if the error says that a disk or a quota is full, or takes no file of this size."""
    return system_error_number(error) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_unwritable(error: BaseException) -> bool:
    """True if the error says that nothing may be written there."""
    return system_error_number(error) in (errno.EACCES, errno.EROFS, errno.EPERM)


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
            why = "takes no file of this size" if system_error_number(error) == errno.EFBIG else "is full"
            raise kind(
                f"the disk of {folder} {why}", hint="free some space and run the command again: it resumes"
            ) from error
        raise


def gigabytes(count: float) -> str:
    """Number of bytes as text, in GB or MB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


#: Prefix of scratch files and folders: half-written, or left by a process that was killed.
SCRATCH = ".tmp-"


_SCRATCH_NAME = re.compile(re.escape(SCRATCH) + "[0-9a-f]{32}")


def scratch_path(folder: Path) -> Path:
    """New path in a folder for something half-written."""
    return folder / f"{SCRATCH}{uuid.uuid4().hex}"


def is_scratch(path: Path) -> bool:
    """True if a path has a name that only `scratch_path` gives."""
    return _SCRATCH_NAME.fullmatch(path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Deletes scratch files that killed processes left in a folder; no other process may be writing there."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for scratch in filter(is_scratch, folder.iterdir()):
        if scratch.is_dir() and not scratch.is_symlink():
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            scratch.unlink(missing_ok=True)


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Deletes files of a folder by name, then what is empty of its folders; whatever else lies there stays."""
    with suppress(OSError):
        parents = {folder}
        for name in names:
            path = folder / name
            if path.is_file() or path.is_symlink():
                path.unlink()
            parents |= {parent for parent in path.parents if parent.is_relative_to(folder)}
        for parent in sorted(parents, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):
                parent.rmdir()


def put_in_place(made: Path, place: Path) -> None:
    """Renames a folder to a place; of a damaged one that was there, only files that are not made anew stay.

    Somebody may have put a note beside them; below the folder's own folders, nothing stays.
    """
    if not os.path.lexists(place):
        made.rename(place)
        return
    damaged = scratch_path(place.parent)
    place.rename(damaged)
    made.rename(place)
    if damaged.is_symlink() or not damaged.is_dir():
        damaged.unlink()
        return
    for path in damaged.iterdir():
        if not path.is_dir() and not os.path.lexists(place / path.name):
            path.rename(place / path.name)
    shutil.rmtree(damaged, ignore_errors=True)


def sync(path: Path) -> None:
    """Makes a file's content, or the names in a folder, survive a power cut.

    Systems and file systems that cannot do so for folders leave it out.
    """
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() or os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Makes everything in a folder survive a power cut; its own name is its parent's matter."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent, name))
        sync(Path(parent))


@contextmanager
def written_whole(path: Path) -> Generator[Path]:
    """Scratch path beside `path`, renamed to `path` at the end; after an error it is deleted."""
    scratch = scratch_path(path.parent)
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def written_result(path: Path) -> Generator[Path]:
    """Path to write a user's result to; at the end it becomes `path`, whose folder is made if it is missing.

    Until then whatever was there stays. A link stays a link; devices and pipes are written to as they are.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        yield path
        return
    with written_whole(path.resolve()) as scratch:
        yield scratch


def write_durably(path: Path, content: bytes) -> None:
    """Replaces a file atomically: readers see the old content or the new one, also after a crash."""
    with written_whole(path) as scratch, scratch.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync(path.parent)


@contextmanager
def exclusive(lock: Path, work: str) -> Generator[None]:
    """Holds a lock file for the duration.

    Args:
        work: the work that the lock protects, for the error message, such as "build is writing to DIR".

    Raises:
        ConfigError: another process holds the lock, and this one does not wait for it; or the disk has no locks.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = acquired(lock, timeout=0)
    except Timeout as error:
        raise ConfigError(f"another {work}", hint="wait for it, or name another output") from error
    try:
        yield
    finally:
        held.release()


def acquired(lock: Path, timeout: float = -1) -> BaseFileLock:
    """A lock file, held by this process until it is released.

    Args:
        timeout: seconds to wait for another process that holds it; -1 waits for ever.

    Raises:
        filelock.Timeout: another process holds it.
        ConfigError: the file system has no locks.
    """
    held = FileLock(lock, timeout=timeout)
    try:
        held.acquire()
    except NotImplementedError as error:
        raise _no_locks(lock) from error
    except OSError as error:
        if isinstance(error, Timeout) or error.errno not in _NO_LOCKS:
            raise
        raise _no_locks(lock) from error
    return held


#: Numbers of the errors of file systems without locks, such as some that lie on another machine.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def _no_locks(lock: Path) -> ConfigError:
    return ConfigError(
        f"the disk of {lock.parent} does not support locks, without which two writers could mix their files",
        hint="choose a folder on a local disk, and copy the result from there",
    )
