"""Pictures of the small world through every published scorer and layout to the end of a comparison.

Networks are small, with random weights: what is right of their numbers stands in the tests beside this one. Here it
is that files are found and refused, scores are kept, batches agree, and figures come out at the other end.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from helpers.evaluation import painted_run, tree
from helpers.evaluation_networks import judged_prompts, small_networks, write_answers
from helpers.formula_vgg import formula_vgg
from ldp_calibration import perceptual
from ldp_calibration.evaluation.benchmarks.prompts import as_lines
from ldp_calibration.evaluation.dpg.questions import read_questions
from ldp_calibration.evaluation.networks import weights
from ldp_calibration.evaluation.networks.weights import Networks
from ldp_calibration.evaluation.run import Run, open_run
from ldp_calibration.evaluation.score import known_scores, score
from ldp_calibration.evaluation.scorers.choose import open_scorer
from ldp_calibration.evaluation.scorers.opening import Wish
from ldp_calibration.evaluation.selftest import Example, selftest
from ldp_calibration.evaluation.summary import geneval_rows, summarised
from ldp_runtime.errors import ConfigError, IntegrityError
from PIL import Image

from ldp_export.cli import main

NETWORKS = ("hpsv2.1", "hpsv2.1-no-antialias", "hpsv2.0", "imagereward", "clip")


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Networks]:
    folder = tmp_path_factory.mktemp("weights")
    return folder, small_networks(folder)


@pytest.fixture
def wish(files: tuple[Path, Networks]) -> Wish:
    return Wish(weights=files[0], networks=files[1], batch=3)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return painted_run(tmp_path / "run", {"none": {1}, "ld": {1, 2}}, images=4, prompts=judged_prompts(3))


def through_all(run: Run, wish: Wish, answers: Path, scorers: Sequence[str], besides: Sequence[str] = ()) -> None:
    """Scores a run by published scorers and by answers, summarises and compares it; `besides` were scored before."""
    for policy in run.settings.policies:
        write_answers(run, policy.label, answers / f"{policy.label}.txt")
    files = {policy.label: answers / f"{policy.label}.txt" for policy in run.settings.policies}
    for name in (*scorers, "dpg"):
        scorer = open_scorer(name, wish=Wish(wish.weights, batch=wish.batch, answers=files, networks=wish.networks))
        plan = score(run, scorer)
        assert plan.left == len(run.prompts) * run.settings.images * len(run.settings.policies)
        assert score(run, scorer).left == 0
    figures = summarised(run)
    assert {one.scorer for one in figures} == {*scorers, "dpg"}
    assert len(figures) == len(run.settings.policies) * (len(scorers) + 1)
    compared = command("compare", run.folder, "--resamples", "1000", "--json")
    assert compared.exit_code == 0, compared.output
    found = json.loads(compared.stdout)
    assert set(found["scorers"]) == {*scorers, *besides, "dpg"}
    assert all({*scorers, "dpg"} <= set(one["results"]) for one in found["policies"])
    shown = command("summary", run.folder)
    assert "Overall score (avg. over tasks)" in shown.stdout
    assert "all tiles" in shown.stdout


def test_all_scorers_to_the_end(run: Run, wish: Wish, tmp_path: Path) -> None:
    through_all(run, wish, tmp_path, ("geneval", *NETWORKS))
    (row, *_) = geneval_rows(run, _scored(run, "geneval"))
    assert set(row) == {"filename", "tag", "prompt", "correct", "reason", "metadata", "details"}
    assert json.loads(row["metadata"])["prompt"] == run.prompts[0].text
    assert row["correct"] or row["reason"]


@pytest.mark.slow
def test_a_hundred_pictures_of_the_embedded_model(wish: Wish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn, laid out and scored as a user does it; `shapes` and likeness stand beside the published scorers.

    LPIPS looks through a network of weights by a formula: its figures mean nothing.
    """

    def done(*arguments: object) -> None:
        made = CliRunner().invoke(main, list(map(str, arguments)))
        assert made.exit_code == 0, made.output

    bundle, prompts, four, one = (tmp_path / name for name in ("bundle", "prompts.jsonl", "four", "one"))
    prompts.write_bytes(as_lines(judged_prompts(25)))
    done("build", "--output", bundle)
    generate = ("evaluate", "generate", bundle, "--benchmark", prompts, "--policy", "ld", "--no-null")
    done(*generate, "--images", 4, "--output", four)
    done(*generate, "--images", 1, "--output", one)
    for scorer in ("shapes", "psnr", "ssim"):
        done("evaluate", "score", four, "--scorer", scorer)
    vgg = tmp_path / "vgg" / perceptual.VGG_WEIGHTS
    vgg.parent.mkdir()
    torch.save(formula_vgg(), vgg)
    monkeypatch.setattr(perceptual, "VGG_HASH", hashlib.sha256(vgg.read_bytes()).hexdigest()[:8])
    done("evaluate", "score", four, "--scorer", "lpips", "--weights", vgg.parent)
    for layout, folder, count in (
        ("geneval", four, 125),
        ("imagereward", four, 100),
        ("dpg", four, 25),
        ("hpsv2", one, 25),
    ):
        out = tmp_path / layout
        done("evaluate", "export", folder, "--layout", layout, "--policy", "ld", "--output", out)
        assert len([path for path in (out / "ld").rglob("*") if path.is_file()]) == count
    run = open_run(four)
    assert [len(drawn.stem) for drawn in (four / "images" / "ld").rglob("*.png")] == [5] * 100
    through_all(run, wish, tmp_path, ("geneval", *NETWORKS), besides=("shapes", "psnr", "ssim", "lpips"))
    compared = json.loads((four / "compare" / "compare.json").read_text())
    by_label = {policy["label"]: policy["results"] for policy in compared["policies"]}
    assert by_label["none"]["shapes"]["mean"]["value"] > 0.8
    assert by_label["ld"]["psnr"]["mean"]["value"] > 20
    assert by_label["ld"]["lpips"]["mean"]["value"] > 0


def _scored(run: Run, name: str) -> list:
    from ldp_calibration.evaluation.score import scored_pictures, scorer_settings
    from ldp_calibration.evaluation.scorers.scorer import fingerprint

    mark = fingerprint(scorer_settings(run, name))
    return scored_pictures(run, name, mark, run.settings.policies[0], {})


@pytest.mark.parametrize("name", ["imagereward", "hpsv2.1"])
def test_batches_agree(run: Run, files: tuple[Path, Networks], name: str) -> None:
    found = []
    for batch in (1, 5):
        scorer = open_scorer(name, wish=Wish(weights=files[0], networks=files[1], batch=batch))
        score(run, scorer, ["none"], replace=True)
        found.append(
            [one.value for one in known_scores(run, name, scorer.fingerprint, run.settings.policies[0]).values()]
        )
    np.testing.assert_allclose(*found, rtol=0, atol=2e-5)
    assert len(set(found[0])) > 8  # pictures differ


def test_other_settings_are_other_scores(run: Run, files: tuple[Path, Networks]) -> None:
    folder, networks = files
    one = open_scorer("hpsv2.1", wish=Wish(weights=folder, networks=networks))
    others = (
        open_scorer("hpsv2.1", wish=Wish(weights=folder, networks=networks, precision="bfloat16")),
        open_scorer("hpsv2.1-no-antialias", wish=Wish(weights=folder, networks=networks)),
        open_scorer("hpsv2.0", wish=Wish(weights=folder, networks=networks)),
    )
    assert len({scorer.fingerprint for scorer in (one, *others)}) == 4
    score(run, one, ["none"])
    with pytest.raises(ConfigError, match="of another version"):
        score(run, others[0], ["none"])


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (Wish(), "hpsv2.1 needs weights"),
        (Wish(weights=Path("/nowhere")), "is not in /nowhere"),
        (Wish(device="gpu"), "cannot read the device"),
        (Wish(device="cuda:77"), "there is no cuda:77"),
        (Wish(precision="int4"), "unknown precision"),
        (Wish(batch=0), "at least 1 picture"),
    ],
)
def test_wishes_that_cannot_be_met(wish: Wish, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        open_scorer("hpsv2.1", wish=wish)
    assert raised.value.hint


def test_prompts_that_claim_nothing_are_refused(tmp_path: Path, wish: Wish, files: tuple[Path, Networks]) -> None:
    scorer = open_scorer("geneval", wish=wish)
    (prompt, *_) = judged_prompts(1)
    for include in (
        [],
        [{"class": "unicorn", "count": 1}],
        [{"class": "star"}],
        "star",
        [{"class": "star", "count": 0}],
    ):
        prompt.facts["include"] = include
        with pytest.raises(ConfigError, match="does not say which objects it claims"):
            scorer.check(prompt)
    (files[0] / weights.CLASSES).write_text("circle\n")
    try:
        with pytest.raises(IntegrityError, match="it holds 1 names, not 80"):
            open_scorer("geneval", wish=wish)
    finally:
        small_networks(files[0])


def test_answers_of_the_official_vqa(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dpg needs the answers"):
        open_scorer("dpg")
    detail = tmp_path / "none.txt"
    write_answers(run, "none", detail)
    whole = detail.read_text().splitlines(keepends=True)

    def scored(lines: Sequence[str]) -> None:
        detail.write_text("".join(lines))
        score(run, open_scorer("dpg", wish=Wish(answers={"none": detail})), ["none"], replace=True)

    scored(whole)
    for lines, said in (
        (whole[:-1], "1 of 2 answers are missing"),
        (["nonsense\n", *whole], "line 1: 'nonsense' is no answer"),
        ([*whole, whole[0].replace("thing 1", "thing 7")], "item0 has no question"),
        (whole[:1], "2 of 2 answers are missing: item1, tile 0"),
        ([whole[0].replace(", no", ", yes").replace("yes\n", "perhaps\n"), *whole], "answered twice, and differently"),
    ):
        with pytest.raises(ConfigError, match=said):
            scored(lines)
    detail.write_text("")
    with pytest.raises(ConfigError, match="holds no answers"):
        open_scorer("dpg", wish=Wish(answers={"none": detail}))
    scored(whole)
    unknown = command("score", run.folder, "--scorer", "dpg", "--answers", f"nnone={detail}")
    assert unknown.exit_code == ConfigError.exit_code
    assert "nnone" in unknown.output
    with pytest.raises(ConfigError, match="no answers about the pictures of ld"):
        score(run, open_scorer("dpg", wish=Wish(answers={"none": detail})), replace=True)


def test_what_was_refused_holds_nothing_up(run: Run, tmp_path: Path) -> None:
    """Settings without a score are no earlier version."""
    for policy in ("none", "ld"):
        write_answers(run, policy, tmp_path / f"{policy}.txt")
    files = {"none": tmp_path / "none.txt", "ld": tmp_path / "ld.txt"}
    with pytest.raises(ConfigError, match="no answers about the pictures of none"):
        score(run, open_scorer("dpg", wish=Wish(answers={"ld": files["ld"]})))
    assert score(run, open_scorer("dpg", wish=Wish(answers=files))).left == 24


def test_layouts_hold_the_pictures(run: Run, tmp_path: Path) -> None:
    for layout in ("geneval", "imagereward", "dpg"):
        made = command("export", run.folder, "--layout", layout, "--output", tmp_path / layout)
        assert made.exit_code == 0, made.output
        before = tree(tmp_path, layout)
        assert command("export", run.folder, "--layout", layout, "--output", tmp_path / layout).exit_code == 0
        assert tree(tmp_path, layout) == before
    first = run.folder / "images" / "none" / "00000"
    drawn = [(first / f"{j:05d}.png").read_bytes() for j in range(4)]
    geneval = tmp_path / "geneval" / "none" / "00000"
    assert [path.read_bytes() for path in sorted((geneval / "samples").iterdir())] == drawn
    line = json.loads((geneval / "metadata.jsonl").read_text())
    assert list(line) == ["tag", "include", "prompt"]
    assert (tmp_path / "imagereward" / "none" / "s-0_3.png").read_bytes() == drawn[3]
    asked = read_questions((tmp_path / "dpg" / "questions.csv").read_bytes())
    assert [one.text for one in asked[1:]] == [q["question"] for p in run.prompts for q in p.facts["questions"]]
    tiled = np.asarray(Image.open(tmp_path / "dpg" / "ld" / "item1.png"))
    side = tiled.shape[0] // 2
    pictures = [
        np.asarray(Image.open(io.BytesIO((run.folder / "images" / "ld" / "00001" / f"{j:05d}.png").read_bytes())))
        for j in range(4)
    ]
    corners = (tiled[:side, :side], tiled[:side, side:], tiled[side:, :side], tiled[side:, side:])
    for corner, picture in zip(corners, pictures, strict=True):
        np.testing.assert_array_equal(corner, picture)


def test_jpeg_files_for_scripts_that_read_no_others(tmp_path: Path) -> None:
    run = painted_run(tmp_path / "run", {"none": set()}, prompts=judged_prompts(2))
    made = command("export", run.folder, "--layout", "hpsv2", "--output", tmp_path / "out")
    assert made.exit_code == 0, made.output
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.jpg"))
    assert found == sorted(f"none/{prompt.tag}/{i:05d}.jpg" for i, prompt in enumerate(run.prompts))
    assert not list((tmp_path / "out").rglob("*.png"))


@pytest.mark.parametrize(
    ("layout", "options", "said"),
    [
        ("hpsv2", (), "holds 1 pictures of a prompt, and the run has 4"),
        ("genevla", (), "unknown layout"),
        ("dpg", ("--jpeg", "95"), "reads PNG files"),
        ("geneval", ("--policy", "ldd"), "has no policy"),
    ],
)
def test_layouts_that_cannot_be(run: Run, tmp_path: Path, layout: str, options: tuple[str, ...], said: str) -> None:
    made = command("export", run.folder, "--layout", layout, "--output", tmp_path / "out", *options)
    assert made.exit_code == ConfigError.exit_code
    assert said in made.output
    assert not (tmp_path / "out").exists()


def test_layouts_of_other_prompts_and_folders_are_refused(run: Run, tmp_path: Path) -> None:
    plain = painted_run(tmp_path / "plain", {"none": set()}, count=2, images=4)
    for layout in ("geneval", "imagereward", "dpg"):
        made = command("export", plain.folder, "--layout", layout, "--output", tmp_path / "out")
        assert f"the layout {layout} is not for the prompt" in made.output
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    made = command("export", run.folder, "--layout", "dpg", "--output", tmp_path / "out")
    assert "holds something else" in made.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_prompts_that_share_an_id_are_refused(tmp_path: Path) -> None:
    prompts = judged_prompts(2)
    prompts[1].facts["item_id"] = prompts[0].facts["item_id"]
    run = painted_run(tmp_path / "run", {"none": set()}, images=4, prompts=prompts)
    made = command("export", run.folder, "--layout", "dpg", "--output", tmp_path / "out")
    assert "1 files would be written twice: item0.png" in made.output
    prompts[1].facts.update(item_id="other", questions=[{"row": 2}])
    run = painted_run(tmp_path / "bare", {"none": set()}, images=4, prompts=prompts)
    made = command("export", run.folder, "--layout", "dpg", "--output", tmp_path / "out")
    assert "has no questions of DPG-Bench" in made.output
    assert not (tmp_path / "out").exists()


def test_pictures_that_are_no_squares(
    files: tuple[Path, Networks], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks take them; DPG's layout is refused before a file is written."""

    def painted(_: object, is_right: bool, noise: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(noise).integers(0, 256, (96, 250, 3), dtype=np.uint8))

    monkeypatch.setattr("helpers.evaluation.painted", painted)
    run = painted_run(tmp_path / "run", {"none": set()}, images=4, prompts=judged_prompts(1))
    wish = Wish(weights=files[0], networks=files[1], batch=4)
    for name in ("geneval", "hpsv2.1", "imagereward", "clip"):
        assert score(run, open_scorer(name, wish=wish)).left == 4
    made = command("export", run.folder, "--layout", "dpg", "--output", tmp_path / "out")
    assert "pictures of 250x96 are no squares" in made.output
    assert not (tmp_path / "out").exists()


def test_names_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    prompts = judged_prompts(1)
    prompts[0].facts["item_id"] = prompts[0].facts["id"] = "../../evil"
    run = painted_run(tmp_path / "run", {"none": set()}, images=4, prompts=prompts)
    for layout in ("dpg", "imagereward"):
        made = command("export", run.folder, "--layout", layout, "--output", tmp_path / "out")
        assert "is no name of a file" in made.output
    assert not (tmp_path / "out").exists()


def test_the_self_test(files: tuple[Path, Networks]) -> None:
    folder, networks = files
    wish = Wish(weights=folder, networks=networks)
    with pytest.raises(ConfigError, match="holds none of what the self-test needs"):
        selftest(wish)
    (folder / "selftest").mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / weights.HPS_EXAMPLE, "JPEG")
    (first, plain, *others) = selftest(wish)
    assert first.score is not None
    assert not first.is_right  # random weights
    assert all(one.is_right is None and "is not in" in one.why for one in others)
    assert (plain.example.scorer, plain.is_right) == ("hpsv2.0-no-antialias", False)
    assert plain.score is not None
    either = [Example(n, weights.HPS_EXAMPLE, "a", plain.score, 1e-4) for n in ("hpsv2.0", "hpsv2.0-no-antialias")]
    either = [replace(one, prompt=first.example.prompt) for one in either]
    aside, found = selftest(wish, either)
    assert (aside.is_right, found.is_right) == (None, True)
    assert aside.why == "the published score is that of hpsv2.0-no-antialias"
    right = Example("hpsv2.0", weights.HPS_EXAMPLE, first.example.prompt, first.score, 1e-4)
    assert [one.is_right for one in selftest(wish, [right])] == [True]
    known = Networks(networks.detector, networks.clip, networks.hps, networks.reward, {weights.HPS_EXAMPLE: "0000"})
    with pytest.raises(IntegrityError, match="is not the published file"):
        selftest(Wish(weights=folder, networks=known), [right])
    assert command("selftest", "--weights", folder / "nowhere").exit_code == ConfigError.exit_code


def test_a_run_without_published_scores_has_no_summary(run: Run) -> None:
    assert "no scores of a published benchmark" in command("summary", run.folder).output
    assert "psnr has no summary" in command("summary", run.folder, "--scorer", "psnr").output
    assert open_run(run.folder).prompts == run.prompts
