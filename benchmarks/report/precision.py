"""The page on what precision costs in pictures, from the raw file of `precision_verdicts.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.report.read import read_result

FILE = "precision-verdicts-cpu.json"
_HEADS = "| engines | policy | accepted | PSNR dB | objects dB |\n|---|---|---|---|---|"


def page(results: Path) -> str | None:
    """As Markdown; None without a measurement."""
    path = results / FILE
    return _page(read_result(path)) if path.is_file() else None


def _page(result: dict[str, Any]) -> str:
    words = (
        f"`{FILE}`: {result['prompts']} held-out prompts of `infinity-shapes`, one seed each; how many pictures the "
        "evaluator accepts, with 95 % Wilson intervals, and PSNR against the unpruned pictures of the first engines."
    )
    return "\n\n".join(["# What precision costs in pictures", words, "\n".join([_HEADS, *map(_row, result["rows"])])])


def _row(row: dict[str, Any]) -> str:
    low, high = row["accepted_ci95"]
    decibels = ("" if row[name] is None else f"{row[name]:.1f}" for name in ("psnr_db", "psnr_objects_db"))
    cells = (row["engines"], f"`{row['policy']}`", f"{row['accepted']:.1%} [{low:.1%}, {high:.1%}]", *decibels)
    return f"| {' | '.join(cells)} |"
