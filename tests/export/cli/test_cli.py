"""The command line on real bundles: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.errors import (
    Cancelled,
    CapacityError,
    CheckpointError,
    ConfigError,
    IncompatibleBundleError,
    IntegrityError,
    VerificationError,
)
from ldp_runtime.pruning.parse import parse_policy
from PIL import Image

from ldp_export.checkpoints.sources import Sources
from ldp_export.cli import _VERBS, main
from ldp_export.models.registry import MODELS


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def root(bundle: Bundle) -> Path:
    assert bundle.root is not None
    return bundle.root


def test_help_is_instant_because_it_loads_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from ldp_export.cli import main;"
        "r = CliRunner().invoke(main, ['--help']); assert r.exit_code == 0, r.output;"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'transformers', 'numpy', 'rich', 'matplotlib'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("verb", _VERBS)
def test_every_verb_has_help_with_examples(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.output
    assert f"ldp-export {verb}" in result.output


def test_help_names_every_policy_and_option() -> None:
    """The text is written by hand, so that help loads no policy."""
    import dataclasses

    from ldp_runtime import LHEP, TopK, TopP
    from ldp_runtime.pruning.parse import NAMED, STOPPING

    text = run("generate", "--help").output
    options = {field.name for rule in (LHEP, TopP, TopK) for field in dataclasses.fields(rule)} - {"fitted"}
    missing = [name for name in (*NAMED, *(f"{o}=" for o in (*options, *STOPPING, "skip_last"))) if name not in text]
    assert not missing


def test_models_lists_the_registry() -> None:
    rows = json.loads(run("models", "--all", "--json").output)
    assert [row["name"] for row in rows] == list(MODELS)
    listed = [row["name"] for row in json.loads(run("models", "--json").output)]
    assert listed == [name for name, spec in MODELS.items() if spec.embedded or spec.hub is not None]
    assert next(row for row in rows if row["name"] == "infinity-2b")["depth"] == 32
    assert "infinity-8b" in run("models").output


def test_generate_writes_images_and_traces(small_bundle: Bundle, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    result = run(
        "generate", root(small_bundle), "a red circle", "a blue star", "--num-images", "2", "--seed", "3",
        "--policy", "ld:fill=zero", "--output", tmp_path / "pictures", "--trace", trace, "--threads", "1", "--json",
        "--sheet", tmp_path / "sheet.png",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.width > 4 * 128
    assert sheet.height > 128
    rows = json.loads(result.output)
    assert [row["seed"] for row in rows] == [3, 4, 5, 6]
    assert [row["prompt"] for row in rows] == ["a red circle"] * 2 + ["a blue star"] * 2
    assert all(Image.open(row["file"]).size == (64, 64) for row in rows)
    assert all(row["tokens"] < row["tokens_full"] for row in rows)
    traces = json.loads(trace.read_text())
    assert [t["tokens"] for t in traces] == [row["tokens"] for row in rows]
    assert traces[0]["scales"][-1]["kept"] is not None


def test_the_same_seed_writes_the_same_file(small_bundle: Bundle, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        made = run("generate", root(small_bundle), "a red circle", "--seed", "1", "--output", tmp_path / name)
        assert made.exit_code == 0, made.output
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("prompts", [["a red $_$ circle"], ["a red circle", "a $^$ star"]])
def test_explain_draws(small_bundle: Bundle, tmp_path: Path, prompts: list[str]) -> None:
    result = run("explain", root(small_bundle), *prompts, "--output", tmp_path / "why.png", "--threads", "1")
    assert result.exit_code == 0, result.output
    assert min(Image.open(tmp_path / "why.png").size) > 300


def test_inspect_says_what_a_bundle_holds(small_bundle: Bundle) -> None:
    report = json.loads(run("inspect", root(small_bundle), "--json").output)
    assert report["state"] == "verified"
    assert report["manifest"]["model"]["depth"] == 2
    text = run("inspect", root(small_bundle)).output
    assert "64x64" in text
    assert "verified" in text


def test_verify_passes_then_fails_on_wrong_engines(small_bundle: Bundle, tmp_path: Path) -> None:
    """A bundle whose weights and manifest agree, but whose engines are not the recorded model."""
    from ldp_runtime.bundle.files import MANIFEST, describe_files
    from ldp_runtime.bundle.manifest import Manifest

    from ldp_export.building.publish import make_current

    copy = tmp_path / "bundle"
    shutil.copytree(root(small_bundle), copy)
    assert run("verify", copy, "--threads", "1").exit_code == 0
    folder = copy / "versions" / small_bundle.manifest.version
    weights = folder / "decoder" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-4096:] = bytes(4096)
    weights.write_bytes(data)
    assert run("verify", copy).exit_code == IntegrityError.exit_code
    entry = describe_files(folder, ["decoder/weights.safetensors"])
    forged = small_bundle.manifest.model_copy(update={"files": small_bundle.manifest.files | entry}).sealed()
    assert isinstance(forged, Manifest)
    (folder / MANIFEST).write_text(forged.model_dump_json())
    folder.rename(folder.with_name(forged.version))
    make_current(copy, forged)
    result = run("verify", copy, "--json", "--threads", "1")
    assert result.exit_code == VerificationError.exit_code
    assert [json.loads(line)["state"] for line in result.stdout.splitlines()] == ["rejected"]
    refused = run("generate", copy, "a red circle", "--output", tmp_path / "x.png")
    assert refused.exit_code != 0
    assert "failed verification" in refused.output
    assert not (tmp_path / "x.png").exists()


def test_build_from_files_with_progress_as_json(small_sources: Sources, tmp_path: Path) -> None:
    assert small_sources.text_encoder is not None
    files = ["--weights", small_sources.transformer, "--vae", small_sources.vae]
    dry = run("build", *files, "--size", "0.06M", "--output", tmp_path / "b", "--dry-run", "--json")
    assert json.loads(dry.output)["graphs"] == ["prompt", "blocks", "decoder"]
    assert not (tmp_path / "b").exists()
    made = run("build", *files, "--size", "0.06M", "--output", tmp_path / "b", "--json")
    assert made.exit_code == 0, made.output
    events = [json.loads(line) for line in made.output.splitlines() if line.startswith('{"progress"')]
    assert {event["progress"]["stage"] for event in events} >= {"prompt", "blocks", "decoder", "reference", "verify"}
    again = run("build", *files, "--size", "0.06M", "--output", tmp_path / "b", "--json")
    states = [json.loads(line)["progress"]["state"] for line in again.output.splitlines() if "progress" in line]
    assert "reused" in states
    assert not [state for state in states[:-1] if state == "finished"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["build", "--model", "infinty-2b"], ConfigError.exit_code, "did you mean infinity-2b"),
        (["build", "--weights", "x.safetensors"], ConfigError.exit_code, "--vae"),
        (["build", "--weights", "x.st", "--vae", "y.st"], CheckpointError.exit_code, "does not exist"),
        (["build", "--size", "3M"], ConfigError.exit_code, "unknown size"),
        (["build", "--model", "infinity-layer16"], ConfigError.exit_code, "ever released"),
        (["generate", "nowhere", "a cat"], ConfigError.exit_code, "there is no bundle at"),
        (["calibrate", "nowhere"], ConfigError.exit_code, "neither --budget nor --fit-only"),
        (["verify", "nowhere"], ConfigError.exit_code, "no bundle"),
        (["bench", "nowhere"], ConfigError.exit_code, "no bundle"),
        (["calibrate", "nowhere", "--budget", "fast"], ConfigError.exit_code, "cannot read the budget"),
    ],
)
def test_bad_input_is_a_clear_error(
    arguments: list[str], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert says in result.output
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--height", "100", "--width", "64"], "it draws 64x64"),
        (["--policy", "quick"], "unknown policy"),
        (["--policy", "ld:rho=7"], "rho must lie"),
        (["--guidance", "nan"], "finite"),
        (["--temperature", "0"], "positive"),
        (["--num-images", "2"], "name a folder"),
    ],
)
def test_requests_that_cannot_be_served(small_bundle: Bundle, tmp_path: Path, arguments: list[str], says: str) -> None:
    result = run("generate", root(small_bundle), "a red circle", "--output", tmp_path / "x.png", *arguments)
    assert result.exit_code == ConfigError.exit_code
    assert says in result.output
    assert not list(tmp_path.iterdir())


def test_errors_are_json_for_programs(tmp_path: Path) -> None:
    arguments = ["-m", "ldp_export", "inspect", str(tmp_path / "none"), "--json"]
    made = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert made.returncode == ConfigError.exit_code
    assert json.loads(made.stdout)["error"]["code"] == "ConfigError"


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "B", "a red circle", "--output", "picture.jpg"],
        ["generate", "B", "a red circle", "--output", "notes/pictures"],
        ["generate", "B", "a red circle", "--trace", "notes/trace.json"],
        ["generate", "B", "a red circle", "--sheet", "sheet.txt"],
        ["generate", "B", "a red circle", "--device", "gpu"],
        ["generate", "B", "a red circle", "--policy", "absent.json"],
        ["explain", "B", "a red circle", "--output", "notes/why.png"],
        ["verify", "B", "--device", "gpu"],
        ["verify", "B", "--threads", "0"],
        ["convert", "latin.txt", "notes/out"],
        ["fetch", "infinity-2b", "--local-dir", "fetched", "--precision", "int8"],
        ["fetch", "infinity-2b", "--local-dir", "notes"],
        ["calibrate", "B", "--budget", "psnr>=28", "--seed", "-1"],
        ["calibrate", "B", "--budget", "psnr>=28", "--chart", "chart.txt"],
        ["calibrate", "B", "--fit-only", "--chart", "chart.png"],
        ["calibrate", "B", "--fit-only", "--prompts-file", "latin.txt"],
        ["bench", "B", "--output", "notes/bench.json"],
        ["bench", "B", "--batch", "1", "--batch", "999"],
        ["bench-compare", "a.json", "b.json"],
        ["bench", "--compare", "a.json", "b.json"],
        ["build", "--random-weights", "--model", "infinity-2b", "--depth", "0"],
        ["build", "--guidance", "nan"],
        ["build", "--temperature", "0"],
        ["build", "--text-encoder", "elsewhere"],
        ["build", "--local-dir", "elsewhere"],
        ["build", "--backend", "tensorrt-rtx", "--compute-capability", "8.9", "--profiles", "0"],
    ],
)
def test_what_cannot_be_is_refused_before_work(
    small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").write_text("a file where a folder is named")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    result = run(*(root(small_bundle) if argument == "B" else argument for argument in arguments))
    assert result.exit_code in (ConfigError.exit_code, IncompatibleBundleError.exit_code), result.output
    assert "error: " in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latin.txt", "notes"]


@pytest.mark.parametrize("reports", ["a system's folder", "a file"])
def test_verify_where_nothing_can_be_written(small_bundle: Bundle, tmp_path: Path, reports: str) -> None:
    """Another user's bundle, or a read-only disk: it verifies, says that nothing was kept, and exits by the result."""
    copy = tmp_path / "bundle"
    shutil.copytree(root(small_bundle), copy, ignore=shutil.ignore_patterns("stages", "reports"))
    if reports == "a file":
        (copy / "reports").write_text("x")
    else:
        (copy / "reports").symlink_to("/proc/sys/kernel")  # nobody can make a file there, not even root
    result = run("verify", copy, "--json", "--threads", "1")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["kept"] is False
    assert json.loads(result.stdout)["state"] == "verified"
    assert f"nothing was kept of this verification: {copy / 'reports'}" in result.stderr


@pytest.mark.parametrize("verb", ["generate", "explain"])
def test_a_policy_is_read_before_engines_are_opened(
    small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr("ldp_runtime.pipeline.pipeline.Pipeline.load", lambda *_, **__: pytest.fail("opened"))
    result = run(verb, root(small_bundle), "a red circle", "--policy", "quick")
    assert result.exit_code == ConfigError.exit_code, result.output
    assert "unknown policy" in result.output


@pytest.mark.parametrize(
    ("arguments", "folder", "work"),
    [
        (["calibrate", "B", "--fit-only"], "profiles", "ldp_runtime.pipeline.pipeline.Pipeline.load"),
    ],
)
def test_where_a_bundle_keeps_results_is_tried_before_work(
    small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], folder: str, work: str
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(root(small_bundle), copy, ignore=shutil.ignore_patterns("stages", folder))
    (copy / folder).write_text("a file")
    monkeypatch.setattr(work, lambda *_, **__: pytest.fail("begun"))
    result = run(*(copy if argument == "B" else argument for argument in arguments))
    assert result.exit_code == ConfigError.exit_code, result.output
    assert f"cannot write into {copy / folder}" in result.output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="takes a device that is always full")
def test_a_full_disk_is_typed(small_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "trace.json").symlink_to("/dev/full")
    drawn = ["generate", root(small_bundle), "a red circle", "--output", tmp_path]
    result = run(*drawn, "--trace", tmp_path / "trace.json")
    assert result.exit_code == CapacityError.exit_code, result.output
    assert "the disk is full" in result.output


def test_progress_shows_whatever_libraries_say(capsys: pytest.CaptureFixture[str]) -> None:
    """TensorRT names layers by their paths in the graph, which look like closing tags."""
    from ldp_export.cli.arguments.options import shown_progress
    from ldp_export.progress import ProgressEvent

    said = "Building {ForeignNode[/blocks.0/attn]}"
    with shown_progress(as_json=False) as progress:
        progress(ProgressEvent("blocks", 0, 1, "advanced", said))
    assert said in capsys.readouterr().err


def test_the_systems_errors_are_typed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/a/file")

    monkeypatch.setattr("ldp_runtime.bundle.files.open_bundle", unreadable)
    result = run("inspect", "bundle")
    assert result.exit_code == ConfigError.exit_code
    assert "/a/file: Permission denied" in result.output


@pytest.mark.parametrize(
    ("library", "arguments", "extra"),
    [
        ("transformers", ["build", "--output", "b"], "build"),
        ("onnxruntime", ["build", "--output", "b"], "cpu"),
        ("matplotlib", ["explain", "B", "a red circle", "a blue star"], "eval"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    small_bundle: Bundle, tmp_path: Path, library: str, arguments: list[str], extra: str
) -> None:
    code = f"import sys; sys.modules[{library!r}] = None; from ldp_export.cli import main; main()"
    given = [str(root(small_bundle)) if argument == "B" else argument for argument in arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *given]
    made = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert made.returncode != 0
    assert "Traceback" not in made.stderr
    assert f"ldp-export[{extra}]" in made.stderr
    assert not (tmp_path / "b" / "CURRENT").exists()


def test_ctrl_c_ends_a_command_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ldp_runtime.bundle.files.open_bundle", stopped)
    result = run("inspect", "bundle")
    assert result.exit_code == Cancelled.exit_code
    assert "stopped" in result.output


def test_a_png_says_how_it_was_drawn(small_bundle: Bundle, tmp_path: Path) -> None:
    prompt = "a red circle \N{SNOWMAN}"
    drawn = ["generate", root(small_bundle), prompt, "--seed", str(2**64 - 1), "--policy", "ld", "--output"]
    assert run(*drawn, tmp_path / "a.png").exit_code == 0
    texts = Image.open(tmp_path / "a.png").text  # pyright: ignore[reportAttributeAccessIssue]
    assert (texts["prompt"], texts["seed"], texts["model"]) == (prompt, str(2**64 - 1), "sample")
    assert parse_policy(texts["policy"]) == parse_policy("ld")
    assert texts["bundle"] == small_bundle.manifest.version
    assert texts["version"].startswith("ldp-export ")
    assert run(*drawn, tmp_path / "b.png", "--no-metadata").exit_code == 0
    plain = Image.open(tmp_path / "b.png")
    assert not plain.info
    assert plain.tobytes() == Image.open(tmp_path / "a.png").tobytes()


def test_what_is_drawn_is_kept_when_a_command_is_stopped(
    small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldp_runtime.pipeline.drawing import Drawing

    begun, start = [], Drawing.__init__

    def stopped_in_the_third(drawing: Drawing, *arguments: Any) -> None:
        begun.append(drawing)
        if len(begun) == 3:
            raise KeyboardInterrupt
        start(drawing, *arguments)

    monkeypatch.setattr(Drawing, "__init__", stopped_in_the_third)
    drawn = ["generate", root(small_bundle), "a red circle", "--num-images", "60", "--seed", "1", "--output"]
    result = run(*drawn, tmp_path)
    assert result.exit_code == Cancelled.exit_code
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"image-{i:03d}-seed{i + 1}.png" for i in range(8)]


def test_a_picture_that_cannot_be_finished_leaves_the_one_before(tmp_path: Path) -> None:
    from ldp_export.inspection.pictures import save_picture

    path, link = tmp_path / "a.png", tmp_path / "link.png"
    link.symlink_to(path)
    save_picture(Image.new("RGB", (4, 4), "red"), link)
    before = path.read_bytes()
    with pytest.raises(OSError, match="cannot write mode"):
        save_picture(Image.new("CMYK", (4, 4)).convert("LAB"), path)
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [path, link]
    assert link.is_symlink()


@pytest.mark.skipif(not hasattr(os, "kill"), reason="takes signals")
def test_sigterm_is_handled_as_ctrl_c(small_bundle: Bundle, tmp_path: Path) -> None:
    """Sent to a real process in the middle of its work."""
    command = [sys.executable, "-m", "ldp_export", "generate", str(root(small_bundle)), "a red circle"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    started = [*command, "--num-images", "1000", "--seed", "0", "--output", str(tmp_path)]
    with subprocess.Popen(started, stderr=subprocess.PIPE, text=True, env=environment) as process:
        while not list(tmp_path.glob("image-*")) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert process.returncode == Cancelled.exit_code, said
    assert "error: stopped" in said
    assert "Traceback" not in said
    assert all(Image.open(path).size == (64, 64) for path in tmp_path.iterdir())
