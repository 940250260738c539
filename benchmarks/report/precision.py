"""The page on what precision costs in pictures, from the raw files of `precision_verdicts.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.report.read import read_result

FILES = ("precision-verdicts-cpu.json", "quantized-verdicts-cpu.json")
_HEADS = (
    "| engines | policy | accepted | PSNR dB | objects dB | same policy: points | same policy: PSNR dB |\n"
    "|---|---|---|---|---|---|---|"
)


def page(results: Path) -> str | None:
    """As Markdown; None without a measurement."""
    parts = [_part(name, read_result(results / name)) for name in FILES if (results / name).is_file()]
    return "\n\n".join(["# What precision costs in pictures", *parts]) if parts else None


def _part(name: str, result: dict[str, Any]) -> str:
    words = (
        f"`{name}`: {result['prompts']} held-out prompts of `infinity-shapes`, one seed each; how many pictures the "
        "evaluator accepts, with 95 % Wilson intervals, and PSNR against the unpruned pictures of the first engines."
    )
    if any("same_policy" in row for row in result["rows"]):
        words += " Then against the first engines under the same policy: accepted pictures in points, paired, with the "
        words += "95 % interval, and PSNR."
    return f"{words}\n\n{_HEADS}\n" + "\n".join(map(_row, result["rows"]))


def _row(row: dict[str, Any]) -> str:
    low, high = row["accepted_ci95"]
    decibels = ("" if row[name] is None else f"{row[name]:.1f}" for name in ("psnr_db", "psnr_objects_db"))
    cells = [row["engines"], f"`{row['policy']}`", f"{row['accepted']:.1%} [{low:.1%}, {high:.1%}]", *decibels]
    same = row.get("same_policy")
    if same is None:
        return f"| {' | '.join([*cells, '', ''])} |"
    low, high = same["accepted_difference_ci95"]
    difference = f"{same['accepted_difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"| {' | '.join([*cells, difference, format(same['psnr_db'], '.1f')])} |"
