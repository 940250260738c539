"""The HART reference model against the original, run by run."""

from __future__ import annotations

import pytest
import torch
from helpers.goldens import IMAGE
from helpers.hart_samples import FREE_HARD, FREE_SMOOTH, GUIDED, LATENT, RAW_LOGITS, RESIDUAL, HartGolden
from ldp_runtime.families.hart import ramp_share, residual_weights
from ldp_runtime.families.var import filter_logits, mixture_weights

from ldp_export.models.hart import denoising_steps, waves
from ldp_export.reference.hart import HartRun, HartText, generate, residual_noise

HARD, SMOOTH = ("greedy", "sampled", "nocfg", "topp"), ("smooth", "nodiff", "batch2")


@pytest.fixture(scope="module")
def golden() -> HartGolden:
    return HartGolden()


def drawn(golden: HartGolden, name: str, forced: bool) -> tuple[HartRun, dict[str, torch.Tensor]]:
    """A run of the original, with its codes given or drawn again."""
    expected, own, vae = golden.arrays(f"run_{name}"), golden.run(name), golden.vae
    text, (grids, config) = golden.text(own["text"]), (golden.transformer.config.grids, golden.transformer.config)
    codes = None
    if forced:
        flat = [expected.get(f"h_{k}", vae.codes(expected[f"idx_{k}"].long())) for k in range(len(grids))]
        codes = [each.mT.unflatten(2, (side, side)) for each, side in zip(flat, grids, strict=True)]
    noise = residual_noise(own["noise_seed"], own["B"], grids[-1] ** 2, config.channels, config.residual_steps)
    return generate(golden.transformer, vae, text, golden.settings(name), noise, forced_codes=codes), expected


@pytest.mark.parametrize("name", [*HARD, *SMOOTH])
def test_teacher_forced(golden: HartGolden, name: str) -> None:
    run, expected = drawn(golden, name, forced=True)
    B, last, seen = golden.run(name)["B"], len(run.raw_logits) - 1, 0
    for k, raw in enumerate(run.raw_logits):
        assert torch.equal(run.indices[k], expected[f"idx_{k}"].long()), f"scale {k}"
        pairs = [
            ("logits_raw_cond", raw[:B], RAW_LOGITS),
            ("logits_raw_uncond", raw[B:], RAW_LOGITS),
            ("logits_post", run.guided[k], GUIDED),
            ("fhat", run.accumulated[k] if k < last else None, LATENT),
            ("next", run.inputs[k] if k < last else None, LATENT),
        ]
        for key, got, tolerance in pairs:
            if got is not None and f"{key}_{k}" in expected:
                torch.testing.assert_close(got, expected[f"{key}_{k}"], atol=tolerance, rtol=0)
                seen += 1
    assert seen == 38 or name != "greedy"
    if "diff_out" in expected:
        got = run.residual.flatten(2).mT.flatten(0, 1)
        torch.testing.assert_close(got, expected["diff_out"], atol=RESIDUAL, rtol=0)
    torch.testing.assert_close(run.latent, expected["fhat_final"], atol=RESIDUAL, rtol=0)


@pytest.mark.parametrize("name", [*HARD, *SMOOTH])
def test_free_runs_draw_the_same(golden: HartGolden, name: str) -> None:
    run, expected = drawn(golden, name, forced=False)
    for k, indices in enumerate(run.indices):
        assert torch.equal(indices, expected[f"idx_{k}"].long()), f"scale {k}"
    tolerance = FREE_HARD if name in HARD else FREE_SMOOTH
    torch.testing.assert_close(run.latent, expected["fhat_final"], atol=tolerance, rtol=0)
    with torch.no_grad():
        image = (golden.vae.decode(expected["fhat_final"]) + 1) / 2
    if "img_float01" in expected:
        torch.testing.assert_close(image, expected["img_float01"], atol=IMAGE, rtol=0)
    pixels = (image * 255).permute(0, 2, 3, 1).to(torch.uint8).int()
    assert int((pixels - expected["img_uint8"].int()).abs().max()) <= 1


@pytest.mark.parametrize("name", ["smooth"])
def test_mixtures_follow_from_guided_logits(golden: HartGolden, name: str) -> None:
    expected, settings, config = golden.arrays(f"run_{name}"), golden.settings(name), golden.transformer.config
    generator, scales, B = torch.Generator().manual_seed(settings.seed), len(config.grids), golden.run(name)["B"]
    seen = 0
    for k, tokens in enumerate(config.schedule.tokens):
        _, noise = (torch.empty(B, tokens, config.codes).exponential_(1, generator=generator) for _ in range(2))
        if f"logits_post_{k}" in expected:
            allowed = filter_logits(expected[f"logits_post_{k}"], settings.top_k_at(k), settings.top_p)
            mixed = mixture_weights(allowed, noise, ramp_share(k, scales)) @ golden.vae.quantize.embedding.weight
            torch.testing.assert_close(mixed, expected[f"h_{k}"], atol=1e-3, rtol=0)
            seen += 1
    assert seen >= 3


def test_what_a_prompt_becomes(golden: HartGolden) -> None:
    expected, rows, rope = golden.arrays("run_greedy"), golden.text("text").guided(), golden.arrays("rope")
    model = golden.transformer
    with torch.no_grad():
        context = model.context(rows.features)
        hidden, _ = model.layers[0](context + model.levels()[0], model.text_angles(rows.positions))
    torch.testing.assert_close(context, expected["context"], atol=2e-6, rtol=0)
    torch.testing.assert_close(hidden, expected["blk0_out_0"], atol=4e-6, rtol=0)
    assert torch.equal(rows.positions, rope["pos_ctx"])
    angles = {"ctx": model.text_angles(rows.positions)}
    angles |= {str(k): model.image_angles(k, rows.positions[:, -1]) for k in (1, 2, 4, 7)}
    for name, angle in angles.items():
        torch.testing.assert_close(angle.cos(), rope[f"cos_{name}"], atol=2e-6, rtol=0)
        torch.testing.assert_close(angle.sin(), rope[f"sin_{name}"], atol=2e-6, rtol=0)


def test_the_unconditional_text_is_the_same_row_everywhere(golden: HartGolden) -> None:
    """So its rows do not depend on the prompt, and its tokens begin at position 0."""
    with torch.no_grad():
        context = golden.transformer.context(golden.text("text").guided().features)[1]
    assert torch.equal(context, golden.transformer.context_embed.bias.expand_as(context))


@pytest.mark.parametrize("name", ["guided", "zero", "one"])
def test_the_residual_head_alone(golden: HartGolden, name: str) -> None:
    expected, model = golden.arrays("diffusion"), golden.transformer
    noise = torch.cat((expected[f"{name}_noise_init"][None], expected[f"{name}_noise_steps"][:-1])).transpose(0, 1)
    weights = residual_weights(1 + float(expected[f"{name}_cfg"]), guided=True)
    condition, trace = expected["z"].view(2, -1, model.config.width)[: len(weights)], []
    with torch.no_grad():
        got = model.residual(condition, noise, torch.tensor(weights), trace=trace)
    torch.testing.assert_close(got, expected[f"{name}_out"], atol=1e-5, rtol=0)
    # The starts of late steps are multiplied; the first ones are the noise alone.
    torch.testing.assert_close(torch.stack(trace), expected[f"{name}_x"], atol=1e-4, rtol=0)


def test_noise_schedule_of_the_residual_head(golden: HartGolden) -> None:
    expected, steps = golden.arrays("diffusion"), denoising_steps(8)[::-1]
    pairs = (
        ("timestep_map", "time"),
        ("sqrt_recip_alphas_cumprod", "of_sample"),
        ("sqrt_recipm1_alphas_cumprod", "of_noise"),
        ("posterior_mean_coef1", "keep_start"),
        ("posterior_mean_coef2", "keep_sample"),
        ("posterior_log_variance_clipped", "least"),
    )
    for key, name in pairs:
        got = torch.tensor([getattr(step, name) for step in steps], dtype=torch.float64)
        torch.testing.assert_close(got, expected[key].double(), rtol=1e-6, atol=1e-9)
    most = torch.tensor([step.most for step in steps], dtype=torch.float64)
    torch.testing.assert_close(most.exp(), expected["betas"], rtol=1e-6, atol=1e-9)
    with torch.no_grad():
        embedded = golden.transformer.diffloss.net.time_embed.mlp(waves(expected["timestep_map"]))
    torch.testing.assert_close(embedded, expected["time_embed"], atol=1e-5, rtol=0)


def test_a_ramp_repeats_its_last_share() -> None:
    assert [ramp_share(k, 5) for k in range(5)] == [0.0, 0.25, 0.5, 0.75, 0.75]


def test_pruned_rows_see_kept_ones_alone(golden: HartGolden) -> None:
    """Inputs are the complete run's; kept rows see the text, earlier scales, and kept ones of the last two."""
    expected, greedy, model = golden.arrays("pruned"), golden.arrays("run_greedy"), golden.transformer
    schedule, scales, text = model.config.schedule, len(model.config.grids), golden.text("text").guided()
    visible = [
        expected.get(f"keep_{k}", torch.ones(tokens, dtype=torch.bool)) for k, tokens in enumerate(schedule.tokens)
    ]
    inputs = [greedy[f"next_{k}"].flatten(2).mT.expand(2, -1, -1) for k in range(scales - 1)]
    with torch.no_grad():
        logits = model(text.features, text.positions, inputs, torch.cat(visible)).split(schedule.tokens, dim=1)
    for k in (scales - 2, scales - 1):
        for row, branch in enumerate(("cond", "uncond")):
            got = logits[k][row : row + 1, visible[k]]
            torch.testing.assert_close(got, expected[f"logits_raw_{branch}_{k}"], atol=RAW_LOGITS, rtol=0)


def test_the_vae_decodes_and_encodes(golden: HartGolden) -> None:
    expected = golden.arrays("vae_vectors")
    with torch.no_grad():
        decoded, encoded = golden.vae.decode(expected["latent"]), golden.vae.encode(expected["img_in"].float())
    torch.testing.assert_close(decoded, expected["decoded"].float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(encoded, expected["f"], atol=1e-4, rtol=0)


def test_padding_takes_the_position_before_it() -> None:
    mask = torch.tensor([[False, False, True, True], [True, True, False, False]])
    assert HartText.of(torch.zeros(2, 4, 3), mask).positions.tolist() == [[-1, -1, 0, 1], [0, 1, 1, 1]]
