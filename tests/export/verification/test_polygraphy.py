"""Polygraphy's command line takes the graphs of a bundle as they are."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.samples import spec
from helpers.shared import build_shared
from ldp_runtime.bundle.files import REFERENCE, Bundle

from ldp_export.building.build import BuildOptions, plan_build
from ldp_export.checkpoints.sources import Sources
from ldp_export.families.infinity import InfinityFamily
from ldp_export.verification.cases import ReferenceCases
from ldp_export.verification.replay import save_replay
from ldp_export.verification.verify import Check, Report


def polygraphy(*arguments: str | Path, rtx: bool = False) -> str:
    """What the command prints; it must succeed."""
    code = "from polygraphy.tools import main; import sys; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"POLYGRAPHY_USE_TENSORRT_RTX": str(int(rtx))},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_inspect(tiny_bundle: Bundle) -> None:
    shown = polygraphy("inspect", "model", tiny_bundle.path("blocks/model.onnx"), "--ignore-external-data")
    assert "past_k_0" in shown
    assert "ONNX Opset: 23" in shown


def test_run(tiny_bundle: Bundle) -> None:
    channels = tiny_bundle.manifest.model.latent_channels  # type: ignore[union-attr]
    shape = f"latent:[1,{channels},16,16]"
    shown = polygraphy("run", tiny_bundle.path("decoder/model.onnx"), "--onnxrt", "--input-shapes", shape)
    assert "PASSED" in shown


def test_convert(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """An engine from the same file, by Polygraphy alone."""
    channels = tiny_bundle.manifest.model.latent_channels  # type: ignore[union-attr]
    shape, engine = f"latent:[1,{channels},16,16]", tmp_path / "decoder.plan"
    sides = [word for side in ("min", "opt", "max") for word in (f"--trt-{side}-shapes", shape)]
    target = ("--convert-to", "trt", "--strongly-typed", "--compute-capabilities", "8.9")
    polygraphy("convert", tiny_bundle.path("decoder/model.onnx"), *target, *sides, "-o", engine, rtx=True)
    assert engine.stat().st_size > 2**20


def test_a_failed_comparison_can_be_run_again(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """The saved call of a scale gives the reference's logits: it failed in name only."""
    cases = ReferenceCases.load(tiny_bundle.path("reference")).cases
    for case in (cases[0], next(c for c in cases if c.pruned)):
        check = Check(f"{case.name}, scale 4, logits", False, 1.0, 1.2e-4)
        report = Report(tiny_bundle.manifest.digest, "rejected", "cpu", "here", {}, (check,))
        line = save_replay(tiny_bundle, report, tmp_path / case.name)
        assert line is not None
        command, *arguments = shlex.split(line)
        assert command == "polygraphy"
        assert "PASSED" in polygraphy(*arguments)
    other = Check("text_encoder, prompt 0", False, 1.0, 1e-5)
    nothing = Report(tiny_bundle.manifest.digest, "rejected", "cpu", "here", {}, (other,))
    assert save_replay(tiny_bundle, nothing, tmp_path / "nothing") is None
    compiled = replace(tiny_bundle, manifest=tiny_bundle.manifest.model_copy(update={"backend": "torch"}))
    assert save_replay(compiled, report, tmp_path / "compiled") is None


def test_of_models_of_which_the_first_scales_are_recorded(
    small_sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of those too large to be run to the end."""
    monkeypatch.setattr(InfinityFamily, "_recorded_scales", 3)
    sources = Sources(small_sources.transformer, small_sources.vae)
    bundle, _ = build_shared(plan_build(spec(), sources, BuildOptions(tmp_path / "bundle")))
    case = ReferenceCases.load(bundle.path(REFERENCE)).cases[0]
    check = Check(f"{case.name}, scale 2, logits", False, 1.0, 1.2e-4)
    report = Report(bundle.manifest.digest, "rejected", "cpu", "here", {}, (check,))
    assert save_replay(bundle, report, tmp_path / "replay") is not None
