"""The VAR reference model against the original, run by run."""

from __future__ import annotations

import pytest
import torch
from helpers.goldens import IMAGE, LATENT, SMOOTH
from helpers.var_samples import VarGolden
from ldp_runtime.families.var import filter_logits, mixture_weights, phi_index, progress, sample_index
from torch.nn import functional as F

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
        B, raw = len(forced[k]), SMOOTH if name == "smooth" and k else RAW_LOGITS
        pairs = (
            ("logits_raw_cond", run.raw_logits[k][:B], raw),
            ("logits_raw_uncond", run.raw_logits[k][B:], raw),
            ("logits_post", run.guided[k], 4 * raw),
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
    tolerance = SMOOTH if name == "smooth" else tolerance
    torch.testing.assert_close(image, expected["img_float01"].float(), atol=tolerance, rtol=0)


@torch.no_grad()
def test_mixtures_scale_by_scale(golden: VarGolden) -> None:
    """Mixtures amplify rounding, so each scale begins with what the original's logits of earlier scales give."""
    expected, settings, model = golden.arrays("run_smooth"), golden.settings("smooth"), golden.transformer
    schedule, B = model.config.schedule, len(golden.labels)
    labels = torch.tensor([*golden.labels, *[model.config.classes] * B])
    generator = torch.Generator().manual_seed(settings.seed)
    latent = torch.zeros(B, model.config.channels, *schedule.final_grid)
    inputs = torch.zeros(B, schedule.total_tokens - 1, model.config.channels)

    def noise() -> torch.Tensor:
        return torch.empty(filtered.shape).exponential_(1, generator=generator)

    for k in range(sum(key.startswith("logits_post") for key in expected)):
        raw = model(labels, inputs.repeat(2, 1, 1)).split(schedule.tokens, dim=1)[k]
        given = torch.cat((expected[f"logits_raw_cond_{k}"], expected[f"logits_raw_uncond_{k}"]))
        torch.testing.assert_close(raw, given, atol=RAW_LOGITS, rtol=0)
        share = progress(k, len(schedule))
        filtered = filter_logits(expected[f"logits_post_{k}"], settings.top_k, settings.top_p)
        assert torch.equal(sample_index(filtered, noise()), expected[f"idx_{k}"].long())
        codes = mixture_weights(filtered, noise(), share) @ golden.vae.quantize.embedding.weight
        codes = codes.transpose(1, 2).unflatten(2, schedule.grids[k])
        latent = latent + golden.vae.residual(codes, schedule.final_grid, k, len(schedule))
        step = F.interpolate(latent, size=schedule.grids[k + 1], mode="area").flatten(2).transpose(1, 2)
        inputs[:, schedule.offsets[k + 1] - 1 : schedule.offsets[k + 2] - 1] = step


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
