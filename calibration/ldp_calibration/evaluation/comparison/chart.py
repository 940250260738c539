"""Chart of a comparison: quality against speed, one panel a scorer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldp_runtime.system.disk import written_result

from ldp_calibration.candidates import is_control
from ldp_calibration.drawing import pyplot
from ldp_calibration.evaluation.comparison.compare import Comparison, PolicyResult
from ldp_calibration.evaluation.run import NULL, UNPRUNED
from ldp_calibration.evaluation.scorers.choose import kind_of
from ldp_calibration.stats import front

_COLOURS = {"unpruned": "0.35", "pruned": "tab:blue", "control": "black"}


def draw_chart(comparison: Comparison, path: Path) -> None:
    """Draws each policy with its intervals, and the front that no policy beats in both."""
    plt = pyplot()
    names = list(comparison.scorers)
    figure, axes = plt.subplots(1, len(names), figsize=(1 + 5.2 * len(names), 4.8), layout="constrained", squeeze=False)
    measured = all(one.cost.speedup or one.policy.label == comparison.reference for one in comparison.policies)
    for axis, name in zip(axes[0], names, strict=True):
        _panel(axis, comparison, name, measured)
    against = f"than {'unpruned' if comparison.reference == UNPRUNED else comparison.reference}"
    figure.supxlabel(f"times faster {against}, while drawing" if measured else f"times fewer operations {against}")
    with written_result(path) as scratch:
        figure.savefig(scratch, dpi=110, format=path.suffix.removeprefix(".") or "png")
    plt.close(figure)


def _panel(axis: Any, comparison: Comparison, name: str, measured: bool) -> None:
    kind = kind_of(name)
    shown = [one for one in comparison.policies if name in one.results]
    points = list[tuple[float, float]]()
    for one in shown:
        x, mean = _speed(one, measured), one.results[name].mean
        points.append((x[0], mean.value if kind.higher_is_better else -mean.value))
        low, high = (mean.value if end is None else end for end in (mean.low, mean.high))
        group = "unpruned" if one.policy.other_seeds or one.policy.label == UNPRUNED else _group(one)
        axis.errorbar(
            x[0],
            kind.scale * mean.value,
            xerr=[[x[0] - x[1]], [x[2] - x[0]]],
            yerr=[[kind.scale * (mean.value - low)], [kind.scale * (high - mean.value)]],
            fmt={"unpruned": "s", "pruned": "o", "control": "x"}[group],
            color=_COLOURS[group],
            ms=6,
            lw=0.9,
        )
        place = (6, -12) if one.policy.label == NULL else (6, 5)  # it lies where the unpruned one does
        axis.annotate(
            one.policy.label, (x[0], kind.scale * mean.value), fontsize=8, xytext=place, textcoords="offset points"
        )
    drawn = [i for i, one in enumerate(shown) if one.policy.label != NULL]
    best = [drawn[i] for i in front([points[i] for i in drawn])]
    axis.plot(
        [points[i][0] for i in best],
        [kind.scale * shown[i].results[name].mean.value for i in best],
        "--",
        color="0.7",
        lw=1,
        zorder=0,
        label="no policy is faster and better",
    )
    for group, marker in (("unpruned", "s"), ("pruned", "o"), ("control", "x")):
        axis.plot([], [], marker, color=_COLOURS[group], label={"control": "controls"}.get(group, group))
    axis.set_title(name + (" against the unpruned picture" if kind.needs_twin else ""), fontsize=10)
    axis.set_ylabel(f"mean, 95 % interval{f' ({kind.unit.strip()})' if kind.unit else ''}", fontsize=9)
    axis.margins(x=0.18, y=0.12)
    axis.grid(alpha=0.2)
    axis.legend(fontsize=7)


def _group(one: PolicyResult) -> str:
    return "control" if is_control(one.policy.policy) else "pruned"


def _speed(one: PolicyResult, measured: bool) -> tuple[float, float, float]:
    """Speed with its interval; the reference's is 1."""
    if not measured:
        return one.cost.operations, one.cost.operations, one.cost.operations
    return one.cost.speedup or (1.0, 1.0, 1.0)
