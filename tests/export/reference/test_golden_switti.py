"""The Switti reference model against the original, run by run."""

from __future__ import annotations

import pytest
import torch
from helpers.goldens import IMAGE
from helpers.switti_samples import CASES, RAW_LOGITS, SwittiGolden
from ldp_runtime.families.var import mixture_weights, progress
from ldp_runtime.schedule import relative_rope_table

from ldp_export.reference.switti import SwittiRun, SwittiText, generate

RUNS = ("greedy", "smooth", "nocfg")
LATENT = 1e-6


@pytest.fixture(scope="module", params=CASES)
def golden(request: pytest.FixtureRequest) -> SwittiGolden:
    return SwittiGolden(request.param)


def drawn(golden: SwittiGolden, name: str, forced: bool) -> tuple[SwittiRun, dict[str, torch.Tensor]]:
    expected, own = golden.arrays(f"run_{name}"), golden.run(name)
    codes = [expected[f"codes_{k}"] for k in range(len(golden.transformer.config.grids))] if forced else None
    text, null = golden.text(own["text"]), golden.text(own["null"])
    run = generate(golden.transformer, golden.vae, text, null, golden.settings(name), forced_codes=codes)
    return run, expected


@pytest.mark.parametrize("name", RUNS)
def test_teacher_forced(golden: SwittiGolden, name: str) -> None:
    run, expected = drawn(golden, name, forced=True)
    for k, raw in enumerate(run.raw_logits):
        assert (len(raw) == 2) == (f"logits_raw_uncond_{k}" in expected)
        pairs = [
            ("logits_raw_cond", raw[:1], RAW_LOGITS),
            ("logits_raw_uncond", raw[1:], RAW_LOGITS),
            ("logits_post", run.guided[k], 1e-4),
            ("fhat", run.accumulated[k], LATENT),
            ("next_in", run.inputs[k] if k + 1 < len(run.raw_logits) else None, LATENT),
        ]
        for key, got, tolerance in pairs:
            if got is not None and f"{key}_{k}" in expected:
                torch.testing.assert_close(got, expected[f"{key}_{k}"], atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", RUNS)
def test_free_runs_draw_the_same(golden: SwittiGolden, name: str) -> None:
    run, expected = drawn(golden, name, forced=False)
    for k, (indices, mixture) in enumerate(zip(run.indices, run.mixtures, strict=True)):
        if f"idx_{k}" in expected:
            assert indices is not None
            assert torch.equal(indices, expected[f"idx_{k}"].long()), f"scale {k}"
        else:
            assert mixture is not None
    with torch.no_grad():
        image = (golden.vae.decode(run.latent) + 1) / 2
    torch.testing.assert_close(image, expected["img_float01"], atol=IMAGE, rtol=0)


def test_draws_through_both_filters_are_the_originals(golden: SwittiGolden) -> None:
    """Every scale guided, top-k and top-p: what the original's seed draws."""
    run, expected = drawn(golden, "sampled", forced=False)
    for k, indices in enumerate(run.indices):
        assert indices is not None
        assert torch.equal(indices, expected[f"idx_{k}"].long()), f"scale {k}"


def test_each_image_of_a_batch_is_drawn_alone(golden: SwittiGolden) -> None:
    """The original's batch of two texts; guidance begins at scale 2, smoothing at scale 1."""
    expected, texts, settings = golden.arrays("run_batch2"), golden.text("batch"), golden.settings("batch2")
    for i in range(2):
        codes = [expected[f"codes_{k}"][i : i + 1] for k in range(len(golden.transformer.config.grids))]
        text = SwittiText(*(part[i : i + 1] for part in (texts.features, texts.pooled, texts.mask)))
        run = generate(golden.transformer, golden.vae, text, golden.text("null"), settings, forced_codes=codes)
        for k in range(4):
            pairs = (
                ("logits_raw_cond", run.raw_logits[k][:1], RAW_LOGITS),
                ("logits_raw_uncond", run.raw_logits[k][1:], RAW_LOGITS),
                ("logits_post", run.guided[k], 1e-4),
                ("fhat", run.accumulated[k], LATENT),
                ("next_in", run.inputs[k], LATENT),
            )
            for key, got, tolerance in pairs:
                if f"{key}_{k}" in expected:
                    torch.testing.assert_close(got, expected[f"{key}_{k}"][i : i + 1], atol=tolerance, rtol=0)


def test_a_negative_prompt_takes_the_place_of_the_empty_one(golden: SwittiGolden) -> None:
    run, expected = drawn(golden, "negprompt", forced=False)
    for key, logits in expected.items():
        row, scale = int("uncond" in key), int(key.rpartition("_")[2])
        torch.testing.assert_close(run.raw_logits[scale][row], logits[0], atol=RAW_LOGITS, rtol=0)


def test_mixtures_follow_from_guided_logits(golden: SwittiGolden) -> None:
    expected, settings = golden.arrays("run_smooth"), golden.settings("smooth")
    generator, scales = torch.Generator().manual_seed(settings.seed), len(golden.transformer.config.grids)
    seen = 0
    for k, tokens in enumerate(golden.transformer.config.schedule.tokens):
        noise = torch.empty(1, tokens, golden.transformer.config.codes).exponential_(1, generator=generator)
        if f"mix_{k}" in expected:
            got = mixture_weights(expected[f"logits_post_{k}"], noise, progress(k, scales))
            torch.testing.assert_close(got, expected[f"mix_{k}"], atol=1e-6, rtol=0)
            seen += 1
    assert seen


def test_what_a_prompt_becomes(golden: SwittiGolden) -> None:
    expected, text = golden.arrays("run_greedy"), golden.text("cond").beside(golden.text("null"))
    with torch.no_grad():
        prompt = golden.transformer.encode_prompt(text.features, text.pooled, text.mask)
        crop = golden.transformer.crop_condition()
    torch.testing.assert_close(prompt.condition, expected["cond_BD"], atol=1e-6, rtol=0)
    torch.testing.assert_close(crop.expand(2, -1), expected["crop_cond"], atol=1e-6, rtol=0)
    torch.testing.assert_close(prompt.modulations[0], expected["blk0_ada"], atol=1e-6, rtol=0)


def test_rotary_tables(golden: SwittiGolden) -> None:
    config = golden.transformer.config
    table = relative_rope_table(config.schedule, config.head_dim, config.rope_theta, config.rope_size)
    with_original = torch.stack([torch.cat(parts) for parts in zip(*table, strict=True)])
    assert with_original.shape == (2, config.schedule.total_tokens, config.head_dim // 2)
    assert torch.equal(with_original[:, 0], torch.tensor([1.0, 0.0])[:, None].expand(2, config.head_dim // 2))


def test_pruned_rows_see_kept_ones_alone(golden: SwittiGolden) -> None:
    """Inputs are the complete run's; kept rows see kept ones of their scale, and what is kept of earlier scales."""
    expected, greedy, model = golden.arrays("pruned"), golden.arrays("run_greedy"), golden.transformer
    schedule, scales = model.config.schedule, len(model.config.grids)
    text = golden.text("cond").beside(golden.text("null"))
    visible = [
        expected.get(f"keep_{k}", torch.ones(tokens, dtype=torch.bool)) for k, tokens in enumerate(schedule.tokens)
    ]
    inputs = torch.cat([greedy[f"next_in_{k}"].flatten(2).mT for k in range(scales - 1)], dim=1).expand(2, -1, -1)
    with torch.no_grad():
        prompt = model.encode_prompt(text.features, text.pooled, text.mask)
        logits = model(prompt, inputs, torch.cat(visible)).split(schedule.tokens, dim=1)
    for k in (scales - 2, scales - 1):
        for row, branch in enumerate(("cond", "uncond")):
            if f"logits_raw_{branch}_{k}" in expected:
                got = logits[k][row : row + 1, visible[k]]
                torch.testing.assert_close(got, expected[f"logits_raw_{branch}_{k}"], atol=RAW_LOGITS, rtol=0)
