"""Folders that modules are imported from: never the working folder, where anybody's module named `random` may lie."""

from __future__ import annotations

import os
import sys
from pathlib import Path

#: Folder that holds this package.
_HOME = Path(__file__).resolve().parent.parent


def import_path() -> list[str]:
    """Folders of `sys.path` without the working folder, which stays only, and last, if this package lies in it."""
    elsewhere = [path for path in sys.path if not _is_working_folder(path)]
    return [*elsewhere, str(_HOME)] if Path.cwd() == _HOME else elsewhere


def safe_environment() -> dict[str, str]:
    """The environment for a Python process that is started here, its PYTHONPATH without the working folder.

    An empty part of it, as `PYTHONPATH=$PYTHONPATH:more` makes, means the working folder too.
    """
    environment = dict(os.environ)
    if given := environment.pop("PYTHONPATH", ""):
        kept = [path for path in given.split(os.pathsep) if not _is_working_folder(path)]
        environment |= {"PYTHONPATH": os.pathsep.join(kept)} if kept else {}
    return environment


def _is_working_folder(path: str) -> bool:
    return not path or Path(path).resolve() == Path.cwd()
