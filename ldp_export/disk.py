"""Room on the disk: asked for before long work, and a typed error where it runs out all the same."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ldp_runtime.errors import CapacityError


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


@contextmanager
def full_disk_is_typed(folder: Path) -> Generator[None]:
    """Turns the system's error for a full disk into CapacityError, for work that resumes."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CapacityError(
                f"the disk of {folder} is full", hint="free some space and run it again: it resumes"
            ) from error
        raise


def gigabytes(count: float) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
