"""Table of published scorers at true size, from the result of `benchmarks.study.scorers` alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def table(results: Path) -> str:
    """Files, memory and seconds of each scorer; empty if the result is not there."""
    path = results / "scorers-true-size-cpu.json"
    if not path.is_file():
        return ""
    result = json.loads(path.read_text())
    lines = [
        "| scorer | first opening, s | later, s | s a picture | in fours | memory, MiB | float16, bfloat16 |",
        "|---|---|---|---|---|---|---|",
        *(_row(name, one) for name, one in result["scorers"].items()),
    ]
    machine = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return "\n".join((*lines, "", f"*{machine['processor']}, {machine['cores']} cores; {versions}.*"))


def _row(name: str, one: dict[str, Any]) -> str:
    plain, fours = one["float32"], one.get("float32 in fours")
    in_fours = "" if fours is None else f"{min(fours['seconds_a_picture']):.1f}"
    memory = max(part["peak_anonymous_mib"] for part in one.values() if isinstance(part, dict))
    halves = ", ".join(_change(one, half) for half in ("float16", "bfloat16"))
    return (
        f"| `{name}` | {one['first_opening']['open_seconds']} | {plain['open_seconds']} "
        f"| {min(plain['seconds_a_picture']):.1f} | {in_fours} | {memory} | {halves.strip(', ')} |"
    )


def _change(one: dict[str, Any], half: str) -> str:
    """Largest change of a score in half precision; empty for verdicts, of which random weights tell nothing."""
    return "" if "objects" in one["float32"] else f"{one[half]['largest_difference']:.1g}"
