"""What this machine's processor can do."""

from __future__ import annotations

from pathlib import Path


def cpu_features() -> frozenset[str]:
    """Instruction set extensions as Linux names them; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(flags, []))
