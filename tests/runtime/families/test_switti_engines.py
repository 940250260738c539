"""Switti through real ONNX Runtime engines: the original's goldens, policies, batches."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.goldens import IMAGE
from helpers.switti_samples import CASES, SwittiGolden, write_towers
from ldp_runtime import Pipeline, Policy, StopAt, TopK
from ldp_runtime.errors import ConfigError

#: A smoothed run left to run freely multiplies rounding by its steep mixtures.
LATENT = {"greedy": 1e-6, "nocfg": 1e-6, "sampled": 1e-6, "smooth": 7e-5}


@pytest.fixture(scope="module", params=CASES)
def golden(request: pytest.FixtureRequest) -> SwittiGolden:
    return SwittiGolden(request.param)


@pytest.fixture(scope="module")
def pipe(bundles: Path, golden: SwittiGolden) -> Iterator[Pipeline]:
    chunk = 2 if golden.transformer.config.keeps_past else None
    with Pipeline.load(golden.build(bundles / golden.name, chunk), threads=1) as opened:
        yield opened


@pytest.mark.parametrize("name", ["greedy", "sampled", "smooth", "nocfg"])
def test_the_originals_pictures(pipe: Pipeline, golden: SwittiGolden, name: str) -> None:
    expected = golden.arrays(f"run_{name}")
    result = pipe(**golden.request(name), output_type="latent")
    torch.testing.assert_close(result.images, expected["z"], atol=LATENT[name], rtol=0)
    image = pipe(**golden.request(name), output_type="torch").images
    torch.testing.assert_close(image, expected["img_float01"], atol=IMAGE, rtol=0)


def test_guidance_ends_with_its_branch(pipe: Pipeline, golden: SwittiGolden) -> None:
    """The unconditional rows are computed up to the last guided scale, and no longer."""
    trace = pipe(**golden.request("smooth"), output_type="latent").traces[0]
    end = golden.settings("smooth").first_unguided
    assert [scale.rows for scale in trace.scales] == [2 if k < end else 1 for k in range(len(trace.scales))]


class TestStoppingEarlier:
    def test_is_the_original_with_an_earlier_end(self, pipe: Pipeline, golden: SwittiGolden) -> None:
        """Rows, temperature and smoothing end together, as where the window ends."""
        request = golden.request("smooth")
        end = golden.settings("smooth").first_unguided - 1
        earlier = request | {
            "guidance_scale": [*request["guidance_scale"][:end], *[1.0] * 9][: len(request["guidance_scale"])]
        }
        stopped = pipe(**(request | {"policy": Policy(guidance=StopAt(end - 1))}), output_type="latent")
        assert torch.equal(stopped.images, pipe(**earlier, output_type="latent").images)

    def test_recalled_guidance_goes_on(self, pipe: Pipeline, golden: SwittiGolden) -> None:
        """Its scales stay smooth and without temperature until the window ends."""
        request, end = golden.request("smooth"), golden.settings("smooth").first_unguided
        recalled = pipe(**(request | {"policy": Policy(guidance=StopAt(end - 2, then="reuse"))}), output_type="latent")
        stopped = pipe(**(request | {"policy": Policy(guidance=StopAt(end - 2))}), output_type="latent")
        assert not torch.equal(recalled.images, stopped.images)
        assert [scale.rows for scale in recalled.traces[0].scales][end - 1] == 1


def test_a_batch_is_its_images_one_by_one(pipe: Pipeline, golden: SwittiGolden) -> None:
    """Texts of different lengths, smoothed and pruned."""
    for policy in ("none", Policy(TopK(0.4, score="energy", scales=(3, 4)))):
        each = [_of(golden, text, policy) for text in ("cond", "neg")]
        alone = [pipe(**request, seed=i, output_type="latent").images[0] for i, request in enumerate(each)]
        together: dict[str, Any] = {
            key: [request[key] for request in each] for key in each[0] if key.endswith("embeds")
        }
        images = pipe(**(each[0] | together), seed=[0, 1], output_type="latent").images
        torch.testing.assert_close(images, torch.stack(alone), atol=2e-5, rtol=0)


def _of(golden: SwittiGolden, text: str, policy: str | Policy) -> dict[str, Any]:
    return {**golden._embeds("prompt", text), **golden._embeds("negative_prompt", "null"), "policy": policy}


def test_the_pooled_vector_is_the_last_tokens_unless_given(pipe: Pipeline, golden: SwittiGolden) -> None:
    features = golden.texts["cond_context"][0, :9]
    last = features[-1, -golden.transformer.config.pooled_channels :]
    given = {"prompt_embeds": features, "negative_prompt_embeds": features[:2], "seed": 3, "output_type": "latent"}
    derived = pipe(**given).images
    assert torch.equal(derived, pipe(**given, pooled_prompt_embeds=last).images)
    assert not torch.equal(derived, pipe(**given, pooled_prompt_embeds=-last).images)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"negative_prompt_embeds": None, "negative_pooled_prompt_embeds": None}, "guided by an encoded empty text"),
        ({"pooled_prompt_embeds": torch.zeros(3)}, "must be \\[64\\]"),
        ({"pooled_prompt_embeds": [torch.zeros(64)] * 2}, "one vector for each"),
        ({"prompt_embeds": None, "prompt": "a cat"}, "no text encoder|without prompt_embeds"),
        ({"pooled_prompt_embeds": torch.full((64,), float("nan"))}, "NaN"),
        ({"aspect_ratio": 2.0}, "square"),
    ],
)
def test_what_it_cannot_draw_is_refused(
    pipe: Pipeline, golden: SwittiGolden, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        pipe(**(golden.request("greedy") | changed))


def test_unguided_requests_need_no_empty_text(pipe: Pipeline, golden: SwittiGolden) -> None:
    request = golden.request("nocfg")
    plain = {key: value for key, value in request.items() if not key.startswith("negative")}
    assert torch.equal(pipe(**plain, output_type="latent").images, pipe(**request, output_type="latent").images)


def test_no_memory_for_keys_that_nobody_reads(pipe: Pipeline, golden: SwittiGolden) -> None:
    keeps = golden.transformer.config.keeps_past
    assert pipe.manifest.kv_cache == ("dynamic" if keeps else "none")
    assert any(tensor.name.startswith("past_") for tensor in pipe.manifest.chunks("blocks")[0].inputs) is keeps


class TestTexts:
    @pytest.fixture(scope="class")
    @staticmethod
    def reading(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
        towers = write_towers(tmp_path_factory.mktemp("towers"))
        with Pipeline.load(SwittiGolden(CASES[0]).build(bundles / "switti_texts", towers=towers), threads=1) as opened:
            yield opened

    def test_words_and_their_features_draw_the_same(self, reading: Pipeline) -> None:
        from ldp_export.checkpoints.clip import encoded, load_clip

        towers = write_towers(Path(tempfile.mkdtemp()))
        features = encoded(load_clip(towers), "A red circle", 77)
        drawn = reading("A red circle", seed=4, output_type="latent").images
        given = reading(prompt_embeds=features, seed=4, output_type="latent").images
        torch.testing.assert_close(drawn, given, atol=1e-4, rtol=0)
        assert not torch.equal(drawn, reading("A blue circle", seed=4, output_type="latent").images)

    def test_an_empty_text_is_the_unconditional_one(self, reading: Pipeline) -> None:
        plain = reading("a circle", seed=4, output_type="latent").images
        assert torch.equal(plain, reading("a circle", negative_prompt="", seed=4, output_type="latent").images)
        assert not torch.equal(plain, reading("a circle", negative_prompt="ugly", seed=4, output_type="latent").images)
