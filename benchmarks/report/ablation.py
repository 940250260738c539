"""Charts and tables of an ablation, from its result alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.report.read import between, read_result
from benchmarks.report.verdicts import gains

_STYLE = {"paper": ("tab:orange", "s"), "ours": ("tab:blue", "o"), "controls": ("black", "x")}
_LABEL = {
    "paper": "the paper's setting and its switches",
    "ours": "ld-fast and its switches",
    "controls": "controls",
}


def draw_front(result: dict[str, Any], path: Path) -> None:
    """Measured speed-up against PSNR, whole picture and objects alone, with the controls' front."""
    figure, axes = plt.subplots(1, 2, figsize=(12.5, 5.2), layout="constrained")
    for axis, measure, title in zip(axes, ("psnr", "psnr_objects"), ("whole picture", "objects alone"), strict=True):
        for group, policies in result["groups"].items():
            colour, marker = _STYLE[group]
            for policy in policies:
                summary = result["policies"][policy]
                x, y = summary["speedup"], summary[measure]
                axis.errorbar(
                    x[0], y[0], xerr=_bars(x), yerr=_bars(y), fmt=marker, color=colour, ms=5, lw=0.6, alpha=0.85
                )
            axis.plot([], [], marker, color=colour, label=_LABEL[group])
        best = result["margins"][measure]["front"]
        axis.plot(
            [result["policies"][p]["speedup"][0] for p in best],
            [result["policies"][p][measure][0] for p in best],
            "--",
            color="0.5",
            lw=1,
            label="front of the controls",
            zorder=0,
        )
        for policy in ("ld-fast", "ld-fast:fill=linear", "ld-paper", "ld-skip-2"):
            summary = result["policies"][policy]
            axis.annotate(
                policy,
                (summary["speedup"][0], summary[measure][0]),
                fontsize=8,
                xytext=(5, 5),
                textcoords="offset points",
            )
        axis.set_ylim(top=min(42.0, axis.get_ylim()[1]))  # a policy that hardly acts would squeeze all others
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("times faster than the unpruned engines, end to end")
        axis.grid(alpha=0.2)
    axes[0].set_ylabel("PSNR against the unpruned picture (dB)")
    axes[1].legend(fontsize=8)
    _save(figure, path)


def draw_switches(result: dict[str, Any], path: Path) -> None:
    """Paired differences in PSNR of each switch to the setting that it changes."""
    figure, axes = plt.subplots(1, 2, figsize=(12.5, 5.2), layout="constrained")
    for axis, group in zip(axes, ("paper", "ours"), strict=True):
        policies = [p for p in result["groups"][group] if p not in ("ld-paper", "ld-fast")]
        for offset, (measure, colour) in enumerate((("psnr", "tab:blue"), ("psnr_objects", "tab:red"))):
            values = [result["differences"][p][measure] for p in policies]
            axis.errorbar(
                [v[0] for v in values],
                [i + 0.22 * offset for i in range(len(policies))],
                xerr=[[v[0] - v[1] for v in values], [v[2] - v[0] for v in values]],
                fmt="o",
                ms=4,
                color=colour,
                label="whole picture" if measure == "psnr" else "objects alone",
            )
        names = [f"{result['groups'][group][p]} ({result['policies'][p]['speedup'][0]:.2f}x)" for p in policies]
        axis.set_yticks(range(len(policies)), names, fontsize=7)
        axis.axvline(0, color="0.6", lw=0.8)
        axis.invert_yaxis()
        base = "ld-paper" if group == "paper" else "ld-fast (or ld-fast:fill=linear, where the fill is fitted)"
        axis.set_title(f"against {base}", fontsize=9)
        axis.set_xlabel("paired difference in PSNR (dB); in brackets: speed-up")
    axes[0].legend(fontsize=8)
    _save(figure, path)


def draw_kept(result: dict[str, Any], path: Path) -> None:
    """Share of tokens computed per scale."""
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    shown = ("ld-paper", "ld-fast", "ld-paper:score=distance", "ld-paper:border=ignored", "ld-fast:score=energy")
    for policy in shown:
        axis.plot(result["policies"][policy]["kept"], "o-", ms=4, label=policy)
    grids = result["unpruned"]["scales"]
    axis.set_xticks(range(len(grids)), [f"{k}\n{h}x{w}" for k, (h, w) in enumerate(grids)], fontsize=8)
    axis.set_ylabel("tokens computed")
    axis.set_ylim(0, 1.05)
    axis.legend(fontsize=8)
    _save(figure, path)


#: Results on non-inferiority, by the name that the table gives to their prompts and engines.
NON_INFERIOR = {"choose": "choose", "confirm": "confirm", "confirm-int8": "confirm, in 8 bits"}


def page_with_tables(page: str, result: dict[str, Any], results: Path) -> str:
    """Text of the page with the tables between its markers; everything else is left as it is.

    Args:
        result: the ablation.
        results: folder of the raw results, those on non-inferiority among them.
    """
    for group in result["groups"]:
        page = between(page, group, _table(result, group))
    page = between(page, "setting", _setting(result))
    page = between(page, "margins", _margins(result))
    sets = {name: read_result(results / f"non-inferior-{file}.json") for file, name in NON_INFERIOR.items()}
    return between(page, "non-inferior", non_inferior_table(sets))


def non_inferior_table(sets: Mapping[str, dict[str, Any]]) -> str:
    """Rows of every set of prompts, by the set's name."""
    lines = [
        "| prompts | policy | accepted | points gained | non-inferior | tokens | operations | dB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in sets.items():
        gained = gains(result)
        for policy, s in result["policies"].items():
            gain = gained[policy]
            known = ("", "") if policy == "none" else (_points(gain.points), "yes" if gain.is_non_inferior else "no")
            psnr = "" if policy == "none" else f"{s['psnr_db']:.1f}"
            lines.append(
                f"| {name} | `{policy}` | {s['accepted_percent']:.1f}% | {' | '.join(known)} | {s['tokens']:.0f} "
                f"| {s['operations']:.2f} | {psnr} |"
            )
    return "\n".join(lines)


def _points(interval: Sequence[float]) -> str:
    return f"{interval[0]:+.1f} [{interval[1]:+.1f}, {interval[2]:+.1f}]"


def _table(result: dict[str, Any], group: str) -> str:
    lines = [
        "| policy | | faster | operations | PSNR dB | 5th pct. | objects dB | SSIM | objects | accepted | stop rate |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for policy, note in result["groups"][group].items():
        s = result["policies"][policy]
        low, high = s["speedup"][1:]
        ended = f", {s['end_rate']:.0%} ended" if s.get("end_rate") else ""  # of a policy that is gone
        lines.append(
            f"| `{policy}` | {note} | {s['speedup'][0]:.2f} [{low:.2f}, {high:.2f}] | {s['operations']:.2f} "
            f"| {_mean(s['psnr'])} | {s['psnr_fifth']:.1f} | {_mean(s['psnr_objects'])} | {s['ssim'][0]:.3f} "
            f"| {s['ssim_objects'][0]:.3f} | {s['accepted']:.1%} | {s['stop_rate']:.0%}{ended} |"
        )
    return "\n".join(lines)


def _setting(result: dict[str, Any]) -> str:
    machine, setting, unpruned = result["machine"], result["setting"], result["unpruned"]
    hardware, software = machine["hardware"], machine["software"]
    cores = f"{hardware['cores_physical']} cores ({hardware['cores_logical']} logical)"
    versions = ", ".join(f"{name} {software[name]}" for name in ("python", "torch", "onnxruntime"))
    return (
        f"{result['model']}, bundle `{setting['digest'][:16]}`, {setting['prompts']} held-out prompts; "
        f"{hardware['cpu']}, {cores}, load {machine['load_average']:.1f} after timing; {versions}; "
        f"{result['timed']['prompts']} prompts x {result['timed']['repeats']} repetitions timed. "
        f"Unpruned: {unpruned['milliseconds']:.0f} ms, the evaluator accepts {unpruned['accepted']:.1%}."
    )


def _margins(result: dict[str, Any]) -> str:
    heads = ("policy", "equal speed: whole dB", "objects dB", "equal operations: whole dB", "objects dB")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for policy in (*result["groups"]["ours"], "ld-paper", "ld-skip-2"):
        cells = [
            _margin(result[kind][measure]["margin"][policy])
            for kind in ("margins", "margins_by_operations")
            for measure in ("psnr", "psnr_objects")
        ]
        lines.append(f"| `{policy}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _margin(margin: list[float] | None) -> str:
    if margin is None:
        return "beyond every control"
    return f"{margin[0]:+.1f} [{margin[1]:+.1f}, {margin[2]:+.1f}]"


def _mean(interval: list[float]) -> str:
    return f"{interval[0]:.1f} ± {(interval[2] - interval[1]) / 2:.1f}"


def _bars(interval: list[float]) -> list[list[float]]:
    return [[max(0.0, interval[0] - interval[1])], [max(0.0, interval[2] - interval[0])]]


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)
