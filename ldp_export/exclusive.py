"""One process at a time, where two would write to one place."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from ldp_runtime.errors import ConfigError


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
