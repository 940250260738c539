"""Fits: that least squares finds what was put in, and what a whole bundle's fit is good for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ldp_calibration.search import fits
from ldp_calibration.search.report import save_fits
from ldp_runtime import LHEP, Pipeline
from ldp_runtime.bundle.saved_policies import FITTED, bundle_fits, list_saved, resolve_policy, saved_folder
from ldp_runtime.errors import ConfigError, IncompatibleBundleError, IntegrityError
from ldp_runtime.pruning import fills
from ldp_runtime.pruning.fitted import Fitted
from ldp_runtime.pruning.policy import Policy

PROMPTS = ["a red circle", "a small green star", "a blue square left of a red star", "a large blue circle"]


@pytest.fixture(scope="module")
def fitted(small_pipe: Pipeline) -> Fitted:
    return fits.fit(small_pipe, PROMPTS, range(4))


def test_notes_are_those_of_the_full_run(small_pipe: Pipeline) -> None:
    seen = fits.watch(small_pipe, PROMPTS[0], seed=5)
    full = small_pipe(PROMPTS[0], seed=5, output_type="latent")
    assert torch.equal(seen.latents[-1], full.images[0])
    assert [view.scale for view in seen.views] == list(range(1, 7))
    assert all(torch.equal(p.residual, r) for p, r in zip(seen.views, seen.residuals, strict=False))


def test_a_linear_world_is_recovered(small_pipe: Pipeline) -> None:
    """Residuals made by a known kernel from what was seen: the fit finds that kernel's guesses."""
    generator = torch.Generator().manual_seed(0)
    kernel, bias = torch.randn(8, 16, 3, 3, generator=generator), torch.randn(8, generator=generator)
    equations = fits.Normal()
    runs = [fits.watch(small_pipe, prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    for seen in runs:
        seen.residuals[6] = fills.linear(seen.views[5], kernel, bias)
        features, target = fits.fill_equations(seen, 6)
        equations.add(features, target, torch.ones(len(target)))
    found = fits.as_kernel(equations.solve(1e-6))
    guess = fills.linear(runs[0].views[5], *found)
    torch.testing.assert_close(guess, runs[0].residuals[6], atol=1e-2, rtol=1e-3)


def test_weights_pull_the_fit_to_where_they_are(small_pipe: Pipeline) -> None:
    """Two tokens disagree about one number; the heavier one has its way."""
    equations = fits.Normal()
    equations.add(torch.ones(2, 1), torch.tensor([[0.0], [10.0]]), torch.tensor([1.0, 9.0]))
    assert equations.solve(0).item() == pytest.approx(9.0)


def test_no_weight_is_negative() -> None:
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.random((200, 3)))
    target = 2 * features[:, 0] - 5 * features[:, 1]
    weights = fits.non_negative(features, target)
    assert min(weights) >= 0
    exact = fits.non_negative(features, 2 * features[:, 0] + 3 * features[:, 2])
    assert exact == pytest.approx((2, 0, 3), abs=1e-9)


@pytest.mark.parametrize(
    "policy",
    [
        "ld-paper:fill=linear,rho=0.3",
        "ld-fast:score=error,fill=linear",
        "top-k:share=0,fill=linear",
    ],
)
def test_a_bundle_with_fits_serves_policies_that_need_them(
    small_pipe: Pipeline, fitted: Fitted, policy: str, tmp_path: Path
) -> None:
    manifest = small_pipe.manifest
    with pytest.raises(ConfigError, match="--fit-only"):
        small_pipe(PROMPTS[0], seed=1, policy=policy)
    save_fits(tmp_path, manifest, fitted, PROMPTS)
    assert list_saved(tmp_path, manifest) == []
    result = small_pipe(PROMPTS[0], seed=1, policy=resolve_policy(policy, tmp_path, manifest), output_type="latent")
    assert result.images.isfinite().all()
    assert result.traces[0].tokens < result.traces[0].tokens_full


def test_fits_of_another_bundle_or_broken_ones_are_refused(
    small_pipe: Pipeline, fitted: Fitted, tmp_path: Path
) -> None:
    manifest = small_pipe.manifest
    path = save_fits(tmp_path, manifest, fitted, PROMPTS)
    needy = Policy(LHEP(fill="linear"))
    served = resolve_policy(needy, tmp_path, manifest)
    assert served is not None
    assert isinstance(served.tokens, LHEP)
    assert served.tokens.fitted is not None
    text = path.read_text()
    path.write_text(text.replace(manifest.digest, "0" * 64))
    with pytest.raises(IncompatibleBundleError):
        bundle_fits(tmp_path, manifest)
    path.write_text("{}")
    with pytest.raises(IntegrityError):
        resolve_policy(needy, tmp_path, manifest)
    assert saved_folder(tmp_path, manifest) / FITTED == path
    assert resolve_policy(Policy(), tmp_path, manifest) is not None  # asks for none


def test_too_few_prompts(small_pipe: Pipeline) -> None:
    with pytest.raises(ConfigError, match="too few"):
        fits.fit(small_pipe, PROMPTS[:2], range(2))


def test_decoded_latents_are_the_images(small_pipe: Pipeline) -> None:
    latents = small_pipe(PROMPTS[:2], seed=3, output_type="latent").images
    images = small_pipe(PROMPTS[:2], seed=3, output_type="torch").images
    assert torch.equal(small_pipe.decode(latents, "torch"), images)
    assert small_pipe.decode(latents)[0].size == (64, 64)
    with pytest.raises(ConfigError, match="latents must be"):
        small_pipe.decode(latents[0])
    with pytest.raises(ConfigError, match="output_type"):
        small_pipe.decode(latents, "jpeg")
