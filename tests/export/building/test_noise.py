"""A bundle whose pipelines draw counter-based noise: built and verified as any other, and told apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from click.testing import CliRunner
from helpers.requests import image
from helpers.samples import random_texts, spec
from ldp_runtime import Pipeline, open_bundle
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.noise import CounterNoise

from ldp_export.building.build import build
from ldp_export.building.plan import BuildOptions, plan_build
from ldp_export.checkpoints.sources import Sources
from ldp_export.cli import main


def test_built_verified_and_drawn(small_bundle: Bundle, small_sources: Sources, tmp_path: Path) -> None:
    """Engines do not depend on noise: no stage is done anew, and the bundle is another version."""
    shutil.copytree(small_bundle.folder.parents[1], tmp_path / "bundle")
    plan = plan_build(spec(), small_sources, BuildOptions(tmp_path / "bundle", noise="counter"))
    assert plan.to_json()["noise"] == "counter"
    bundle, report = build(plan)
    assert report is not None
    assert (bundle.manifest.noise, bundle.state) == ("counter", "verified")
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "bundle")]).output
    assert "noise: counter-based, by seed, scale and position" in shown
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "bundle"), "--json"]).output
    assert json.loads(shown)["manifest"]["noise"] == "counter"
    with Pipeline.load(open_bundle(tmp_path / "bundle"), threads=1) as pipe:
        drawing = pipe.start([image(pipe, prompt_embeds=random_texts([4])[0], seed=3)])
        assert isinstance(drawing._states[0].noise, CounterNoise)
    assert bundle.manifest.version != small_bundle.manifest.version
    same = ("graphs", "limits", "model", "precision")
    assert [getattr(bundle.manifest, n) for n in same] == [getattr(small_bundle.manifest, n) for n in same]


def test_the_command_line_chooses_it(tmp_path: Path) -> None:
    for noise in ("generator", "counter"):
        command = ["build", "--noise", noise, "--output", str(tmp_path / "bundle"), "--dry-run", "--json"]
        assert json.loads(CliRunner().invoke(main, command).output)["noise"] == noise
