"""Charts of `gpu.json`: what each technique and each policy adds, a panel an architecture."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

#: From top to bottom: one technique more from bar to bar, then one policy more; what is not named follows.
ORDER = ("eager", "text once, K/V in place", "compiled, no CUDA graphs", "compiled, unpruned", "compiled, LD")


def draw(result: dict[str, Any], folder: Path, source: str) -> list[str]:
    """Writes `gpu-waterfall.png` of batch 1 into the folder and gives its name; no measurement, no chart."""
    panels = {
        model: sorted(same, key=_place)
        for model in dict.fromkeys(entry["model"] for entry in result["results"])
        if (same := [e for e in result["results"] if e["model"] == model and e["batch"] == 1 and "error" not in e])
    }
    if not panels:
        return []
    height = 1.2 + 0.32 * sum(len(entries) + 1 for entries in panels.values())
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(9.5, height),
        layout="constrained",
        squeeze=False,
        height_ratios=[len(entries) + 1 for entries in panels.values()],
    )
    for axis, (model, entries) in zip(axes.flat, panels.items(), strict=True):
        _bars(axis, entries, result["hardware"]["peak_bfloat16_tflops"])
        axis.set_title(f"{model}, 1024x1024, batch 1, {result['hardware'].get('gpu', 'CPU')}", fontsize=10)
    axes.flat[-1].set_xlabel("milliseconds of an image (times faster than eager, share of a matrix product's rate)")
    figure.savefig(folder / "gpu-waterfall.png", dpi=100, metadata={"Source": source, "Software": None})
    plt.close(figure)
    return ["gpu-waterfall.png"]


def _bars(axis: Axes, entries: list[dict[str, Any]], peak: float) -> None:
    times = [p50(entry) for entry in entries]
    eager = next((p50(entry) for entry in entries if entry["candidate"] == "eager"), None)
    axis.barh([entry["candidate"] for entry in entries], times, color=[_colour(e["candidate"]) for e in entries])
    for i, (entry, time) in enumerate(zip(entries, times, strict=True)):
        speed = "" if eager is None else f", {eager / time:.2f}x"
        axis.text(time, i, f" {time:.0f} ms{speed}, {share_of_peak(entry, peak):.0%}", va="center", fontsize=8)
    axis.set_xlim(0, 1.3 * max(times))
    axis.invert_yaxis()
    axis.tick_params(labelsize=8)


def _colour(name: str) -> str:
    kinds = {
        "eager": "tab:gray",
        "control": "tab:brown",
        "fp8": "tab:purple",
        "8 late": "tab:purple",
        "LD": "tab:green",
    }
    return next((colour for kind, colour in kinds.items() if kind in name), "tab:blue")


def _place(entry: dict[str, Any]) -> int:
    return next((i for i, name in enumerate(ORDER) if entry["candidate"].startswith(name)), len(ORDER))


def p50(entry: dict[str, Any]) -> float:
    """Milliseconds: between CUDA events where there are any."""
    return median(s["device_ms"] if s["device_ms"] is not None else s["wall_ms"] for s in entry["samples"])


def share_of_peak(entry: dict[str, Any], peak: float) -> float:
    """Operations of the blocks over the time of the whole image, against the measured rate of a matrix product."""
    return entry["blocks_tflop"] / (p50(entry) / 1e3) / peak
