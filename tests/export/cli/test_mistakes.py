"""What people type that is almost right, and where results go: told before any work is done."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from ldp_runtime.bundle.files import TOKENIZER, Bundle
from ldp_runtime.errors import ConfigError, InternalError
from PIL import Image

from ldp_export.cli import main


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def root(bundle: Bundle) -> Path:
    assert bundle.root is not None
    return bundle.root


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldp_runtime.pipeline.pipeline.Pipeline.load", lambda *_, **__: pytest.fail("opened"))


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["a red circle", "BUNDLE"], "swap them: ldp-export generate "),
        (["BUNDLE", "x", "--policy", "LD"], "did you mean 'ld'?"),
        (["BUNDLE", "x", "--policy", "ld-fats"], "did you mean 'ld-fast'"),
        (["BUNDLE", "x", "--width", "512"], "add --height, or ask for a shape with --aspect-ratio 16:9"),
        (["BUNDLE", "x", "--height", "512"], "add --width"),
        (["BUNDLE", "x", "--height", "64", "--width", "64", "--aspect-ratio", "1"], "leave one of the two out"),
        (["BUNDLE", "x", "--output", "c.bmp"], "ends in .png or .webp"),
        (["BUNDLE", "x", "--output", "c.gif"], "ends in .png or .webp"),
        (["BUNDLE", "x", "y", "--output", "-"], "name a folder"),
        (["BUNDLE", "a", "red", "circle", "--output", "x.png"], "a prompt of several words is put in quotes"),
        (["BUNDLE", "x", "--size", "512x512"], "there is no --size; --height and --width say it"),
        (["BUNDLE", "x", "--output", "-", "--json"], "name a file for the picture"),
        (["BUNDLE", "x", "--output", "x.png", "--trace", "x.png"], "name a file for each"),
        (["BUNDLE", "x", "--output", "x.png", "--trace", "folder/../x.png"], "name a file for each"),
        (["BUNDLE", "x", "--sheet", "x.png", "--trace", "x.png"], "name a file for each"),
        (["BUNDLE", "x", "--output", "there.png"], "add --overwrite to replace it"),
        (["BUNDLE", "x", "--trace", "there.png"], "add --overwrite to replace it"),
        (["BUNDLE", "x", "--seed", "3"], "add --overwrite to replace it"),
    ],
)
@pytest.mark.usefixtures("unopened")
def test_generate(
    small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("there.png", "image-000-seed3.png"):
        (tmp_path / name).write_text("of yesterday")
    made = run("generate", *(str(root(small_bundle)) if word == "BUNDLE" else word for word in arguments))
    assert made.exit_code == ConfigError.exit_code, made.output
    assert hint in made.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image-000-seed3.png", "there.png"]


def test_the_folder_above_a_bundle_or_in_it(small_bundle: Bundle, tmp_path: Path) -> None:
    above = tmp_path / "all my bundles"
    above.mkdir()
    (above / "one").symlink_to(root(small_bundle))
    made = run("inspect", above)
    assert f"name a bundle in it: '{above / 'one'}'" in made.output
    made = run("inspect", root(small_bundle) / "versions")
    assert f"name the bundle itself: {root(small_bundle)}" in made.output
    made = run("inspect", tmp_path / "no such place")
    assert f"ldp-export build --output '{tmp_path / 'no such place'}'" in made.output


def test_a_verb_of_another_spelling() -> None:
    made = run("genrate", "bundle", "x")
    assert made.exit_code == 2
    assert "did you mean 'generate'?" in made.output


def test_files_given_in_the_wrong_order(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"x")
    made = run("convert", tmp_path / "new folder", tmp_path / "model.pth")
    assert made.exit_code == ConfigError.exit_code
    assert f"swap them: ldp-export convert {tmp_path / 'model.pth'} '{tmp_path / 'new folder'}'" in made.output


@pytest.mark.parametrize(("ratio", "wide"), [("16:9", True), ("9:16", False), ("0.5625", True), ("2", False)])
def test_aspect_ratios_are_width_to_height(small_bundle: Bundle, tmp_path: Path, ratio: str, wide: bool) -> None:
    made = run("generate", root(small_bundle), "x", "--aspect-ratio", ratio, "--output", tmp_path / "x.webp")
    assert made.exit_code == 0, made.output
    width, height = Image.open(tmp_path / "x.webp").size
    assert (width > height) == wide


@pytest.mark.parametrize("ratio", ["16:0", "wide", "1:2:3", ""])
def test_what_is_no_aspect_ratio(ratio: str) -> None:
    made = run("generate", "bundle", "x", "--aspect-ratio", ratio)
    assert made.exit_code == 2
    assert "16:9" in made.output


def test_a_prompt_as_an_option(small_bundle: Bundle, tmp_path: Path) -> None:
    drawn = ["--prompt", "a red circle", "--seed", "1", "--json"]
    made = run("generate", root(small_bundle), *drawn, "--output", tmp_path / "a.png")
    assert made.exit_code == 0, made.output
    (row,) = json.loads(made.stdout)
    assert row["prompt"] == "a red circle"
    again = run(
        "generate", root(small_bundle), "a red circle", "--seed", "1", "--overwrite", "--output", tmp_path / "a.webp"
    )
    assert f"{tmp_path / 'a.webp'}: seed 1" in again.output
    first, second = (Image.open(tmp_path / name) for name in ("a.png", "a.webp"))
    assert (first.format, second.format) == ("PNG", "WEBP")
    assert first.convert("RGB").tobytes() == second.convert("RGB").tobytes()


def test_a_picture_on_standard_output(small_bundle: Bundle, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ldp_export", "generate", root(small_bundle), "x", "--seed", "1", "--output", "-"]
    made = subprocess.run(command, capture_output=True, check=True, cwd=tmp_path, env=environment())
    assert made.stdout.startswith(b"\x89PNG")
    assert b"standard output: seed 1" in made.stderr
    assert not list(tmp_path.iterdir())


def environment() -> dict[str, str]:
    import os

    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def test_words_that_the_model_does_not_know(small_bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    from ldp_runtime.tokenizer import PromptTokenizer

    tokenizer = PromptTokenizer(small_bundle.path(TOKENIZER), 64)
    tokenizer("a red circle")
    assert not caplog.records
    tokenizer("a cat on a sofa, a red cat")
    (record,) = caplog.records
    assert "'cat', 'sofa'" in record.getMessage()
    assert "red" not in record.getMessage().partition(" of ")[0]


def test_results_of_long_work_are_not_replaced_unasked(small_bundle: Bundle, tmp_path: Path) -> None:
    there = tmp_path / "there.json"
    there.write_text("{}")
    made = run("bench", root(small_bundle), "--no-eager", "--output", there)
    assert made.exit_code == ConfigError.exit_code
    assert "add --overwrite" in made.output
    picture = tmp_path / "why.png"
    picture.write_text("of yesterday")
    made = run("explain", root(small_bundle), "a red circle", "--output", picture)
    assert made.exit_code == ConfigError.exit_code
    assert (there.read_text(), picture.read_text()) == ("{}", "of yesterday")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of a shell")
@pytest.mark.parametrize("verb", [["models", "--json", "--all"], ["build", "--json", "--output", "b"]])
def test_a_reader_that_has_seen_enough(verb: list[str], tmp_path: Path) -> None:
    """Its end is no error of ours: nothing is said."""
    command = [sys.executable, "-m", "ldp_export", *verb]
    made = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=environment())
    assert made.stdout is not None
    assert made.stderr is not None
    made.stdout.close()
    said = made.stderr.read()
    assert made.wait() == 141, said
    assert said == b""


def test_defects_are_to_be_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise InternalError("a cache without room")

    monkeypatch.setattr("ldp_runtime.bundle.files.open_bundle", broken)
    made = run("inspect", "bundle")
    assert made.exit_code == 70
    assert "please report it" in made.output
    assert "Traceback" in made.output
