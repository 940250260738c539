"""Comparison of runs whose differences are known: figures, words, pages; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from helpers.evaluation import painted_run
from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt
from ldp_calibration.evaluation.comparison.changed import changes, sheet_path, write_sheet
from ldp_calibration.evaluation.comparison.chart import draw_chart
from ldp_calibration.evaluation.comparison.compare import Comparison, compare, scored_by
from ldp_calibration.evaluation.comparison.words import Table, as_json, as_markdown, notes, sentences, tables
from ldp_calibration.evaluation.run import Run, open_run
from ldp_calibration.evaluation.score import score
from ldp_calibration.evaluation.scorers.choose import open_scorer
from ldp_calibration.evaluation.times import new_times_file
from ldp_calibration.resumable import appended
from ldp_runtime.errors import ConfigError, IntegrityError

WRONG = {"none": {0, 1}, "null": {2, 3, 4}, "ld": {0, 1, 5}, "ld-fast": {0, 1, *range(6, 20)}, "top-k:share=0.4": {0}}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = painted_run(tmp_path_factory.mktemp("compare") / "run", WRONG, count=60)
    for name in ("shapes", "psnr"):
        score(run, open_scorer(name))
    with appended(new_times_file(run)) as add:
        for prompt in range(60):
            for i, label in enumerate(WRONG):
                add({"policy": label, "prompt": prompt, "seconds": (1 + prompt % 3) / (1 + 0.5 * i)})
    return run


@pytest.fixture(scope="module")
def found(scored: Run) -> Comparison:
    return compare(scored, resamples=2000)


def test_figures_of_known_pictures(found: Comparison) -> None:
    assert list(found.scorers) == ["shapes", "psnr"]
    fast = found.of("ld-fast").results["shapes"].difference
    assert fast is not None
    assert (fast.signs.better, fast.signs.worse, fast.signs.equal) == (0, 14, 46)
    assert fast.p_value == pytest.approx(2 / 2**14)
    assert fast.is_non_inferior is False
    ld = found.of("ld").results["shapes"].difference
    assert ld is not None
    assert (ld.signs.better, ld.signs.worse) == (0, 1)
    assert ld.p_value == 1.0
    assert ld.needed is not None
    assert ld.needed > 60
    assert found.of("none").results["shapes"].difference is None
    assert "psnr" not in found.of("none").results


def test_each_tag_counts_alike(scored: Run, found: Comparison) -> None:
    tags = np.array([prompt.tag for prompt in scored.prompts])
    right = np.array([i not in WRONG["ld-fast"] for i in range(60)])
    expected = np.mean([right[tags == tag].mean() for tag in set(tags)])
    result = found.of("ld-fast").results["shapes"]
    assert result.mean.value == pytest.approx(expected)
    assert {tag: one.value for tag, one in result.by_tag.items()} == {
        tag: pytest.approx(right[tags == tag].mean()) for tag in set(tags)
    }


def test_costs(found: Comparison) -> None:
    cost = found.of("ld").cost
    assert cost.speedup == pytest.approx((2.0, 2.0, 2.0))  # paired: that some prompts take longer drops out
    assert cost.seconds == pytest.approx(1.0)
    assert (cost.tokens, cost.share) == (80.0, 0.8)
    assert cost.operations == pytest.approx(1000 / 800)


def test_words(found: Comparison) -> None:
    said = sentences(found)
    assert any(text.startswith("null: other seeds alone move shapes by") for text in said)
    worse = next(text for text in said if text.startswith("ld-fast"))
    assert "worse than none" in worse
    unsure = next(text for text in said if text.startswith("ld is"))
    assert "not shown to be non-inferior" in unsure
    assert "prompts would show it" in unsure
    assert "margin" not in unsure or "points" in unsure
    wide = sentences(compare(found.run, margins={"shapes": 0.2}, resamples=2000))
    assert any(text.startswith(("ld is equivalent to none", "ld is non-inferior to none")) for text in wide)


def test_against_another_policy(scored: Run) -> None:
    found = compare(scored, "ld-fast", resamples=2000)
    gained = found.of("ld").results["shapes"].difference
    assert gained is not None
    assert (gained.signs.better, gained.signs.worse) == (14, 1)
    assert found.of("ld").results["psnr"].difference is not None
    assert found.policies[0].policy.label == "ld-fast"


def test_many_policies_are_adjusted_for(tmp_path: Path) -> None:
    wrong = {"none": set[int]()} | {f"ld:rho=0.{i}": {1, *range(10, 17)} if i == 1 else set() for i in range(1, 8)}
    run = painted_run(tmp_path / "run", wrong, count=40)
    score(run, open_scorer("shapes"))
    few, many = compare(run, labels=["ld:rho=0.1"], resamples=1000), compare(run, resamples=1000)
    assert (few.adjusted, many.adjusted) == (False, True)
    p = [one.of("ld:rho=0.1").results["shapes"].difference for one in (few, many)]
    assert p[0] is not None
    assert p[1] is not None
    assert p[1].p_value == pytest.approx(7 * p[0].p_value)
    assert "adjusted for their number (Holm)" in " ".join(notes(many))


def test_equal_runs_give_equal_results(scored: Run, found: Comparison, tmp_path: Path) -> None:
    again = compare(open_run(scored.folder), resamples=2000)
    assert json.dumps(as_json(again)) == json.dumps(as_json(found))
    assert as_markdown(again) == as_markdown(found)
    for one, path in ((found, tmp_path / "a.png"), (again, tmp_path / "b.png")):
        draw_chart(one, path)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert as_json(found)["scorers"]["psnr"]["cap_db"] == 60


def test_the_page_holds_every_table(found: Comparison) -> None:
    page = as_markdown(found)
    for table in tables(found):
        assert table.markdown() in page
    assert all(policy in page for policy in WRONG)
    assert "the same with other seeds" not in page
    assert Table("t", ("a|b", "c"), (("<x>", "1"),)).markdown().splitlines() == [
        "| a\\|b | c |",
        "| --- | ---: |",
        "| &lt;x> | 1 |",
    ]


def test_without_times_speed_is_counted(scored: Run, tmp_path: Path) -> None:
    shutil.copytree(scored.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/times")
    found = compare(open_run(tmp_path / "run"), resamples=1000)
    assert found.of("ld").cost.speedup is None
    draw_chart(found, tmp_path / "chart.png")
    assert "times faster: paired" not in " ".join(notes(found))


def test_changed_pictures_come_worst_first(found: Comparison) -> None:
    shown = changes(found, "shapes", "null")
    assert [change.prompt for change in shown if change.gained > 0] == sorted({0, 1}, key=lambda i: psnr(found, i))
    assert {change.prompt for change in shown if change.gained < 0} == {2, 3, 4}
    assert [change.gained for change in shown] == sorted(change.gained for change in shown)
    lost = [change.fidelity for change in shown if change.gained < 0]
    assert lost == sorted(lost)


def psnr(found: Comparison, prompt: int) -> float:
    return float(found.scores["psnr", "null"][prompt, 0])


def test_the_sheet_is_escaped_and_loads_nothing(tmp_path: Path) -> None:
    text = "a red circle <script>alert('x')</script> & \"more\""
    facts = {"claims": [["circle", "red"]]}
    prompts = tuple(EvaluationPrompt(f"{text} {i}", "<b>bold</b>", facts) for i in range(4))
    run = painted_run(
        tmp_path / "run with spaces & #", {"none": set(), "ld:rho=0.9,fill=zero": {0, 2}}, prompts=prompts
    )
    score(run, open_scorer("shapes"))
    found = compare(run, resamples=1000)
    assert write_sheet(found, sheet_path(found))
    page = sheet_path(found).read_text()
    assert "<script" not in page
    assert "<b>" not in page
    assert "http:" not in page
    assert "https:" not in page
    assert "&lt;script&gt;" in page
    places = [part.partition('"')[0] for part in page.split('src="')[1:]]
    assert len(places) == 4
    assert all((sheet_path(found).parent / unquote(place)).resolve().is_file() for place in places)


def test_runs_that_cannot_be_compared(scored: Run, tmp_path: Path) -> None:
    run = painted_run(tmp_path / "run", {"none": set(), "ld": {1}}, count=12)
    with pytest.raises(ConfigError, match="the run has no scores of any scorer"):
        compare(run)
    score(run, open_scorer("shapes"), ["none"])
    with pytest.raises(ConfigError, match="12 of 12 pictures of ld have no score of shapes"):
        compare(run)
    for options, said in (
        ({"scorers": ["ssim"]}, "no scores of ssim"),
        ({"reference": "ld-fats"}, "the run has no policy 'ld-fats'"),
        ({"labels": ["mine"]}, "the run has no policy 'mine'"),
    ):
        with pytest.raises(ConfigError, match=said):
            compare(scored, **options)
    score(run, open_scorer("psnr"))
    score(run, open_scorer("psnr", jpeg=95))
    with pytest.raises(ConfigError, match="look at different files"):
        compare(run, scorers=["psnr", "psnr-jpeg95"])
    assert scored_by(run) == ["shapes", "psnr"]
    (run.folder / "images/ld/00003/00000.png").unlink()
    score(run, open_scorer("shapes"), ["none"])
    with pytest.raises(IntegrityError, match="ld, prompt 3"):
        compare(run, scorers=["psnr"])


def test_one_prompt_is_compared_without_intervals(tmp_path: Path) -> None:
    run = painted_run(tmp_path / "run", {"none": set(), "ld": {0}}, count=1)
    score(run, open_scorer("shapes"))
    found = compare(run, resamples=1000)
    assert "too few prompts to say anything" in sentences(found)[0]
    draw_chart(found, tmp_path / "chart.png")
    assert as_markdown(found)
