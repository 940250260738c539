"""How files and folders are named while they are being written, until they are renamed to their own name."""

from __future__ import annotations

import shutil
from pathlib import Path

#: A name that begins so is half-written, or was left by a process that was killed.
SCRATCH = ".tmp-"


def remove_leftovers(folder: Path) -> None:
    """Deletes what processes that were killed have left in a folder; no other may be writing there."""
    for scratch in folder.glob(f"{SCRATCH}*"):
        if scratch.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            scratch.unlink(missing_ok=True)
