"""The page on builds of true size: what `large_build.py` measured beside what had been predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_TEXT = """# Building models of true size

`large_build.py`: a synthetic checkpoint in the released layout (random weights, float32, sharded), built as
`ldp-export build` does. Memory is the peak of anonymous memory of all processes, disk the peak under the output
path; in brackets what `build --dry-run` had predicted. Other work ran on the machine: times are upper bounds.

| model | built as | checkpoint | memory | disk | bundle | minutes | longest stages | machine |
|---|---|---|---|---|---|---|---|---|
"""


def page(results: Path) -> str:
    """The table of every `large-build-*.json`; a sentence where there is none."""
    files = sorted(results.glob("large-build-*.json"))
    if not files:
        return "# Building models of true size\n\nNot measured yet: `python -m benchmarks.study.large_build --help`."
    return _TEXT + "\n".join(_row(json.loads(path.read_text())) for path in files)


def _row(result: dict[str, Any]) -> str:
    predicted, hardware = result["predicted"], result["hardware"]
    kind = f"{result['backend']}, {result['precision']}, {result['chunk']} blocks a graph"
    cells = [
        result["model"],
        kind if result["compute_capabilities"] is None else f"{kind}, SM {result['compute_capabilities']}",
        _gigabytes(result["checkpoint"]["bytes"]),
        f"{_gigabytes(result['peak_anonymous_bytes'])} ({_gigabytes(predicted['host_memory'])})",
        f"{_gigabytes(result['peak_disk_bytes'])} ({_gigabytes(predicted['disk'])})",
        f"{_gigabytes(result['bundle_bytes'])} ({_gigabytes(predicted['bundle'])})",
        f"{result['seconds'] / 60:.0f} ({predicted['seconds'] / 60:.0f})",
        _longest(result["stages"]),
        f"{hardware['cpu']}, {hardware['cores_usable']} cores, load {hardware['load_average']}",
    ]
    return f"| {' | '.join(cells)} |"


def _longest(stages: list[dict[str, Any]], count: int = 3) -> str:
    first = sorted(stages, key=lambda stage: -stage["seconds"])[:count]
    return ", ".join(f"`{stage['stage']}` {stage['seconds']:.0f} s" for stage in first)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
