"""Charts of a result of `ldp-export bench`, drawn from its JSON alone; `page.py` puts them on a page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from ldp_calibration.stats import front
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Candidate = dict[str, Any]
PHASES = {"text": "tab:gray", "blocks": "tab:blue", "loop": "tab:red", "decode": "tab:green"}
EAGER, EAGER_GRAPHS, UNPRUNED = "eager", "eager, hoisted", "engines"
#: Words that tell engines apart, the first that is found counts: in words, and their colour. Last those of the bundle.
KINDS = {
    "bfloat16": ("or: bfloat16 in PyTorch", "tab:orange"),
    "int8 last scales with static ranges": ("last scales in 8 bits, static ranges", "tab:olive"),
    "int8 weights": ("weights in 8 bits", "tab:brown"),
    "int8 last scales": ("last scales in 8 bits", "tab:green"),
    "int8 decoder": ("", "tab:cyan"),
    "": ("", "tab:blue"),
}


def draw_all(result: dict[str, Any], folder: Path, stem: str, source: str) -> list[str]:
    """Writes `STEM-*.png` into the folder and gives their names.

    Args:
        source: identifies the raw file; kept in each picture, so that a stale one can be told.
    """
    charts: dict[str, Callable[[list[Candidate]], Figure | None]] = {
        "waterfall": waterfall,
        "scales": scales,
        "phases": phases,
        "front": fronts,
    }
    first = [c for c in result["candidates"] if c["batch"] == result["candidates"][0]["batch"]]
    names = []
    for name, draw in charts.items():
        figure = draw(first)
        if figure is None:
            continue
        names.append(f"{stem}-{name}.png")
        figure.savefig(folder / names[-1], dpi=100, metadata={"Source": source, "Software": None})
        plt.close(figure)
    return names


def _kind(name: str) -> str:
    """Which of `KINDS` a candidate's engines are."""
    return next(kind for kind in KINDS if kind in name)


def _title(name: str) -> str:
    """What sets a candidate's engines apart, in words."""
    words = [KINDS[_kind(name)][0], "decoder in 8 bits" if "int8 decoder" in name else ""]
    return ", ".join(filter(None, words))


#: Policies whose steps are drawn, the best first.
_PREFERRED = ("ld", "ld-fast")


def is_control(c: Candidate) -> bool:
    """True for what marks the front: skipping, stopping, fixed shares. Shares per scale stand in for a policy."""
    given = c["policy"].startswith("top-k:") and "+" in c["policy"]
    return c["policy"].startswith(("none:", "top-k", "skip", "stop", "fixed")) and not given


def steps(candidates: list[Candidate]) -> list[tuple[str, Candidate]]:
    """The techniques in the order they add up, each with the candidate that has all so far; missing ones are left out.

    The pruned steps are those of `ld`, else `ld-fast`, else of the first policy.
    """
    named = {c["name"]: c for c in candidates}
    policies = list(dict.fromkeys(c["policy"] for c in candidates if c["policy"] != "none"))
    policy = next((p for p in (*_PREFERRED, *policies) if p in policies), None)
    others = {_kind(c["name"]): c["name"] for c in candidates if c["policy"] == policy}
    wanted = {
        "eager PyTorch": EAGER,
        "work hoisted out of the scales": EAGER_GRAPHS,
        "engines": UNPRUNED,
        f"pruned: {policy}": f"{UNPRUNED} + {policy}",
        **{_title(others[kind]): others[kind] for kind in reversed(KINDS) if kind and kind in others},
    }
    return [(title, named[name]) for title, name in wanted.items() if name in named]


def waterfall(candidates: list[Candidate]) -> Figure:
    """What each technique adds: milliseconds, times faster than the first, PSNR beside."""
    found = steps(candidates)
    figure, axis = plt.subplots(figsize=(9.5, 0.8 + 0.6 * len(found)), layout="constrained")
    _stacked(axis, [title for title, _ in found], [c for _, c in found])
    first = found[0][1]["p50_ms"]
    for i, (_, c) in enumerate(found):
        speedup = c["speedup_vs_eager"] or first / c["p50_ms"]
        quality = "" if c["psnr_db"] is None else f", {c['psnr_db']:.1f} dB"
        if c["psnr_db"] is not None and c["precision_psnr_db"] is not None:
            quality += f" (precision alone: {c['precision_psnr_db']:.1f} dB)"
        axis.text(_total(c), i, f" {c['p50_ms']:.0f} ms, {speedup:.2f}x{quality}", va="center", fontsize=8)
    axis.set_xlim(0, 1.45 * max(_total(c) for _, c in found))
    axis.set_xlabel("mean milliseconds of a call, stacked by phase (labels: median)")
    axis.legend(fontsize=8, loc="lower right")
    return figure


def phases(candidates: list[Candidate]) -> Figure:
    """Stacked milliseconds per phase, one bar a candidate."""
    figure, axis = plt.subplots(figsize=(9.5, 1.0 + 0.26 * len(candidates)), layout="constrained")
    _stacked(axis, [c["name"] for c in candidates], candidates)
    for i, c in enumerate(candidates):
        speedup = c["speedup_vs_eager"]
        text = f" {c['p50_ms']:.0f} ms" + (f", {speedup:.2f}x" if speedup else "")
        axis.text(_total(c), i, text, va="center", fontsize=7)
    axis.set_xlim(0, 1.22 * max(map(_total, candidates)))
    axis.margins(y=0.01)
    axis.set_xlabel("mean milliseconds of a call (labels: median, times faster than eager)")
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=8, loc="lower right")
    return figure


def scales(candidates: list[Candidate]) -> Figure:
    """Latency of each scale stacked by phase, between text and decoder: a panel per technique."""
    found = steps(candidates)
    rows = -(-len(found) // 3)
    figure, axes = plt.subplots(
        rows, 3, figsize=(12, 0.4 + 2.7 * rows), sharey=True, layout="constrained", squeeze=False
    )
    count = max(len(c["scales"]) for _, c in found)
    for axis, (title, c) in zip(axes.flat, found, strict=False):
        _scale_bars(axis, c, count)
        axis.set_title(f"{title}: {c['p50_ms']:.0f} ms", fontsize=9 if len(title) < 40 else 7)
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    figure.supylabel("milliseconds", fontsize=9)
    figure.supxlabel("scale (above: tokens x branches)", fontsize=9)
    return figure


def _scale_bars(axis: Axes, c: Candidate, count: int) -> None:
    ends, turned = {-1: "text", count: "decode"}, 90 if count > 8 else 0
    for place, phase in ends.items():
        axis.bar(place, c["phases_ms"][phase], color=PHASES[phase])
    for scale in c["scales"]:
        k, blocks, loop = scale["scale"], scale["blocks_ms"], scale["loop_ms"]
        axis.bar(k, blocks, color=PHASES["blocks"])
        axis.bar(k, loop, bottom=blocks, color=PHASES["loop"])
        label = f"{scale['tokens']:.0f}x{scale['rows']:.3g}"
        axis.text(k, blocks + loop, label, fontsize=6, ha="center", va="bottom", rotation=turned)
    places = range(-1, count + 1)
    axis.set_xticks(places, [ends.get(i, str(i)) for i in places], fontsize=7, rotation=turned)
    axis.tick_params(axis="y", labelsize=7)


def fronts(candidates: list[Candidate]) -> Figure | None:
    """Speed over eager (over the unpruned engines without it) against PSNR, over the whole picture and the objects."""
    measures = {"psnr_db": "whole picture", "psnr_objects_db": "objects alone"}
    speed = "speedup_vs_eager" if any(c["speedup_vs_eager"] for c in candidates) else "speedup_vs_unpruned"
    shown = {m: [c for c in candidates if c[m] is not None and c[speed]] for m in measures}
    if not any(shown.values()):
        return None
    figure, axes = plt.subplots(1, 2, figsize=(12, 5.2), layout="constrained", sharex=True)
    for axis, (measure, title) in zip(axes, measures.items(), strict=True):
        _front(axis, shown[measure], speed, measure)
        axis.set_title(title, fontsize=10)
        over = "eager PyTorch" if speed == "speedup_vs_eager" else "the unpruned engines"
        axis.set_xlabel(f"times faster than {over} (95 % interval)")
    axes[0].set_ylabel("dB, against the unpruned picture of the same engines", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _front(axis: Axes, candidates: list[Candidate], speed: str, measure: str) -> None:
    for c in candidates:
        x, y, interval = c[speed], c[measure], c[f"{speed}_ci95"]
        error = [[max(0.0, x - interval[0])], [max(0.0, interval[1] - x)]] if interval else None
        kind = _kind(c["name"])
        axis.errorbar(
            x,
            y,
            xerr=error,
            fmt="x" if is_control(c) else "o",
            color="black" if is_control(c) and not kind else KINDS[kind][1],
            ms=5,
            lw=0.7,
            alpha=0.6 if kind else 1,
        )
        if not kind:
            below = -9 if is_control(c) else 4
            axis.annotate(c["policy"], (x, y), fontsize=6, xytext=(3, below), textcoords="offset points")
    controls = [(c[speed], c[measure]) for c in candidates if is_control(c) and not _kind(c["name"])]
    best = sorted(controls[i] for i in front(controls))
    axis.plot(
        [x for x, _ in best], [y for _, y in best], "--", color="0.6", lw=1, label="front of the controls", zorder=0
    )
    engines = dict.fromkeys(c["name"].split(" + ")[0] for c in candidates)
    for name in (name for name in engines if _kind(name)):
        axis.plot([], [], "o", color=KINDS[_kind(name)][1], alpha=0.6, label=f"the same policies: {name}")
    axis.margins(0.12)
    axis.grid(alpha=0.2)


def _stacked(axis: Axes, names: list[str], candidates: list[Candidate]) -> None:
    left = [0.0] * len(names)
    for phase, colour in PHASES.items():
        widths = [c["phases_ms"][phase] for c in candidates]
        axis.barh(names, widths, left=left, color=colour, label=phase)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.invert_yaxis()


def _total(c: Candidate) -> float:
    return sum(c["phases_ms"][phase] for phase in PHASES)
