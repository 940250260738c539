"""Calibration: budgets, bounds, the search on real engines, resumption, and profiles."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.evaluation import tree
from hypothesis import given
from hypothesis import strategies as st
from ldp_calibration.candidates import candidates, is_control
from ldp_calibration.cost import full_flops, scale_flops, trace_flops
from ldp_calibration.evaluation.run import IMAGES
from ldp_calibration.fidelity import PSNR_CAP, lpips, psnr_db, ssim
from ldp_calibration.search.budget import Budget
from ldp_calibration.search.calibrate import Calibration, _prove, calibrate, pareto, remembered_fit
from ldp_calibration.search.report import draw_front, make_saved, save_policy
from ldp_calibration.search.trials import Point, Report
from ldp_calibration.stats import bound
from ldp_runtime import LHEP, SATS, Pipeline, Policy, TopP, parse_policy
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.bundle.saved_policies import (
    SavedPolicy,
    list_saved,
    policy_of_command,
    resolve_policy,
    saved_folder,
    with_fits,
)
from ldp_runtime.errors import BudgetError, ConfigError, IncompatibleBundleError, IntegrityError
from ldp_runtime.pruning.fitted import Fitted
from ldp_runtime.pruning.parse import describe
from ldp_runtime.system.disk import exclusive

from ldp_export.cli import main

PROMPTS = [f"a {colour} {kind}" for colour in ("red", "green", "blue") for kind in ("circle", "square", "star")]
POLICIES = ["ld-paper:rho=0.9,fill=zero,delta=none", "ld-fast:p=0.4,fill=linear", "none:skip_last=1"]


@pytest.mark.parametrize(
    ("text", "measure", "least"),
    [
        ("psnr>=30", "psnr", 30),
        (" ssim >= 0.9 ", "ssim", 0.9),
        ("speedup>=2", "speedup", 2),
        ("lpips<=0.1", "lpips", 0.1),
    ],
)
def test_budgets_are_read(text: str, measure: str, least: float) -> None:
    assert Budget.parse(text) == Budget(measure, least)
    assert Budget.parse(str(Budget.parse(text))) == Budget.parse(text)


@pytest.mark.parametrize("text", ["psnr", "psnr>30", "psnr<=30", "lpips>=1", "psnr>=", "psnr>=-3", ""])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="budget"):
        Budget.parse(text)


@given(st.lists(st.floats(10, 60), min_size=2, max_size=40), st.integers(0, 5))
def test_bound_lies_below_the_mean_and_is_reproducible(values: list[float], seed: int) -> None:
    first = bound(values, seed)
    assert min(values) - 1e-9 <= first.limit <= first.mean + 1e-9
    assert first == bound(values, seed)
    assert first.mean - 1e-9 <= bound(values, seed, upper=True).limit <= max(values) + 1e-9


def test_fidelity_of_known_images() -> None:
    image = np.full((32, 32, 3), 0.5)
    assert psnr_db(image, image) == PSNR_CAP
    assert psnr_db(image + 0.1, image) == pytest.approx(20, abs=1e-6)
    noisy = image + np.random.default_rng(0).normal(0, 0.1, image.shape)
    assert ssim(image, image) == pytest.approx(1, abs=1e-6)
    assert ssim(noisy, image) < 0.9
    corner = np.zeros((32, 32), dtype=bool)
    corner[:4, :4] = True
    patched = image.copy()
    patched[corner] += 0.1
    assert psnr_db(patched, image, corner) == pytest.approx(20, abs=1e-6)
    assert psnr_db(patched, image, ~corner) == PSNR_CAP


def test_lpips_without_its_weights_says_so(
    small_pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="LPIPS"):
        lpips(np.zeros((64, 64, 3)), np.zeros((64, 64, 3)))
    with pytest.raises(ConfigError, match="LPIPS"):  # before any prompt is drawn
        calibrate(small_pipe, PROMPTS, Budget("lpips", 0.1), tmp_path / "w", policies=POLICIES)
    assert not (tmp_path / "w").exists()


def test_a_missing_library_ends_a_search_before_it_begins(
    small_pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(ConfigError, match="torchmetrics"):
        calibrate(small_pipe, PROMPTS, Budget("psnr", 5.0), tmp_path / "w", policies=POLICIES)
    assert not list(tmp_path.iterdir())


def test_every_candidate_is_a_policy_and_some_are_controls(small_pipe: Pipeline) -> None:
    texts = candidates(small_pipe.manifest)
    assert len(set(texts)) == len(texts)
    assert all(parse_policy(text) is not None for text in texts)
    assert any(map(is_control, texts))


def test_operations_of_the_full_model(small_pipe: Pipeline) -> None:
    model, schedule = small_pipe.manifest.model, small_pipe.manifest.schedule()
    trace = small_pipe("a red circle", seed=0, output_type="latent").traces[0]
    assert trace_flops(model, trace) == full_flops(model, schedule, guided=True)
    one = small_pipe("a red circle", seed=0, guidance_scale=1, output_type="latent").traces[0]
    assert 2 * trace_flops(model, one) == full_flops(model, schedule, guided=True)
    assert scale_flops(model, 4, 0, 2) == 2 * scale_flops(model, 4, 0, 1)


@pytest.fixture(scope="module")
def found(small_pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> tuple[Calibration, Path]:
    work = tmp_path_factory.mktemp("calibration") / "work"
    return calibrate(small_pipe, PROMPTS, Budget("psnr", 5.0), work, policies=POLICIES), work


def test_the_cheapest_policy_within_the_budget_is_chosen(found: tuple[Calibration, Path]) -> None:
    calibration, _ = found
    able = [p for p in calibration.searched if p.meets(calibration.budget) and not is_control(p.policy)]
    fastest = max(able, key=lambda p: p.speedup)
    assert calibration.tries > 1 or calibration.chosen.policy == fastest.policy
    assert calibration.chosen.psnr.limit >= 5.0
    assert calibration.chosen.psnr.count == calibration.held_out_prompts
    assert calibration.search_prompts + calibration.held_out_prompts == len(PROMPTS)
    assert {p.policy for p in calibration.front} <= set(POLICIES)


class Dies(Exception):
    """Stands for whatever ends a process."""


class Counting:
    """A pipeline that counts what it draws, and dies at one drawing."""

    def __init__(self, pipe: Pipeline, last: int | None = None) -> None:
        self._pipe, self._last = pipe, last
        self.drawn = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    def draw(self, prompt: str, **options: Any) -> Any:
        if self.drawn == self._last:
            raise Dies
        self.drawn += 1
        return self._pipe.draw(prompt, **options)


def test_a_search_resumes_from_its_run(found: tuple[Calibration, Path], small_pipe: Pipeline, tmp_path: Path) -> None:
    """Wherever it died: nothing is drawn twice, half a line of scores is no score, and the result is the same."""
    calibration, work = found
    pipe = Counting(small_pipe)
    again = calibrate(pipe, PROMPTS, Budget("psnr", 5.0), work, policies=POLICIES)  # pyright: ignore
    assert (again.chosen, again.searched) == (calibration.chosen, calibration.searched)
    assert pipe.drawn == 2 + 2 * calibration.held_out_prompts  # timing alone draws anew
    whole = Counting(small_pipe)
    calibrate(whole, PROMPTS, Budget("psnr", 5.0), tmp_path / "whole", policies=POLICIES)  # pyright: ignore
    drawn = 0
    for last in (2, 9, 7, 100):
        pipe = Counting(small_pipe, last)
        with suppress(Dies):
            again = calibrate(pipe, PROMPTS, Budget("psnr", 5.0), tmp_path / "work", policies=POLICIES)  # pyright: ignore
        drawn += pipe.drawn
        for scores in (tmp_path / "work").rglob("scores/psnr/*.jsonl"):
            scores.write_bytes(scores.read_bytes()[:-9])  # as a kill leaves it
    assert (again.chosen, again.searched) == (calibration.chosen, calibration.searched)
    assert drawn <= whole.drawn + 3  # of the fits, which are written once all are seen
    (run,) = (tmp_path / "work").glob("run-*")
    (other,) = work.glob("run-*")
    assert tree(run, IMAGES) == tree(other, IMAGES)


def test_scores_of_another_version_are_made_anew(
    found: tuple[Calibration, Path], small_pipe: Pipeline, tmp_path: Path
) -> None:
    calibration, work = found
    shutil.copytree(work, tmp_path / "work")
    (run,) = (tmp_path / "work").glob("run-*")
    for content in ('{"scorer": "psnr", "version": "older"}', "{"):
        (run / "scores/psnr/scorer.json").write_text(content)
        pipe = Counting(small_pipe)
        again = calibrate(pipe, PROMPTS, Budget("psnr", 5.0), tmp_path / "work", policies=POLICIES)  # pyright: ignore
        assert again.searched == calibration.searched
        assert pipe.drawn == 2 + 2 * calibration.held_out_prompts


def test_two_searches_do_not_work_in_one_folder(found: tuple[Calibration, Path], small_pipe: Pipeline) -> None:
    with exclusive(found[1] / "lock", "test"), pytest.raises(ConfigError, match="another search is going on"):
        calibrate(small_pipe, PROMPTS, Budget("psnr", 5.0), found[1], policies=POLICIES)


def test_texts_of_one_policy_are_one_candidate(small_pipe: Pipeline, tmp_path: Path) -> None:
    texts = ["ld", "none", "ld:rho=0.75", "none:skip_last=0", "none:skip_last=1"]
    calibration = calibrate(small_pipe, PROMPTS, Budget("psnr", 5.0), tmp_path / "work", policies=texts)
    assert {p.policy for p in calibration.searched} <= {"ld", "none:skip_last=1"}
    assert calibration.chosen.policy == "ld"


def test_points_are_those_of_the_pipelines_pictures(found: tuple[Calibration, Path], small_pipe: Pipeline) -> None:
    """Of 8-bit pictures, as they are seen: rounding moves a PSNR little."""
    calibration, _ = found
    held = np.random.default_rng(0).permutation(len(PROMPTS))[: calibration.held_out_prompts]
    policy = with_fits(parse_policy(calibration.chosen.policy), calibration.fitted)
    model, psnrs, operations = small_pipe.manifest.model, list[float](), 0
    for i in map(int, held):
        image, full = (small_pipe.draw(PROMPTS[i], seed=i, policy=p, output_type="numpy") for p in (policy, Policy()))
        psnrs.append(psnr_db(image.images[0], full.images[0]))
        operations += trace_flops(model, image.traces[0])
    assert calibration.chosen.psnr.mean == pytest.approx(np.mean(psnrs), abs=0.05)
    full_operations = len(held) * full_flops(model, small_pipe.manifest.schedule(), guided=True)
    assert calibration.chosen.speedup == pytest.approx(full_operations / operations)


def test_what_is_fitted_to_other_prompts_is_fitted_anew(small_pipe: Pipeline, tmp_path: Path) -> None:
    """As many, but others: some may be held out now. A damaged file is no reason to fail."""
    prompts, work = PROMPTS[:8], tmp_path / "search.fits"

    def fitted(chosen: list[int]) -> Fitted:
        return remembered_fit(small_pipe, prompts, chosen, 0, work, lambda done, total, detail: None)

    first, second = fitted([0, 1, 2, 3]), fitted([4, 5, 6, 7])
    assert first.to_json() != second.to_json()
    work.write_text("{")
    assert fitted([0, 1, 2, 3]).to_json() == first.to_json()


def test_unknown_scales_are_refused_before_the_search(small_pipe: Pipeline, tmp_path: Path) -> None:
    work = tmp_path / "work"
    with pytest.raises(ConfigError, match="do not exist"):
        calibrate(small_pipe, PROMPTS, Budget.parse("psnr>=10"), work, policies=["ld:scales=40"])
    assert not list(work.glob("run-*"))


def test_a_speed_budget_takes_the_best_quality_that_is_fast_enough(small_pipe: Pipeline, tmp_path: Path) -> None:
    found = calibrate(small_pipe, PROMPTS, Budget("speedup", 1.05), tmp_path / "w", policies=POLICIES)
    assert found.chosen.speedup >= 1.05


def test_an_impossible_budget_says_what_came_closest(small_pipe: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="closest on the search prompts: ld"):
        calibrate(small_pipe, PROMPTS, Budget("psnr", 59.9), tmp_path / "w", policies=POLICIES)
    with pytest.raises(ConfigError, match="too few"):
        calibrate(small_pipe, PROMPTS[:3], Budget("psnr", 20), tmp_path / "w")


def test_what_holds_on_the_search_prompts_only_is_called_so() -> None:
    """Two candidates are fine on prompts 0 to 5 and miss the budget on the others."""

    def measure(policies: Sequence[str], prompts: Sequence[int], report: Report) -> list[Point]:
        del report
        found = []
        for policy in policies:
            psnr = bound([40.0 if prompt < 6 else 10.0 + len(policy) for prompt in prompts])
            found.append(Point(policy, psnr, psnr, None, 2.0, (1.0,), 0.0))
        return found

    searched = measure(("ld:rho=0.5", "ld"), range(6), lambda *_: None)
    with pytest.raises(
        BudgetError, match=r"2 policies meet psnr>=30 on the 6 search prompts.*2 of them.*4 held-out"
    ) as e:
        _prove(measure, searched, 6, range(6, 10), Budget("psnr", 30.0), lambda *_: None)
    assert "closest there: ld:rho=0.5 with 20.0 dB" in e.value.message


def test_the_front_holds_what_nothing_beats(found: tuple[Calibration, Path]) -> None:
    front = pareto(found[0].searched)
    for one in front:
        beaten = [p for p in found[0].searched if p.speedup > one.speedup and p.psnr.mean > one.psnr.mean]
        assert not beaten


def test_a_profile_serves_its_own_bundle_only(
    found: tuple[Calibration, Path], small_bundle: Bundle, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    calibration, _ = found
    manifest = small_bundle.manifest
    path = save_policy(tmp_path, manifest, make_saved("careful", manifest, calibration))
    assert list_saved(tmp_path, manifest) == ["careful"]
    for text, root, resolve in (("careful", tmp_path, resolve_policy), (str(path), None, policy_of_command)):
        policy = resolve(text, root, manifest)
        assert policy is not None
        assert describe(policy) == describe(parse_policy(calibration.chosen.policy))
        assert resolve(text, root, manifest) is policy  # read once
        policy.check(manifest.schedule())  # with the numbers it needs
    assert resolve_policy("ld-paper:rho=0.4", tmp_path, manifest) == Policy(LHEP(0.4), SATS())
    older = SavedPolicy.model_validate({"name": "o", "policy": "ld", "digest": "0", "budget": "", "evidence": {}})
    assert older.to_policy() == Policy(TopP(0.8), SATS(9.0, then="reuse"))  # what `ld` was when it was written
    with pytest.raises(IncompatibleBundleError, match="was made for the bundle"):
        policy_of_command(str(path), None, tiny_bundle.manifest)
    with pytest.raises(ConfigError, match="profiles of this bundle are careful"):
        resolve_policy(str(path), tmp_path, manifest)  # a request names no files
    with pytest.raises(ConfigError, match="profiles of this bundle are careful"):
        resolve_policy("bold", tmp_path, manifest)
    path.write_text("{}")
    with pytest.raises(IntegrityError):
        resolve_policy("careful", tmp_path, manifest)


def test_the_chart_is_drawn(found: tuple[Calibration, Path], tmp_path: Path) -> None:
    draw_front(found[0], tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 10_000


def test_the_command_line(small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a prompts file to a profile that `generate` takes, on a copy of the bundle."""
    monkeypatch.setattr("ldp_calibration.search.calibrate.candidates", lambda manifest: POLICIES)
    root = tmp_path / "bundle"
    assert small_bundle.root is not None
    shutil.copytree(small_bundle.root, root)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    runner = CliRunner()
    arguments = ["calibrate", str(root), "--budget", "psnr>=5", "--prompts-file", str(prompts), "--name", "mine"]
    result = runner.invoke(main, [*arguments, "--threads", "1"])
    assert result.exit_code == 0, result.output
    folder = saved_folder(root, small_bundle.manifest)
    assert json.loads((folder / "mine.json").read_text())["budget"] == "psnr>=5"
    drawn = runner.invoke(
        main, ["generate", str(root), "a red circle", "--policy", "mine", "--output", str(tmp_path / "a.png")]
    )
    assert drawn.exit_code == 0, drawn.output
    with_fits = ["generate", str(root), "a red circle", "--policy", "ld:fill=linear"]
    drawn = runner.invoke(main, [*with_fits, "--output", str(tmp_path / "b.png")])
    assert drawn.exit_code == 0, drawn.output
    assert runner.invoke(main, ["calibrate", str(root), "--prompts-file", str(prompts)]).exit_code == 2
    both = ["calibrate", str(root), "--fit-only", "--budget", "psnr>=5", "--prompts-file", str(prompts)]
    assert runner.invoke(main, both).exit_code == ConfigError.exit_code
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    refused = runner.invoke(main, ["calibrate", str(root), "--budget", "psnr>=5", "--prompts-file", str(empty)])
    assert refused.exit_code == ConfigError.exit_code
