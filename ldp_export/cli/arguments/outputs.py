"""Checks of output paths before any work is done, so that no result is lost because it cannot be written."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path


def check_new(path: Path, overwrite: bool, *endings: str) -> None:
    """Checks that a file can be written, and that it replaces none unless the user says so.

    Raises:
        ConfigError: no file can be written to `path`, it has none of the given endings, or it is there already.
    """
    from ldp_runtime.errors import ConfigError

    check_file(path, *endings)
    if path.is_file() and not overwrite:  # a device is written to, not replaced
        raise ConfigError(f"{path} is there already", hint="add --overwrite to replace it, or name another file")


def check_distinct(paths: Mapping[str, Path | None]) -> None:
    """Raises ConfigError if two options name one file, of which the later would replace the earlier."""
    from ldp_runtime.errors import ConfigError

    seen: dict[Path, str] = {}
    for option, path in paths.items():
        if path is None:
            continue
        place = path.resolve()
        if place in seen:
            raise ConfigError(f"{seen[place]} and {option} both name {path}", hint="name a file for each")
        seen[place] = option


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
    from ldp_runtime.errors import ConfigError
    from ldp_runtime.system.disk import existing_parent

    place = existing_parent(path)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ConfigError(
            f"cannot write into {place}: {error.strerror}", hint="name another place, or mend its permissions"
        ) from error
