"""Where the GPU's time goes: the kernel tables that `gpu.py --profile` wrote, summed up by what a kernel does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

#: By the names that PyTorch's and NVIDIA's libraries give their kernels; the first that matches.
KINDS = {
    "attention": re.compile(r"sdpa|flash"),
    "convolutions": re.compile(r"fprop|implicit_gemm"),
    "matrix products": re.compile(r"nvjet|cutlass|gemm"),
    "everything between": re.compile(r""),
}
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True)
class KernelTimes:
    """Of one image.

    Attributes:
        milliseconds: by kind, of the kernels that the table lists; launches: likewise.
        total: of all kernels.
    """

    model: str
    loop: str
    milliseconds: dict[str, float]
    launches: dict[str, int]
    total: float


def read_tables(folder: Path) -> list[KernelTimes]:
    """All tables of a folder, models and loops in alphabetical order, eager before compiled."""
    found = [_read(path) for path in sorted(folder.glob("gpu-*-kernels.txt"))]
    return sorted(found, key=lambda times: (times.model, times.loop != "eager"))


def section(tables: list[KernelTimes]) -> list[str]:
    """Markdown of a table; empty where nothing was profiled."""
    if not tables:
        return []
    heads = ["model", "loop", *KINDS, "not listed", "all kernels"]
    rows = [" | ".join(["", *_cells(times), ""]).strip() for times in tables]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *rows]
    words = (
        "Milliseconds of kernels in one unpruned image, batch 1, by PyTorch's profiler (the 25 longest by kind, with "
        "their launches; `gpu-*-kernels.txt`). What a loop takes beyond the sum of its kernels, the GPU waits."
    )
    return [words, "\n".join(lines)]


def _cells(times: KernelTimes) -> list[str]:
    kinds = [f"{times.milliseconds[kind]:.0f} ({times.launches[kind]})" for kind in KINDS]
    rest = times.total - sum(times.milliseconds.values())
    return [times.model, times.loop, *kinds, f"{rest:.0f}", f"{times.total:.0f}"]


def _read(path: Path) -> KernelTimes:
    """`gpu-MODEL-LOOP-kernels.txt`."""
    model, loop = path.stem.removeprefix("gpu-").removesuffix("-kernels").rsplit("-", 1)
    milliseconds, launches = dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0)
    lines = path.read_text().splitlines()
    heads = next(re.split(r"\s{2,}", line.strip()) for line in lines if "# of Calls" in line)
    time, calls = heads.index("Self CUDA"), heads.index("# of Calls")
    for line in lines:
        cells = re.split(r"\s{2,}", line.strip())
        if len(cells) == len(heads) and cells != heads and not cells[0].startswith("-"):
            kind = next(kind for kind, name in KINDS.items() if name.search(cells[0]))
            milliseconds[kind] += _milliseconds(cells[time])
            launches[kind] += int(cells[calls])
    total = next(line for line in lines if line.startswith("Self CUDA time total"))
    return KernelTimes(model, loop, milliseconds, launches, _milliseconds(total.rsplit(" ", 1)[1]))


def _milliseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text.strip()).groups()  # type: ignore[union-attr]
    return float(number) * _UNITS[unit]
