"""Class-conditional checkpoints of other sizes, from original files by path: reference loop and engines agree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.goldens import IMAGE, LATENT
from helpers.var_samples import VAR_MODELS, Held, build_var_bundle
from ldp_runtime import Pipeline
from ldp_runtime.bundle.files import Bundle, report_path
from ldp_runtime.errors import CheckpointError, ConfigError

from ldp_export.building.build import BuildOptions, plan_build
from ldp_export.checkpoints.infer import infer_spec
from ldp_export.checkpoints.sources import Sources
from ldp_export.checkpoints.var import load_var, load_var_vae
from ldp_export.hub.resolve import resolve_model
from ldp_export.models.registry import find_model
from ldp_export.models.sizes import VarConfig
from ldp_export.reference.var import VarSettings, generate


class Sample:
    def __init__(self, held: Held, sources: Sources, bundle: Bundle, pipe: Pipeline) -> None:
        self.held, self.sources, self.bundle, self.pipe = held, sources, bundle, pipe
        self.transformer, self.vae = load_var(sources.transformer), load_var_vae(sources.vae)


@pytest.fixture(scope="module", params=VAR_MODELS.values(), ids=list(VAR_MODELS))
def sample(request: pytest.FixtureRequest, bundles: Path) -> Iterator[Sample]:
    held: Held = request.param
    folder = bundles / f"held_{held.seed}"
    sources = held.write(folder / "sources")
    chunk = 2 if held.transformer.depth > 2 else None
    bundle = build_var_bundle(sources, folder / "bundle", chunk, 3.0)
    with Pipeline.load(bundle, threads=1) as pipe:
        yield Sample(held, sources, bundle, pipe)


def test_sizes_are_read_from_the_files(sample: Sample) -> None:
    spec = infer_spec(sample.sources)
    assert (spec.transformer, spec.vae) == (sample.held.transformer, sample.held.vae)


@pytest.mark.parametrize(("guidance", "top_k", "top_p"), [(3.0, 9, 0.9), (0.0, 0, 0.0), (2.0, 1, 0.0)])
def test_engines_equal_the_original_loop(sample: Sample, guidance: float, top_k: int, top_p: float) -> None:
    label = sample.held.transformer.classes - 1
    run = generate(sample.transformer, sample.vae, [label], VarSettings(guidance, top_k, top_p, 2))
    options = {"class_labels": label, "guidance_scale": guidance, "top_k": top_k, "top_p": top_p, "seed": 2}
    latent = sample.pipe(**options, output_type="latent").images  # type: ignore[arg-type]
    torch.testing.assert_close(latent, run.accumulated[-1], atol=2 * LATENT, rtol=0)
    image = sample.pipe(**options, output_type="torch").images  # type: ignore[arg-type]
    with torch.no_grad():
        expected = (sample.vae.decode(run.accumulated[-1]) + 1) / 2
    torch.testing.assert_close(image, expected, atol=IMAGE, rtol=0)


def test_the_bundle_is_verified_by_masked_and_free_runs(sample: Sample) -> None:
    bundle = sample.bundle
    assert bundle.root is not None
    report = json.loads(report_path(bundle.root, bundle.manifest).read_text())
    names = [check["name"] for check in report["checks"]]
    assert bundle.state == report["state"] == "verified"
    assert any("_pruned, scale" in name for name in names)
    assert any("drawn freely" in name for name in names)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return VAR_MODELS["one phi, three scales"].write(tmp_path_factory.mktemp("refused"))


class TestRefused:
    def changed(self, sources: Sources, folder: Path, **changes: torch.Tensor | None) -> Sources:
        state = torch.load(sources.transformer, weights_only=True)
        for key, value in changes.items():
            key = key.replace("__", ".")
            state.pop(key) if value is None else state.update({key: value})
        torch.save(state, folder / "changed.pth")
        return Sources(folder / "changed.pth", sources.vae)

    def test_missing_and_misshapen_keys_are_listed(self, sources: Sources, tmp_path: Path) -> None:
        broken = self.changed(sources, tmp_path, head__bias=None, pos_start=torch.zeros(1, 1, 8))
        with pytest.raises(CheckpointError, match=r"(?s)head\.bias.*pos_start \(1, 1, 8\)"):
            plan_build(infer_spec(broken), broken, BuildOptions(tmp_path / "out"))

    def test_scales_that_are_no_squares(self, sources: Sources, tmp_path: Path) -> None:
        broken = self.changed(sources, tmp_path, lvl_1L=torch.tensor([[0, 1, 1, 1]]))
        with pytest.raises(CheckpointError, match="no square grids"):
            infer_spec(broken)

    def test_another_models_vae(self, sources: Sources, tmp_path: Path) -> None:
        other = VAR_MODELS["a phi each, one block"].write(tmp_path)
        with pytest.raises(CheckpointError, match="100 codes of 12 channels, the VAE has 17 of 4"):
            infer_spec(Sources(sources.transformer, other.vae))

    def test_files_in_each_others_place(self, sources: Sources) -> None:
        with pytest.raises(CheckpointError, match=r"vae\.pth: the checkpoint lacks 'word_embed") as caught:
            infer_spec(Sources(sources.vae, sources.transformer))
        assert "--weights takes a transformer" in str(caught.value.hint)
        with pytest.raises(CheckpointError, match=r"var\.pth: the checkpoint lacks 'quantize"):
            infer_spec(Sources(sources.transformer, sources.transformer))

    def test_another_size_than_its_name(self, sources: Sources) -> None:
        with pytest.raises(CheckpointError, match="is not var-d16: it has 2 blocks of width 64"):
            resolve_model("var-d16", sources.transformer, sources.vae)

    def test_a_size_or_a_text_encoder(self, sources: Sources, tmp_path: Path) -> None:
        spec = infer_spec(sources)
        with pytest.raises(ConfigError, match="one size only"):
            plan_build(spec, sources, BuildOptions(tmp_path / "out", size="1M"))
        with pytest.raises(ConfigError, match="reads no text"):
            plan_build(spec, replace(sources, text_encoder=tmp_path), BuildOptions(tmp_path / "out"))

    def test_registry_names_follow_the_original_rules(self) -> None:
        for name, depth, shared in (("var-d16", 16, False), ("var-d30", 30, False), ("var-d36", 36, True)):
            spec = find_model(name)
            assert isinstance(spec.transformer, VarConfig)
            assert (spec.transformer.depth, spec.transformer.shared_ada) == (depth, shared)
