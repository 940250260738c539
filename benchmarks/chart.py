"""Draws a result of `ldp-export bench`: where the time goes, and speed against fidelity.

python benchmarks/chart.py benchmarks/results/infinity-shapes-cpu.json --output docs/bench.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

PHASES = ("text", "blocks", "loop", "decode")
COLOURS = ("tab:gray", "tab:blue", "tab:red", "tab:green")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    result = json.loads(options.result.read_text())
    output = options.output or options.result.with_suffix(".png")
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 4.2), layout="constrained", width_ratios=[1.3, 1])
    draw_phases(left, result["candidates"])
    draw_front(right, result["candidates"])
    hardware = result["hardware"]
    figure.suptitle(f"{result['model']['name']}, {hardware.get('cpu', '')}, batch 1, median of warm calls", fontsize=9)
    figure.savefig(output, dpi=110)
    print(output)


def draw_phases(axis: plt.Axes, candidates: list[dict[str, Any]]) -> None:
    """Stacked milliseconds per phase, one bar a candidate."""
    names = [c["name"] for c in candidates]
    left = [0.0] * len(names)
    for phase, colour in zip(PHASES, COLOURS, strict=True):
        widths = [c["phases_ms"][phase] for c in candidates]
        axis.barh(names, widths, left=left, color=colour, label=phase)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for i, c in enumerate(candidates):
        speedup = c["speedup_vs_eager"]
        axis.text(
            left[i], i, f" {c['p50_ms']:.0f} ms" + (f", {speedup:.2f}x" if speedup else ""), va="center", fontsize=7
        )
    axis.invert_yaxis()
    axis.set_xlim(0, max(left) * 1.25)
    axis.set_xlabel("milliseconds per image (speed-up over eager)")
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=7)


def draw_front(axis: plt.Axes, candidates: list[dict[str, Any]]) -> None:
    """Speed-up over the unpruned engines against PSNR."""
    for c in candidates:
        if c["psnr_db"] is None or c["speedup_vs_unpruned"] is None:
            continue
        x, y = c["speedup_vs_unpruned"], c["psnr_db"]
        interval = c["speedup_vs_unpruned_ci95"]
        error = [[x - interval[0]], [interval[1] - x]] if interval else None
        control = c["policy"].startswith(("skip", "stop", "fixed"))
        axis.errorbar(x, y, xerr=error, fmt="kx" if control else "o", ms=6)
        axis.annotate(c["policy"], (x, y), fontsize=7, xytext=(4, 4), textcoords="offset points")
    axis.set_xlabel("speed-up over the unpruned engines (95 % interval)")
    axis.set_ylabel("PSNR against their image (dB)")
    axis.margins(0.2)


if __name__ == "__main__":
    main()
