"""Verb `evaluate`: its steps one after the other, what dry runs say, and mistakes that are told before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from helpers.evaluation import tree
from helpers.var_samples import VAR_MODELS, build_var_bundle
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.errors import ConfigError, IntegrityError
from PIL import Image

from ldp_export.cli import main

PROMPTS = [("red", "circle"), ("blue", "star"), ("green", "circle"), ("red", "star")]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def answer(*arguments: object) -> dict[str, Any]:
    """The last line of what a step prints with --json; all of its lines are JSON."""
    made = run(*arguments, "--json")
    assert made.exit_code == 0, made.output
    return [json.loads(line) for line in made.stdout.splitlines()][-1]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    lines = [{"prompt": f"a {c} {k}", "tag": k, "claims": [[k, c]]} for c, k in PROMPTS]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def generate(small_bundle: Bundle, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    folder = tmp_path_factory.mktemp("run") / "run"
    policies = ["--policy", "ld", "--policy", "none:skip_last=1"]
    return ["generate", small_bundle.root, "--benchmark", prompts, "--output", folder, "--threads", 1, *policies]


def test_the_steps(generate: list[object]) -> None:
    folder = Path(str(generate[5]))
    planned = answer(*generate, "--dry-run")
    assert (planned["pictures"], planned["there"], planned["seconds"]) == (16, 0, None)
    assert not folder.exists()
    assert answer(*generate) == {"run": str(folder), "drawn": 16, "were_there": 0}
    images = tree(folder, "images")
    assert run(*generate).stdout == f"{folder}: 0 pictures drawn, 16 were there\n"
    assert tree(folder, "images") == images
    assert "0 pictures to draw, 16 are there" in run(*generate, "--dry-run").stdout
    assert "about" in run(*generate, "--policy", "ld-fast", "--dry-run").stdout

    scorers = ["--scorer", "shapes", "--scorer", "psnr"]
    planned = answer("score", folder, *scorers, "--dry-run")
    assert {name: plan["pictures"] for name, plan in planned["scorers"].items()} == {"shapes": 16, "psnr": 12}
    assert not (folder / "scores").exists()
    scored = answer("score", folder, *scorers)["scorers"]
    assert {name: (plan["scored"], plan["were_there"]) for name, plan in scored.items()} == {
        "shapes": (16, 0),
        "psnr": (12, 0),
    }
    assert "psnr: 0 pictures scored, 12 were" in run("score", folder, "--scorer", "psnr").stdout
    assert "0 pictures to score" in run("score", folder, *scorers, "--dry-run").stdout

    assert "against none, by shapes, psnr, on 4 prompts" in run("compare", folder, "--dry-run").stdout
    assert not (folder / "compare").exists()
    found = answer("compare", folder, "--resamples", 1000)
    assert [policy["label"] for policy in found["policies"]] == ["none", "null", "ld", "none:skip_last=1"]
    assert found["policies"][2]["results"]["shapes"]["difference"]["margin"] == 0.02
    assert found == json.loads((folder / "compare/compare.json").read_text())
    Image.open(folder / "compare/chart.png").verify()
    assert (folder / "compare/changed.html").read_text().startswith("<!doctype html>")
    page = (folder / "compare" / "compare.md").read_text()
    shown = run("compare", folder, "--resamples", 1000, "--margin", "shapes=5", "--reference", "ld").stdout
    for text in ("none:skip_last=1", "times faster", "psnr (db), against the unpruned picture", "in words"):
        assert text in page.lower()
    assert "a loss of 5 points" in shown
    assert "compare.md, compare.json, chart.png, changed.html" in shown
    assert not list(folder.rglob(".tmp-*"))


def test_steps_of_a_run_that_is_not_complete(small_bundle: Bundle, prompts: Path, tmp_path: Path) -> None:
    """A shard alone cannot be scored; what is missing is listed, and the next command is named."""
    given = ["generate", small_bundle.root, "--benchmark", prompts, "--output", tmp_path / "run", "--threads", 1]
    assert answer(*given, "--no-null", "--limit", 3, "--shard", "0/2")["drawn"] == 2
    refused = run("score", tmp_path / "run")
    assert refused.exit_code == IntegrityError.exit_code
    assert "none, prompt 1: it is not drawn" in refused.output
    assert answer(*given, "--no-null", "--limit", 3)["drawn"] == 1
    assert run("compare", tmp_path / "run").exit_code == ConfigError.exit_code
    assert run("score", tmp_path / "run", "--scorer", "shapes").exit_code == 0
    assert "the first 3 of 4 prompts" in run("compare", tmp_path / "run", "--resamples", 1000).stdout


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (["--benchmark", "shpes"], "did you mean 'shapes'"),
        (["--benchmark", "shapes"], "name a file of prompts"),
        (["--benchmark", "none.txt"], "name a text file"),
        (["--policy", "ld-fats"], "did you mean 'ld-fast'"),
        (["--policy", "null"], "give a saved policy another name"),
        (["--policy", "ld:rho=0.75", "--policy", "ld"], "leave one of them out"),
        (["--shard", "4/4"], "0/4 is the first of four"),
        (["--workers", "0"], "--workers 2"),
        (["--images", "0"], "leave --images out"),
        (["--limit", "-1"], "leave --limit out"),
        (["--seed", "-1"], "--seed 0"),
        (["--output", "mine"], "name a new folder"),
    ],
)
def test_mistakes_when_drawing(
    small_bundle: Bundle,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: list[str],
    hint: str,
) -> None:
    monkeypatch.setattr("ldp_runtime.pipeline.pipeline.Pipeline.load", lambda *_, **__: pytest.fail("opened"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    made = run("generate", small_bundle.root, "--benchmark", prompts, "--output", "run", *change)
    assert made.exit_code == ConfigError.exit_code, made.output
    assert hint in made.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["score", "mine"], "ldp-export evaluate generate BUNDLE"),
        (["compare", "mine"], "ldp-export evaluate generate BUNDLE"),
        (["folders", "mine", "mine"], "name a folder of .png"),
    ],
)
def test_mistakes_with_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    made = run(*arguments)
    assert made.exit_code == ConfigError.exit_code, made.output
    assert hint in made.output


def test_mistakes_with_a_run(generate: list[object]) -> None:
    folder = generate[5]
    assert run(*generate).exit_code == 0
    for arguments, hint in (
        (["score", folder, "--scorer", "psrn"], "did you mean 'psnr'"),
        (["score", folder, "--scorer", "lpips"], "--weights FOLDER"),
        (["score", folder, "--scorer", "psnr", "--policy", "ld-fast"], "it has none, null, ld"),
        (["compare", folder, "--scorer", "ssim"], "ldp-export evaluate score"),
        ([*generate, "--seed", 5], "name another folder"),
    ):
        made = run(*arguments)
        assert made.exit_code == ConfigError.exit_code, made.output
        assert hint in made.output
    assert run("score", folder, "--scorer", "psnr").exit_code == 0
    for text in ("psnr", "psnr=", "psnr=-1", "ssim=1", "psnr=nan"):
        assert "cannot read the margin" in run("compare", folder, "--scorer", "psnr", "--margin", text).output
    assert "did you mean 'compare'" in run("compair", folder).output


def test_classes(tmp_path: Path) -> None:
    """Models that read no text draw a file of class numbers."""
    bundle = build_var_bundle(VAR_MODELS["one phi, three scales"].write(tmp_path / "sources"), tmp_path / "bundle")
    classes, given = tmp_path / "classes.txt", ["generate", bundle.folder, "--output", tmp_path / "run"]
    for text, hint in (("a dog", "write numbers"), ("99999", "its")):
        classes.write_text(f"{text}\n")
        refused = run(*given, "--benchmark", classes)
        assert refused.exit_code == ConfigError.exit_code
        assert hint in refused.output
    classes.write_text("1\n0\n")
    assert answer(*given, "--benchmark", classes, "--threads", 1, "--no-null")["drawn"] == 2
    record = json.loads((tmp_path / "run/images/none/00000/index.jsonl").read_text())
    assert (record["text"], record["seed"]) == ("1", 0)


def test_folders(tmp_path: Path) -> None:
    for name, colour in (("a", (0, 0, 0)), ("b", (25, 25, 25))):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32), colour).save(tmp_path / name / "x.png")
    found = answer("folders", tmp_path / "a", tmp_path / "b")
    assert found["psnr"] == pytest.approx(20.17, abs=0.01)
    assert found["lpips"] is None
    assert "1 pictures, 1 of them equal" in run("folders", tmp_path / "a", tmp_path / "a").stdout
    assert answer("folders", tmp_path / "a", tmp_path / "a")["psnr"] is None
