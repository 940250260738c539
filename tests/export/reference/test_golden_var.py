"""The VAR reference model against the original, run by run."""

from __future__ import annotations

import pytest
import torch
from helpers.goldens import IMAGE, LATENT, SMOOTH
from helpers.var_samples import VarGolden
from ldp_runtime.families.var import phi_index

from ldp_export.models.var_vae import quantize
from ldp_export.reference.var import generate

RAW_LOGITS = 3e-5
RUNS = ("greedy", "sampled", "smooth", "nocfg")


@pytest.fixture(scope="module")
def golden() -> VarGolden:
    return VarGolden()


@pytest.mark.parametrize("name", RUNS)
def test_teacher_forced(golden: VarGolden, name: str) -> None:
    expected, S = golden.arrays(f"run_{name}"), len(golden.transformer.config.grids)
    forced = [expected[f"idx_{k}"].long() for k in range(S)]
    run = generate(
        golden.transformer, golden.vae, golden.config["labels"], golden.settings(name), forced_indices=forced
    )
    for k in range(S):
        B = len(forced[k])
        pairs = (
            ("logits_raw_cond", run.raw_logits[k][:B], RAW_LOGITS),
            ("logits_raw_uncond", run.raw_logits[k][B:], RAW_LOGITS),
            ("logits_post", run.guided[k], 4 * RAW_LOGITS),
            ("fhat", run.accumulated[k], 2 * LATENT),
        )
        for key, got, tolerance in pairs:
            if f"{key}_{k}" in expected:
                torch.testing.assert_close(got, expected[f"{key}_{k}"], atol=tolerance, rtol=0)
        if f"next_{k}" in expected and k + 1 < S:
            torch.testing.assert_close(run.inputs[k], expected[f"next_{k}"], atol=2 * LATENT, rtol=0)
    tolerance = SMOOTH if name == "smooth" else 2 * LATENT
    torch.testing.assert_close(run.accumulated[-1], expected["fhat_final"], atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", RUNS)
def test_free_runs_draw_the_same_indices(golden: VarGolden, name: str) -> None:
    expected = golden.arrays(f"run_{name}")
    run = generate(golden.transformer, golden.vae, golden.config["labels"], golden.settings(name))
    for k, indices in enumerate(run.indices):
        assert torch.equal(indices, expected[f"idx_{k}"].long()), f"scale {k}"
    with torch.no_grad():
        image = (golden.vae.decode(run.accumulated[-1]) + 1) / 2
    tolerance = IMAGE if expected["img_float01"].dtype == torch.float32 else 1e-3
    torch.testing.assert_close(image, expected["img_float01"].float(), atol=tolerance, rtol=0)


def test_encoder_and_quantiser(golden: VarGolden) -> None:
    expected = golden.arrays("vae_encode")
    with torch.no_grad():
        latent = golden.vae.encode(expected["img_in"].float())
        indices, total = quantize(golden.vae, expected["f"], golden.transformer.config.schedule)
        reconstruction = golden.vae.decode(total)
    torch.testing.assert_close(latent, expected["f"], atol=1e-4, rtol=0)
    for k, found in enumerate(indices):
        assert torch.equal(found, expected[f"idx_{k}"].long()), f"scale {k}"
    recon = expected["recon"].float()
    recon = recon if recon.min() < 0 else recon * 2 - 1
    torch.testing.assert_close(reconstruction, recon, atol=4e-3, rtol=0)


def test_phi_indices() -> None:
    """The near-ties of ten scales are resolved as the original's rounding resolves them."""
    assert [phi_index(k, 10, 4) for k in range(10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert [phi_index(k, 7, 4) for k in range(7)] == [0, 0, 1, 2, 2, 3, 3]
    assert [phi_index(k, 5, 4) for k in range(5)] == [0, 1, 2, 2, 3]
