"""The study of policies: rows, resumption, and what is concluded from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ldp_calibration.fidelity import PSNR_CAP
from ldp_calibration.shapes import sample_scene
from ldp_calibration.shapes.evaluator import object_mask
from ldp_calibration.shapes.scenes import coverage, draw
from ldp_calibration.stats import front
from ldp_runtime import Pipeline
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.errors import ConfigError

from benchmarks.report import ablation as ablation_report
from benchmarks.report import precision as precision_results
from benchmarks.report.verdicts import gains
from benchmarks.study import non_inferior, precision_verdicts
from benchmarks.study.rows import Row, Setting, study, time_policies
from benchmarks.study.summary import margin_over_front, summarise

POLICIES = ["ld-fast", "none:skip_last=1", "top-k:share=1,fill=zero"]


def test_object_masks_cover_what_was_drawn() -> None:
    scene = sample_scene(np.random.default_rng(3))
    drawn = sum(coverage(s.kind, s.x, s.y, s.radius, 128) for s in scene.shapes) > 0.5
    mask = object_mask(draw(scene), margin=2)
    assert mask[drawn].all()
    assert mask.mean() < 2.5 * drawn.mean()
    assert not object_mask(np.full((64, 64, 3), 120, np.uint8)).any()


def test_a_study_reads_its_rows_from_pictures(small_bundle: Bundle, tmp_path: Path) -> None:
    setting, run = Setting(small_bundle.manifest.digest, "fits", prompts=2), tmp_path / "run"
    found = study(small_bundle.folder, setting, POLICIES, run, workers=1)
    assert list(found) == POLICIES
    assert all([row.prompt for row in rows] == [0, 1] for rows in found.values())
    nothing_pruned = found[POLICIES[2]][1]
    assert nothing_pruned.psnr == PSNR_CAP
    assert nothing_pruned.ssim == pytest.approx(1)
    assert nothing_pruned.operations == 1
    assert nothing_pruned.accepted == nothing_pruned.accepted_full
    skipped = found["none:skip_last=1"][1]
    assert skipped.psnr < PSNR_CAP
    assert len(skipped.kept) == 6
    assert set(skipped.kept) == {1.0}
    assert skipped.operations > 1
    assert found["ld-fast"][1].stopped == 4
    loser = "ld-paper:score=change"  # it left the product, and is drawn by the study alone
    again = study(small_bundle.folder, setting, [*POLICIES, loser], run, workers=1)
    assert {policy: again[policy] for policy in POLICIES} == found
    assert again[loser][0].psnr < PSNR_CAP
    with pytest.raises(ConfigError, match="was drawn with the"):
        study(small_bundle.folder, Setting(setting.digest, "fits", prompts=3), POLICIES, run, workers=1)


def test_non_inferiority_of_a_run(small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn, scored and compared by the harness; its result is read as committed ones are."""
    monkeypatch.setattr(non_inferior, "PROMPTS", 12)
    output, folder = tmp_path / "r.json", tmp_path / "run"
    policy = ["--policy", "none:skip_last=1"]
    arguments = [str(small_bundle.folder), *policy, "--workers", "1", "--run", str(folder), "--output", str(output)]
    result = non_inferior.main(arguments)
    assert result["set"]["first_prompt"] == 200
    assert (tmp_path / "run/images/none/00000/index.jsonl").read_text().count('"seed":100200')
    assert {policy: len(text) for policy, text in result["verdicts"].items()} == {"none": 12, "none:skip_last=1": 12}
    assert result["policies"]["none"]["operations"] == 1
    assert result["policies"]["none:skip_last=1"]["psnr_db"] < PSNR_CAP
    assert not result["policies"]["none:skip_last=1"]["non_inferior"], "twelve prompts show nothing"
    assert "none:skip_last=1" in ablation_report.non_inferior_table({"choose": json.loads(output.read_text())})


def test_gains_of_verdicts() -> None:
    """A thousand prompts: one more lost than gained is no loss of two points; forty more are."""
    full = "+" * 900 + "-" * 100
    result = {
        "set": {"first_prompt": 200},
        "margin_points": 2.0,
        "verdicts": {"none": full, "same": "-" + full[1:], "worse": "-" * 40 + full[40:]},
    }
    found = gains(result)
    assert found["same"].is_non_inferior
    assert not found["worse"].is_non_inferior
    assert found["worse"].points[0] == pytest.approx(-4, abs=0.05)
    assert found["worse"].points[2] < -2


def test_times_are_paired(small_pipe: Pipeline) -> None:
    times = time_policies(small_pipe, Setting("d", "f", prompts=2), ["none:skip_last=3"], prompts=2, repeats=2)
    assert {name: seconds.shape for name, seconds in times.items()} == {"none": (2, 2), "none:skip_last=3": (2, 2)}
    assert all((seconds > 0).all() for seconds in times.values())


def row(psnr: float, objects: float | None = None, stopped: int | None = None) -> Row:
    return Row("p", 0, psnr, 0.9, objects, None if objects is None else 0.8, True, True, 2.0, (1.0, 0.5), stopped)


def test_summaries() -> None:
    times = {"none": np.array([[2.0, 2.0], [4.0, 4.0]]), "p": np.array([[1.0, 1.0], [2.0, 2.0]])}
    found = summarise("p", [row(30, 25), row(32, None, stopped=4)], times, scales=3)
    assert found.speedup == pytest.approx((2, 2, 2))
    assert found.psnr[0] == 31
    assert found.psnr_objects == pytest.approx((25, 25, 25))
    assert found.kept == (1.0, 0.5, 0.0)
    assert (found.stop_rate, found.operations, found.milliseconds) == (0.5, 2.0, 1500.0)


@given(st.lists(st.tuples(st.floats(1, 5), st.floats(10, 60)), min_size=1, max_size=20))
def test_the_front_beats_or_equals_every_point(points: list[tuple[float, float]]) -> None:
    best = front(points)
    for x, y in points:
        assert any(points[i][0] >= x and points[i][1] >= y for i in best)
    assert [points[i][0] for i in best] == sorted(points[i][0] for i in best)


def test_margins_over_the_front() -> None:
    """Controls at 1x (40 dB) and 3x (20 dB): half way the front is at 30 dB."""
    controls = np.array([[39.0, 41.0], [19.0, 21.0]])
    margin = margin_over_front(2.0, np.array([31.0, 33.0]), [1.0, 3.0], controls)
    assert margin is not None
    assert margin[0] == pytest.approx(2)
    assert margin == pytest.approx((2, 2, 2))  # paired: the prompts' own level drops out
    assert margin_over_front(3.5, controls[0], [1.0, 3.0], controls) is None
    exact = margin_over_front(3.0, np.array([19.0, 21.0]), [1.0, 3.0], controls)
    assert exact == pytest.approx((0, 0, 0), abs=1e-9)


def test_verdicts_of_two_precisions(small_bundle: Bundle, tmp_path: Path) -> None:
    """Of one bundle twice: its own unpruned pictures have no PSNR, the second time they are the same."""
    output = tmp_path / "precision-verdicts-cpu.json"
    folder = str(small_bundle.folder)
    arguments = [folder, folder, "--policies", "none", "skip:count=1", "--prompts", "2", "--output", str(output)]
    arguments += ["--runs", str(tmp_path / "runs"), "--workers", "1"]
    result = precision_verdicts.main(arguments)
    own, pruned, again, _ = result["rows"]
    assert "same_policy" not in own
    assert (again["same_policy"]["accepted_difference"], again["same_policy"]["psnr_db"]) == (0, PSNR_CAP)
    assert own["psnr_db"] is None
    assert again["psnr_db"] == PSNR_CAP
    assert pruned["psnr_db"] < PSNR_CAP
    assert 0 <= own["accepted_ci95"][0] <= own["accepted"] <= own["accepted_ci95"][1] <= 1
    assert "| onnxruntime | `skip:count=1` |" in (precision_results.page(tmp_path) or "")
    assert precision_results.page(tmp_path / "nowhere") is None
