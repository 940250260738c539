"""Scoring of runs: verdicts and fidelity of known pictures, resumption, and what must not be passed over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.evaluation import paint, painted_run, tree
from ldp_calibration import perceptual
from ldp_calibration.evaluation import score as scoring
from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt
from ldp_calibration.evaluation.run import IMAGES, SCORES, Run, open_run
from ldp_calibration.evaluation.score import plan_scores, read_scores, score, twins_of
from ldp_calibration.evaluation.scorers.choose import open_scorer
from ldp_calibration.evaluation.scorers.opening import Wish
from ldp_calibration.evaluation.scorers.scorer import Scorer
from ldp_calibration.fidelity import PSNR_CAP
from ldp_runtime.errors import ConfigError, IntegrityError

WRONG = {"none": {3}, "null": {5}, "ld": {3, 4}}


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return painted_run(tmp_path_factory.mktemp("score") / "run", WRONG, count=8, images=2)


@pytest.fixture
def run(painted: Run, tmp_path: Path) -> Run:
    shutil.copytree(painted.folder, tmp_path / "run")
    return open_run(tmp_path / "run")


def scores(run: Run, name: str, label: str) -> list[list[float]]:
    scorer = open_scorer(name)
    twins = twins_of(run, scorer.kind.needs_twin)
    return read_scores(run, scorer.name, scorer.fingerprint, run.settings.policy(label), twins).tolist()


def test_verdicts_of_known_pictures(run: Run) -> None:
    score(run, open_scorer("shapes"))
    for label, wrong in WRONG.items():
        assert scores(run, "shapes", label) == [[float(i not in wrong)] * 2 for i in range(8)]


def test_fidelity_to_the_twin(run: Run) -> None:
    unpruned = run.folder / IMAGES / "none"
    shutil.rmtree(run.folder / IMAGES / "ld")
    for i in range(8):
        paint(run, run.settings.policy("ld"), i, i not in WRONG["none"], noise=0)  # pictures equal to their twins
    assert unpruned.is_dir()
    for name, equal in (("psnr", PSNR_CAP), ("ssim", 1.0)):
        found = score(run, open_scorer(name))
        assert set(found.pictures) == {"null", "ld"}
        assert scores(run, name, "ld") == [[pytest.approx(equal, abs=1e-5)] * 2] * 8
        assert max(map(max, scores(run, name, "null"))) < equal


def test_scoring_goes_on_where_it_was(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = open_scorer("shapes")
    score(run, scorer)
    whole, path = tree(run.folder, SCORES), run.folder / SCORES / "shapes" / "ld.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[5:9], *lines[:3]]) + lines[3][:20])  # in another order, and cut off
    asked: list[str] = []
    plain = scoring.score_pictures
    monkeypatch.setattr(
        scoring,
        "score_pictures",
        lambda s, pictures, *rest: asked.extend(p.path.name for p in pictures) or plain(s, pictures, *rest),
    )
    plan = score(run, scorer)
    assert (plan.left, plan.there, len(asked)) == (16 - 7, 48 - 9, 9)
    assert tree(run.folder, SCORES) == whole
    score(run, scorer)
    assert len(asked) == 9


def test_a_picture_that_was_drawn_anew_is_scored_anew(run: Run) -> None:
    score(run, open_scorer("shapes"))
    score(run, open_scorer("psnr"))
    paint(run, run.settings.policy("none"), 0, False)
    shapes, psnr = plan_scores(run, open_scorer("shapes")), plan_scores(run, open_scorer("psnr"))
    assert {label: len(p) for label, p in shapes.missing.items()} == {"none": 2, "null": 0, "ld": 0}
    assert {label: len(p) for label, p in psnr.missing.items()} == {"null": 2, "ld": 2}  # their twin is another one
    score(run, open_scorer("shapes"))
    assert scores(run, "shapes", "none")[0] == [0.0, 0.0]
    with pytest.raises(ConfigError, match="2 of 16 pictures of ld have no score of psnr"):
        scores(run, "psnr", "ld")


def test_missing_and_damaged_pictures_are_listed(run: Run) -> None:
    folder = run.folder / IMAGES
    (folder / "ld/00001/00000.png").unlink()
    png = folder / "none/00002/00001.png"
    png.write_bytes(png.read_bytes()[:100])
    shutil.rmtree(folder / "null/00007")
    (folder / "null/00006/index.jsonl").write_text("{}")
    with pytest.raises(IntegrityError) as raised:
        score(run, open_scorer("shapes"))
    for said in (
        "pictures of 4 prompts are missing or damaged",
        "none, prompt 2: 00001.png is not the one that was drawn",
        "null, prompt 6: its index.jsonl is damaged",
        "null, prompt 7: it is not drawn",
        "ld, prompt 1: 00000.png is missing",
    ):
        assert said in raised.value.message
    assert not (run.folder / SCORES).exists()


def test_pictures_in_the_place_of_others_are_noticed(run: Run) -> None:
    folder = run.folder / IMAGES / "ld"
    (folder / "00000").rename(folder / "spare")
    shutil.copytree(folder / "00001", folder / "00000")
    with pytest.raises(IntegrityError, match=r"ld, prompt 0: its index\.jsonl is of other pictures"):
        score(run, open_scorer("shapes"))


def test_foreign_files_are_left_alone(run: Run) -> None:
    for name in ("images/ld/notes.txt", "images/ld/00000/00007.png", "images/ld/00000/.DS_Store", "scores/mine.txt"):
        (run.folder / name).parent.mkdir(exist_ok=True, parents=True)
        (run.folder / name).write_text("mine")
    score(run, open_scorer("shapes"))
    assert scores(run, "shapes", "ld")[0] == [1.0, 1.0]
    assert (run.folder / "scores/mine.txt").read_text() == "mine"


def test_scores_of_another_version_are_not_mixed(run: Run) -> None:
    scorer = open_scorer("ssim")
    score(run, scorer)
    before = tree(run.folder, SCORES)
    newer = Scorer(scorer.name, scorer.kind, {**scorer.settings, "torchmetrics": "9.9"}, scorer.score)
    with pytest.raises(ConfigError, match=r"are of another version \(torchmetrics: .* then, 9\.9 now\)"):
        score(run, newer)
    assert tree(run.folder, SCORES) == before
    score(run, newer, replace=True)
    assert json.loads((run.folder / SCORES / "ssim/scorer.json").read_text())["torchmetrics"] == "9.9"
    with pytest.raises(ConfigError, match="another version"):
        score(run, scorer)


def test_scores_of_some_policies_are_replaced_alone(run: Run) -> None:
    scorer = open_scorer("shapes")
    score(run, scorer)
    whole = tree(run.folder, SCORES)
    plan = score(run, scorer, ["ld"], replace=True)
    assert (plan.left, plan.there) == (16, 0)
    assert tree(run.folder, SCORES) == whole


def test_damaged_scores_are_made_again(run: Run) -> None:
    score(run, open_scorer("shapes"))
    whole, path = tree(run.folder, SCORES), run.folder / SCORES / "shapes" / "none.jsonl"
    path.write_bytes(b'\xff\x00\n[1]\n"x"\n{"score": "1"}\n{"scorer": 3}\n')
    assert plan_scores(run, open_scorer("shapes")).left == 16
    score(run, open_scorer("shapes"))
    assert tree(run.folder, SCORES) == whole
    (run.folder / SCORES / "shapes" / "scorer.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"scorer\.json cannot be read"):
        score(run, open_scorer("shapes"))


def test_jpeg_figures_have_a_name_of_their_own(run: Run) -> None:
    plain, jpeg = open_scorer("psnr"), open_scorer("psnr", jpeg=95)
    assert (plain.name, jpeg.name) == ("psnr", "psnr-jpeg95")
    assert plain.fingerprint != jpeg.fingerprint
    score(run, plain)
    score(run, jpeg)
    assert {path.name for path in (run.folder / SCORES).iterdir()} == {"psnr", "psnr-jpeg95"}
    assert open_scorer("shapes", jpeg=95).name == "shapes"
    assert open_scorer("psnr-jpeg95").fingerprint == jpeg.fingerprint


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("psrn", {}, "unknown scorer 'psrn'"),
        ("psnr-jpeg200", {}, "JPEG quality"),
        ("lpips", {}, "lpips needs the weights of a network"),
        ("lpips", {"wish": Wish(weights=Path("/nowhere"))}, "the weights of LPIPS's network are not there"),
    ],
)
def test_scorers_that_cannot_be_opened(name: str, options: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        open_scorer(name, **options)
    assert raised.value.hint


def test_other_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / perceptual.VGG_WEIGHTS).write_bytes(b"weights of something else")
    with pytest.raises(IntegrityError, match="expected 397923af"):
        open_scorer("lpips", wish=Wish(weights=tmp_path))


def test_prompts_without_claims_are_refused_before_scoring(tmp_path: Path) -> None:
    prompt = EvaluationPrompt("a red circle", None, {"claims": [["circle", "red"]]})
    run = painted_run(tmp_path / "run", {"none": set()}, prompts=(prompt,))
    judged = Run(run.folder, run.settings, (EvaluationPrompt("a red circle"),))
    with pytest.raises(ConfigError, match="does not say which shapes it claims"):
        score(judged, open_scorer("shapes"))
