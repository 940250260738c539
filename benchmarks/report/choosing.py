"""The page on what choosing costs, from the raw file of `choosing_overhead.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.report.read import read_result

#: Largest share of a pruned run that a policy's own questions may take.
SHARE = 0.01
FILE = "choosing-overhead-cpu.json"


def page(results: Path) -> str | None:
    """As Markdown; None without a measurement."""
    path = results / FILE
    return _page(read_result(path)) if path.is_file() else None


def _page(result: dict[str, Any]) -> str:
    machine = result["hardware"]
    rows = [
        (f"`{name}`", _scales(entry), f"{entry['run_milliseconds']:.0f}", f"{entry['share']:.2%}", _verdict(entry))
        for name, entry in result["policies"].items()
    ]
    heads = ("policy", "ms of a scale", "run ms", "share", f"under {SHARE:.0%}")
    return "\n".join(
        (
            "# What choosing costs",
            "",
            f"`choosing_overhead.py`: what a policy's own questions take, at the {result['size']} schedule with the "
            f"blocks of\n{result['model']} on a CPU. {machine['cpu']}, {machine['cores_usable']} cores, load "
            f"{machine['load_average']} at the end.",
            "",
            f"| {' | '.join(heads)} |",
            "|---" * len(heads) + "|",
            *(f"| {' | '.join(row)} |" for row in rows),
        )
    )


def _scales(entry: dict[str, Any]) -> str:
    return ", ".join(f"{k}: {ms:.2f}" for k, ms in entry["milliseconds_per_scale"].items())


def _verdict(entry: dict[str, Any]) -> str:
    return "reached" if entry["share"] < SHARE else f"**missed** by {entry['share'] - SHARE:.2%}"
