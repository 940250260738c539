"""Checks of output paths before any work is done, so that no result is lost because it cannot be written."""

from __future__ import annotations

import tempfile
from pathlib import Path


def check_file(path: Path, *endings: str) -> None:
    """Raises ConfigError if no file can be written to `path`, or if it has none of the given endings."""
    from ldp_runtime.errors import ConfigError

    if endings and path.suffix.lower() not in endings:
        raise ConfigError(f"cannot write {path}", hint=f"name a file that ends in {' or '.join(endings)}")
    if path.is_dir():
        raise ConfigError(f"cannot write {path}: it is a folder", hint="name a file in it")
    check_folder(path.parent)


def check_folder(path: Path) -> None:
    """Raises ConfigError if no file can be written into the folder, which need not exist yet."""
    from ldp_runtime.disk import existing_parent
    from ldp_runtime.errors import ConfigError

    place = existing_parent(path)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ConfigError(
            f"cannot write into {place}: {error.strerror}", hint="name another place, or mend its permissions"
        ) from error


def folder_of(path: Path) -> Path:
    """Path of the file, after its folder has been made if it was missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
