"""How files and folders are named while they are being written, until they are renamed to their own name."""

from __future__ import annotations

#: A name that begins so is half-written, or was left by a process that was killed.
SCRATCH = ".tmp-"
