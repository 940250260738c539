"""The paper's table as a recipe: its commands are commands, figures are collected, nothing is made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from helpers.evaluation import painted_run
from helpers.evaluation_networks import judged_prompts, small_networks, write_answers
from ldp_calibration.evaluation.score import score
from ldp_calibration.evaluation.scorers.choose import kind_of, open_scorer
from ldp_calibration.evaluation.scorers.opening import Wish
from ldp_runtime.pruning.parse import parse_policy

from benchmarks import paper_table
from benchmarks.paths import REPORTS, RESULTS
from benchmarks.report import scorers
from ldp_export.cli import main


def invoked(command: list[str]) -> str:
    made = CliRunner().invoke(main, command[1:], catch_exceptions=False)
    assert made.exit_code == 0, made.output
    return made.stdout


def test_pages_are_what_the_raw_files_give() -> None:
    for path, text in paper_table.pages(RESULTS).items():
        assert path.read_text() == text, "run python -m benchmarks.paper_table --page"


@pytest.mark.parametrize("model", paper_table.MODELS)
def test_commands_are_commands(model: str) -> None:
    for _, command in paper_table.commands(model, "bundle", "runs", "weights"):
        _, verb, step, *rest = command
        group = main.get_command(click.Context(main), verb)
        assert isinstance(group, click.Group)
        found = group.get_command(click.Context(group), step)
        assert found is not None
        options = {option for part in found.params for option in part.opts}
        assert {part for part in rest if part.startswith("--")} <= options


def test_rows_are_policies_and_scorers() -> None:
    for row in paper_table.ROWS:
        parse_policy(row.policy)
        assert all(len(figures) == len(paper_table.FIGURES) for figures in row.paper.values())
    assert len({row.policy for row in paper_table.ROWS}) == len(paper_table.ROWS)
    for _, _, names in paper_table.BENCHMARKS.values():
        assert all(kind_of(name).name == name for name in names)


def test_nothing_measured_is_empty(tmp_path: Path) -> None:
    text = paper_table.table("infinity-8b", tmp_path)
    assert "| `ld-skip-2` | (0.79) | (86.34) |" in text
    assert "| `none:stop=first` |  |  |" in text
    assert paper_table.cost("infinity-8b", tmp_path)["hours"] == {
        row.policy: None for row in paper_table.rows_of("infinity-8b")
    }
    assert scorers.table(tmp_path) == ""


def test_cost_is_of_measured_speeds() -> None:
    found = paper_table.cost("infinity-8b", RESULTS)
    assert found["pictures"] == 553 * 4 + 1065 * 4 + 3200 + 1000
    assert found["hours"]["none"] == pytest.approx(found["pictures"] * 0.7386 / 3600, rel=1e-3)
    assert found["hours"]["lhep"] is None
    text = (REPORTS / "paper-table.md").read_text()
    assert f"{10 * found['bytes'] / 1e9:.0f} GB at most" in " ".join(text.split())


def test_figures_of_runs_stand_before_the_papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs"
    run = painted_run(
        folder / "geneval-rewritten", {"none": set(), "ld-paper": {1}}, images=4, prompts=judged_prompts(2)
    )
    wish = Wish(weights=tmp_path / "weights", networks=small_networks(tmp_path / "weights"))
    for name in ("geneval", "psnr"):
        score(run, open_scorer(name, wish=wish))
    invoked(["", "evaluate", "compare", str(run.folder), "--resamples", "1000"])
    dpg = painted_run(folder / "dpg", {"none": set(), "ld-paper": {1}}, images=4, prompts=judged_prompts(2))
    assert paper_table.dpg_command(folder) is None
    invoked(["", "evaluate", "export", str(dpg.folder), "--layout", "dpg", "--output", str(folder / "dpg-layout")])
    for policy in ("none", "ld-paper"):
        assert paper_table.dpg_command(folder) is None
        write_answers(dpg, policy, folder / "dpg-layout" / f"{policy}_detail.txt")
    invoked(paper_table.dpg_command(folder) or [])
    figures = paper_table.collected(folder, invoked)
    assert set(figures["none"]) == {"GenEval", "DPG"}
    assert set(figures["ld-paper"]) == {"GenEval", "DPG", "PSNR"}
    summary: dict[str, Any] = json.loads(invoked(["", "evaluate", "summary", str(dpg.folder), "--json"]))
    assert figures["none"]["DPG"] == summary["figures"][0]["official"]
    monkeypatch.setattr(paper_table, "RESULTS", tmp_path)
    monkeypatch.setattr(paper_table, "_called", lambda command, quiet=False: invoked(command))
    paper_table.write_figures("infinity-8b", folder)
    assert str(tmp_path) not in (tmp_path / "paper-table-infinity-8b.json").read_text()
    scores, likeness = (
        line for line in paper_table.table("infinity-8b", tmp_path).splitlines() if "`ld-paper`" in line
    )
    assert f"| {figures['ld-paper']['DPG']:.2f} | (30.65) |" in scores  # the paper has no DPG; HPSv2.1 is not measured
    assert f"| {figures['ld-paper']['PSNR']:.2f} (26.87) |" in likeness
