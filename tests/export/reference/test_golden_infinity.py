"""The reference models against the originals, run by run."""

from __future__ import annotations

import pytest
import torch
from helpers.goldens import CASES, FOLDER, GUIDED_LOGITS, IMAGE, LATENT, MARGIN, RAW_LOGITS, Golden
from ldp_runtime.families.infinity import bits_to_codes, latent_to_tokens, tokens_to_latent
from ldp_runtime.sampling import logit_difference
from ldp_runtime.schedule import rope_table

from ldp_export.models.infinity_vae import quantize
from ldp_export.reference.infinity import generate

RUNS = ("greedy", "sampled", "sampled_nofilter", "insert", "nocfg", "negprompt", "batch2")


@pytest.fixture(scope="module", params=CASES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(FOLDER / request.param)


def golden_bits(run: dict[str, torch.Tensor], scales: int) -> list[torch.Tensor]:
    return [run[f"bits_tok_{k}"].bool() for k in range(scales)]


def test_rope(golden: Golden) -> None:
    cos, sin = (
        torch.cat(parts) for parts in zip(*rope_table(golden.schedule, golden.transformer.config.head_dim), strict=True)
    )
    expected = torch.from_numpy(golden.arrays("rope")["cos_sin"])
    torch.testing.assert_close(torch.stack((cos, sin)), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", RUNS)
def test_logits_teacher_forced(golden: Golden, name: str) -> None:
    expected, S = golden.run(name), len(golden.schedule)
    run = generate(
        golden.transformer,
        schedule=golden.schedule,
        layout=golden.layout,
        settings=golden.settings(name),
        forced_bits=golden_bits(expected, S),
        **golden.prompt(name),
    )
    compared = 0
    for k in range(S):
        B = run.bits[k].shape[0]
        for branch, raw in (("cond", run.raw_logits[k][:B]), ("uncond", run.raw_logits[k][B:])):
            if f"logits_raw_{branch}_{k}" in expected and len(raw):
                torch.testing.assert_close(raw, expected[f"logits_raw_{branch}_{k}"], atol=RAW_LOGITS, rtol=0)
                compared += 1
        if f"logits_post_{k}" in expected:
            guided = run.guided[k].unflatten(-1, (-1, 2))
            torch.testing.assert_close(guided, expected[f"logits_post_{k}"], atol=GUIDED_LOGITS, rtol=0)
        for attribute, key in ((run.accumulated, f"acc_{k}"), (run.inputs, f"next_in_{k}")):
            if key in expected:
                torch.testing.assert_close(attribute[k], expected[key], atol=LATENT, rtol=0)
    assert compared
    torch.testing.assert_close(run.latent, expected["z"], atol=LATENT, rtol=0)


@pytest.mark.parametrize("name", RUNS)
def test_bits_of_free_runs(golden: Golden, name: str) -> None:
    """Greedy and seeded bits are exactly the originals' (up to the first bit whose margin is under the noise)."""
    expected, settings = golden.run(name), golden.settings(name)
    run = generate(
        golden.transformer,
        schedule=golden.schedule,
        layout=golden.layout,
        settings=settings,
        **golden.prompt(name),
    )
    for k, bits in enumerate(golden_bits(expected, len(golden.schedule))):
        differing = run.bits[k] != bits
        if differing.any():
            margins = logit_difference(run.guided[k])[differing].abs()
            pytest.fail(f"scale {k}: {int(differing.sum())} bits differ, logit differences {margins.tolist()[:8]}")
    assert golden.config["runs"][name]["min_margin"] > MARGIN or name.startswith("sampled")


def test_image(golden: Golden) -> None:
    run = golden.run("greedy")
    with torch.no_grad():
        image = golden.vae.decode(run["z"])
    torch.testing.assert_close(image, run["img_float"], atol=IMAGE, rtol=0)
    pixels = ((image + 1) / 2 * 255).to(torch.uint8).permute(0, 2, 3, 1).flip(-1)
    difference = (pixels.int() - run["img_bgr_uint8"].view(pixels.shape).int()).abs()
    assert difference.max() <= 1


def test_encoder_and_quantiser(golden: Golden) -> None:
    expected = {key: torch.from_numpy(value) for key, value in golden.arrays("vae_encode").items()}
    with torch.no_grad():
        latent = golden.vae.encode(expected["img_in"].float())
        bits, total = quantize(expected["h"], golden.schedule, golden.layout)
        reconstruction = golden.vae.decode(total)
    torch.testing.assert_close(latent, expected["h"], atol=1e-4, rtol=0)
    torch.testing.assert_close(total, expected["z"], atol=LATENT, rtol=0)
    torch.testing.assert_close(reconstruction, expected["recon"].float(), atol=2e-3, rtol=0)
    for k, scale_bits in enumerate(bits):
        assert torch.equal(scale_bits, expected[f"bits_{k}"][:, 0])


def test_bits_in_both_layouts(golden: Golden) -> None:
    run = golden.run("greedy")
    for k, (h, w) in enumerate(golden.schedule.grids):
        tokens, vae = run[f"bits_tok_{k}"], run[f"bits_vae_{k}"][:, 0]
        assert torch.equal(latent_to_tokens(vae.permute(0, 3, 1, 2).float(), golden.layout), tokens)
        codes = tokens_to_latent(bits_to_codes(tokens, golden.layout).view(1, h, w, -1), golden.layout)
        assert torch.equal(codes > 0, vae.permute(0, 3, 1, 2).bool())


@torch.no_grad()
def test_all_scales_at_once_equal_the_loop(golden: Golden) -> None:
    """The teacher-forced forward (used for training and as an oracle) gives the logits of the scale loop."""
    run = golden.run("greedy")
    S, text = len(golden.schedule), golden.texts("text")[0][None]
    inputs = torch.cat([run[f"next_in_{k}"] for k in range(S - 1)], dim=1)
    logits = golden.transformer(text, None, inputs, golden.schedule)
    expected = torch.cat([run[f"logits_raw_cond_{k}"] for k in range(S)], dim=1)
    torch.testing.assert_close(logits, expected, atol=RAW_LOGITS, rtol=0)
