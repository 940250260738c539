"""`doctor` and `inspect`: what this machine can do, and what compiled engines are for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers.schedules import all_schedules
from ldp_runtime.bundle.files import MANIFEST, Bundle
from ldp_runtime.bundle.manifest import Manifest, TargetEntry
from ldp_runtime.engines.onnxruntime import check_provider
from ldp_runtime.errors import IncompatibleBundleError, LdpError

from ldp_export.builders.tensorrt.optimization_profiles import scale_profiles
from ldp_export.building.choose_builder import BackendOptions, choose_builder
from ldp_export.cli import main
from ldp_export.inspection.doctor import Verdict, examine
from ldp_export.models.registry import find_model


class TestDoctor:
    def test_verdicts_are_what_the_runtime_does(self) -> None:
        run = {verdict.what: verdict for verdict in examine().run}
        assert run["onnxruntime bundles on the CPU"] == Verdict("onnxruntime bundles on the CPU", True)
        on_gpu = run["onnxruntime bundles on the GPU"]
        if on_gpu.works:
            check_provider(torch.device("cuda"))
            return
        with pytest.raises(LdpError) as refused:
            check_provider(torch.device("cuda"))
        assert (on_gpu.reason, on_gpu.fix) == (refused.value.message, refused.value.hint)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
    def test_without_a_gpu(self) -> None:
        diagnosis = examine()
        facts = {fact.name: fact for fact in diagnosis.machine}
        assert not facts["GPU"].found
        on_gpu = next(verdict for verdict in diagnosis.run if verdict.what.startswith("torch bundles"))
        assert not on_gpu.works
        assert "PyTorch finds no CUDA GPU" in on_gpu.reason
        for verdict in diagnosis.run:
            if verdict.what.startswith("tensorrt"):
                assert not verdict.works
                assert "need an NVIDIA GPU" in verdict.reason
                assert verdict.fix

    def test_what_is_missing_is_said_with_its_fix(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        build = {verdict.what: verdict for verdict in examine().build}
        assert not build["tensorrt-rtx engines"].works
        assert "'tensorrt_rtx', which is not installed" in build["tensorrt-rtx engines"].reason
        assert "ldp-export[tensorrt-rtx]" in build["tensorrt-rtx engines"].fix

    def test_without_a_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Said by `doctor`, and by a build before it begins."""
        monkeypatch.setenv("CXX", "no-such-compiler")
        verdict = next(verdict for verdict in examine().build if verdict.what == "torch engines")
        model = find_model("infinity-shapes")
        with pytest.raises(IncompatibleBundleError) as refused:
            choose_builder(BackendOptions("torch"), model, model.size, "float32")
        assert (verdict.works, verdict.reason, verdict.fix) == (False, refused.value.message, refused.value.hint)

    def test_command(self) -> None:
        result = CliRunner().invoke(main, ["doctor"])
        assert result.exit_code == 0
        assert "can be built here" in result.output
        content = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).output)
        assert {"machine", "packages", "build", "run"} == set(content)
        assert content["packages"]["torch"] == torch.__version__


def test_inspect_shows_profiles_as_the_scales_they_cover(small_bundle: Bundle, tmp_path: Path) -> None:
    """Of engines for GPUs that this machine does not have."""
    manifest = small_bundle.manifest
    profiles = scale_profiles(all_schedules("0.06M"), 3, 8, 16)
    graphs = dict(manifest.graphs)
    graphs["blocks"] = graphs["blocks"].model_copy(update={"profiles": profiles})
    target = TargetEntry(library="1.7.1.116", compute_capabilities=("8.6", "8.9"))
    changed = manifest.model_copy(update={"graphs": graphs, "backend": "tensorrt-rtx", "target": target})
    for name in manifest.files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(small_bundle.path(name))
    (tmp_path / MANIFEST).write_text(changed.sealed().model_dump_json())
    assert Manifest.model_validate_json((tmp_path / MANIFEST).read_text()).graphs["blocks"].profiles == profiles
    output = CliRunner().invoke(main, ["inspect", str(tmp_path)]).output
    assert "built by tensorrt-rtx 1.7.1.116 for compute capabilities 8.6, 8.9" in output
    assert "unverified" in output
    assert "blocks, profile 0: scales 0-2: 1-16 tokens, past 0-" in " ".join(output.split())
