"""What this machine's processor can do."""

from __future__ import annotations

from pathlib import Path

#: What decides how fast matrices are multiplied, as parts of Linux's names of instruction set extensions.
_DECISIVE = ("avx2", "avx512", "vnni", "bf16", "amx", "sve", "i8mm")


def cpu_features() -> frozenset[str]:
    """Instruction set extensions as Linux names them; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(flags, []))


def instructions() -> str:
    """What decides how fast this processor multiplies, e.g. "avx2, avx512, vnni"; empty where nothing is known."""
    features = cpu_features()
    return ", ".join(kind for kind in _DECISIVE if any(kind in feature for feature in features))


def multiplies_bfloat16() -> bool:
    """Whether products in bfloat16 are the processor's own, or nothing is known; elsewhere they are emulated."""
    return not cpu_features() or "bf16" in instructions()
