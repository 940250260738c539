"""HART through real ONNX Runtime engines: the original's goldens, policies, batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.goldens import IMAGE
from helpers.hart_samples import FREE_HARD, FREE_SMOOTH, HartGolden, known_instruction, write_qwen2
from ldp_runtime import Pipeline, Policy, ScaleEvent, StopAt, TopK
from ldp_runtime.errors import ConfigError
from ldp_runtime.families.hart import HartCodec
from ldp_runtime.schedule import ScaleSchedule

from ldp_export.checkpoints.qwen2vl import load_qwen2

TOLERANCE = {"greedy": FREE_HARD, "sampled": FREE_HARD, "nocfg": FREE_HARD, "topp": FREE_HARD, "smooth": FREE_SMOOTH}


@pytest.fixture(scope="module")
def golden() -> HartGolden:
    return HartGolden()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen2(tmp_path_factory.mktemp("qwen2"))


@pytest.fixture(scope="module")
def pipe(bundles: Path, golden: HartGolden, text: Path) -> Iterator[Pipeline]:
    with known_instruction():
        bundle = golden.build(bundles / golden.name, chunk=3, text=text)
    with Pipeline.load(bundle, threads=1) as opened:
        yield opened


def with_residual_of(golden: HartGolden, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the residual the noise of the original's run, which comes from another generator there."""
    ours, theirs = HartCodec.draw_noise, golden.residual_noise(name)

    def draw(codec: HartCodec, generator: torch.Generator, schedule: ScaleSchedule, scale: int) -> torch.Tensor:
        noise = ours(codec, generator, schedule, scale)
        if scale + 1 == len(schedule):
            noise[:, -theirs.shape[1] :] = theirs
        return noise

    monkeypatch.setattr(HartCodec, "draw_noise", draw)


@pytest.mark.parametrize("name", TOLERANCE)
def test_the_originals_pictures(pipe: Pipeline, golden: HartGolden, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = golden.arrays(f"run_{name}")
    with_residual_of(golden, name, monkeypatch)
    result = pipe(**golden.request(name), output_type="latent")
    torch.testing.assert_close(result.images, expected["fhat_final"], atol=TOLERANCE[name], rtol=0)
    if "img_float01" in expected:
        image = pipe(**golden.request(name), output_type="torch").images
        torch.testing.assert_close(image, expected["img_float01"], atol=IMAGE, rtol=0)


def test_the_residual_follows_the_seed(pipe: Pipeline, golden: HartGolden) -> None:
    """Greedy codes are the same for every seed; what differs is the last scale's residual, of at most 0.6."""
    request = golden.request("greedy")
    first, again, other = (pipe(**(request | {"seed": seed}), output_type="latent").images for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert 0.1 < float((first - other).abs().max()) < 1.2001


def test_a_batch_is_its_images_one_by_one(pipe: Pipeline, golden: HartGolden) -> None:
    """Texts of different lengths; codes drawn, then pruned up to the last scale, with its residual."""
    for policy in ("none", Policy(TopK(0.4, score="energy", scales=(6, 7)))):
        each = [golden.request("sampled") | _text(golden, i) | {"policy": policy, "seed": i} for i in range(2)]
        alone = [pipe(**request, output_type="latent").images[0] for request in each]
        together = {key: [request[key] for request in each] for key in ("prompt_embeds", "prompt_attention_mask")}
        images = pipe(**(each[0] | together | {"seed": [0, 1]}), output_type="latent").images
        torch.testing.assert_close(images, torch.stack(alone), atol=2e-5, rtol=0)


def _text(golden: HartGolden, i: int) -> dict[str, Any]:
    return {
        "prompt_embeds": golden.texts["batch_feat"][i],
        "prompt_attention_mask": golden.texts["batch_mask"][i],
    }


class TestPruning:
    def test_pruned_positions_of_the_last_scale_have_no_residual(self, pipe: Pipeline, golden: HartGolden) -> None:
        """They hold the fill, the codes of the scale before; kept ones are codes with their residual."""
        residuals: list[torch.Tensor] = []

        def see(event: ScaleEvent) -> None:
            residuals.append(event.residuals[0])

        policy = Policy(TopK((0.5, 0.25), score="distance"))  # FastVAR's shares of HART's two last scales
        request = golden.request("sampled") | {"policy": policy}
        trace = pipe(**request, output_type="latent", callback_on_scale=see).traces[0]
        filled = torch.nn.functional.interpolate(residuals[6][None], size=(12, 12), mode="nearest")[0]
        same = (filled == residuals[7]).all(dim=0)
        assert [scale.tokens for scale in trace.scales[6:]] == [40, 36]
        assert int(same.sum()) == 144 - 36

    def test_no_branch_no_guidance_of_the_residual(self, pipe: Pipeline, golden: HartGolden) -> None:
        """Once the unconditional branch stops, its rows are gone, and the residual has one row."""
        request = golden.request("greedy") | {"policy": Policy(guidance=StopAt(5))}
        trace = pipe(**request, output_type="latent").traces[0]
        assert [scale.rows for scale in trace.scales] == [2, 2, 2, 2, 2, 2, 1, 1]

    def test_a_run_that_ends_before_the_last_scale_has_no_residual(self, pipe: Pipeline, golden: HartGolden) -> None:
        """So seeds of greedy codes no longer differ."""
        request = golden.request("greedy") | {"policy": "none:skip_last=1"}
        first, other = (pipe(**(request | {"seed": seed}), output_type="latent") for seed in (1, 2))
        assert len(first.traces[0].scales) == 7
        assert torch.equal(first.images, other.images)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt_embeds": torch.zeros(3, 64)}, "must be \\[20, 64\\]"),
        ({"prompt_embeds": torch.zeros(20, 65)}, "must be \\[20, 64\\]"),
        ({"prompt_attention_mask": torch.ones(3)}, "must mark tokens"),
        ({"prompt_attention_mask": torch.zeros(20)}, "must mark tokens"),
        ({"prompt_attention_mask": torch.full((20,), 2)}, "must mark tokens"),
        ({"prompt_attention_mask": [torch.ones(20)] * 2}, "one mask for each"),
        ({"prompt_embeds": None, "prompt": "a cat"}, "without prompt_embeds"),
        ({"pooled_prompt_embeds": torch.zeros(3)}, "reads no pooled"),
        ({"aspect_ratio": 2.0}, "square"),
    ],
)
def test_what_it_cannot_draw_is_refused(
    pipe: Pipeline, golden: HartGolden, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        pipe(**(golden.request("greedy") | changed))


def test_without_a_mask_every_row_is_a_token(pipe: Pipeline, golden: HartGolden) -> None:
    request = golden.request("greedy")
    marked = pipe(**(request | {"prompt_attention_mask": torch.ones(20)}), output_type="latent").images
    plain = {key: value for key, value in request.items() if key != "prompt_attention_mask"}
    assert torch.equal(marked, pipe(**plain, output_type="latent").images)
    assert not torch.equal(marked, pipe(**request, output_type="latent").images)


class TestWords:
    def test_words_and_their_features_draw_the_same(self, pipe: Pipeline, text: Path, tmp_path: Path) -> None:
        with known_instruction():
            encoder = load_qwen2(text, 20)
        features = encoder.features(encoder.ids("A red circle", tmp_path / "tokenizer.json"))
        mask = torch.arange(20) >= 20 - len("A red circle")
        given = {"prompt_embeds": features[:, :-1], "prompt_attention_mask": mask}
        plain = {"seed": 4, "more_smooth": False, "output_type": "latent"}
        drawn = pipe("A red circle", **plain).images
        torch.testing.assert_close(drawn, pipe(**given, **plain).images, atol=1e-3, rtol=0)
        assert not torch.equal(drawn, pipe("A blue circle", **plain).images)

    def test_a_long_text_is_cut_and_no_empty_one_is_needed(self, pipe: Pipeline) -> None:
        plain = {"seed": 4, "more_smooth": False, "output_type": "latent"}
        long = pipe("abcdefghijklmnopqrstuvwxyz", **plain).images
        assert torch.equal(long, pipe("abcdefghijklmnopqrst", **plain).images)
        assert torch.equal(long, pipe("abcdefghijklmnopqrst", negative_prompt="", **plain).images)
