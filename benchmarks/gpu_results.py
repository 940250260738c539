"""The GPU section of the results page, from the JSON of `gpu.py`."""

from __future__ import annotations

from statistics import median
from typing import Any

#: Times faster than eager, of the 8B shape on an H100, batch 1.
TARGETS = {"compiled, unpruned": 2.0, "compiled, LD, no scale skipped": 4.0, "compiled, LD, last two skipped": 6.0}
_HEADS = "| model | batch | candidate | p50 ms | over eager | first call s | peak MiB |\n|---|---|---|---|---|---|---|"


def section(result: dict[str, Any] | None) -> str:
    """Markdown; where nothing was measured, it says so."""
    if result is None:
        title = "## The 2B and 8B architectures on a GPU"
        return f"{title}\n\nNot measured yet: `python benchmarks/gpu.py` on a machine with one."
    hardware = ", ".join(f"{name} {value}" for name, value in result["hardware"].items() if name != "clocks")
    clocks = [result["hardware"].get("clocks"), result.get("clocks_after")]
    lines = [_row(result, entry) for entry in result["results"]]
    parts = [
        "## The 2B and 8B architectures on a GPU, random weights: speed only",
        f"`gpu.json`, {result['created'][:10]}: {hardware}. Keep shares {result['keep']}, branch stopped after scale "
        f"{result.get('stop_scale')}: {result.get('keep_from', 'assumed, not calibrated')}. Times between CUDA events "
        "around whole images (no text encoder); ratios are of medians, without an interval.",
        "\n".join([_HEADS, *lines]),
        *_misses(result),
    ]
    parts += [f"```\n{text}\n```" for text in clocks if text]
    return "\n\n".join(parts)


def _row(result: dict[str, Any], entry: dict[str, Any]) -> str:
    if "error" in entry:
        return f"| {entry['model']} | {entry['batch']} | {entry['candidate']} | failed: {entry['error']} | | | |"
    memory = entry["peak_device_mb"]
    cells = (entry["model"], str(entry["batch"]), entry["candidate"], f"{_p50(entry):.1f}", _over_eager(result, entry))
    cells += (f"{entry['first_s']:.1f}", "" if memory is None else f"{memory:.0f}")
    return "| " + " | ".join(cells) + " |"


def _misses(result: dict[str, Any]) -> list[str]:
    """A line for each target of the 8B shape that is missed."""
    found = []
    for entry in result["results"]:
        target, speed = TARGETS.get(entry["candidate"]), _speedup(result, entry)
        if entry["model"] == "infinity-8b" and entry["batch"] == 1 and target and speed and speed < target:
            found.append(
                f"- missed: {entry['candidate']} is {speed:.2f} times as fast as eager, {target:g} was the target"
            )
    return found


def _over_eager(result: dict[str, Any], entry: dict[str, Any]) -> str:
    speed = _speedup(result, entry)
    return "" if speed is None else f"{speed:.2f}"


def _speedup(result: dict[str, Any], entry: dict[str, Any]) -> float | None:
    if "error" in entry:
        return None
    same = (e for e in result["results"] if (e["model"], e["batch"]) == (entry["model"], entry["batch"]))
    eager = next((e for e in same if e["candidate"] == "eager" and "error" not in e), None)
    return None if eager is None else _p50(eager) / _p50(entry)


def _p50(entry: dict[str, Any]) -> float:
    return median(s["device_ms"] if s["device_ms"] is not None else s["wall_ms"] for s in entry["samples"])
