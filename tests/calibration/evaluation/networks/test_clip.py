"""HPSv2's preprocessing and cosines against the original's, and CLIP's weights under two kinds of names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.evaluation_goldens import VECTORS, clip_size, clip_weights, preference_network, read
from ldp_calibration.evaluation.networks.clip import ClipNetwork, load_clip
from ldp_calibration.evaluation.networks.inputs import padded_input
from ldp_calibration.evaluation.summary import chunked
from ldp_runtime.errors import IntegrityError
from PIL import Image

FOLDER = VECTORS / "hpsv2"
MODES = ("antialias", "no_antialias")


def inputs(name: str, mode: str) -> torch.Tensor:
    image = np.asarray(Image.open(FOLDER / "images" / f"{name}.jpg").convert("RGB"))
    return padded_input(image, preference_network().side, mode == "antialias")


@pytest.mark.parametrize("mode", MODES)
def test_preprocessing_is_that_of_the_original(mode: str) -> None:
    with np.load(FOLDER / "preprocessed.npz") as file:
        names = [name for name in file if name.startswith(f"{mode}_")]
        assert len(names) == 6
        for name in names:
            style, _, number = name.removeprefix(f"{mode}_").rpartition("_")
            np.testing.assert_array_equal(inputs(f"{style}/{number}", mode).numpy(), file[name])


@pytest.mark.parametrize("mode", MODES)
def test_cosines_are_those_of_the_original(mode: str) -> None:
    network, expected = preference_network(), read(FOLDER / "expected.json")["results"][mode]
    by_style = dict[str, list[float]]()
    for name, cosine in expected["cosine"].items():
        style, _, number = name.partition("/")
        text = read(FOLDER / "prompts" / f"{style}.json")[int(number)]
        found = float((network.images(inputs(name, mode)[None]) * network.texts([text])).sum())
        assert found == pytest.approx(cosine, abs=1e-6), name
        by_style.setdefault(style, []).append(100 * found)
    for style, scores in by_style.items():
        mean, deviation = chunked(scores)
        assert f"images {style:<15} {mean:.2f} \t {deviation:.4f}" in expected["stdout"]
    average = np.mean([score for scores in by_style.values() for score in scores])
    assert f"images {'Average':<15} {average:.2f}" in expected["stdout"]


def test_a_batch_scores_as_its_pictures_do() -> None:
    listed = read(FOLDER / "expected.json")["results"]["antialias"]["list_score"]
    network = preference_network()
    batch = torch.stack([inputs(name, "antialias") for name in listed["images"]])
    found = (network.images(batch) * network.texts([listed["prompt"]])).sum(-1)
    np.testing.assert_allclose(found.numpy(), listed["cosine"], rtol=0, atol=1e-6)


def test_means_of_eighty() -> None:
    scores = [1.0] * 80 + [3.0] * 80
    assert chunked(scores) == (2.0, 1.0)
    assert chunked([1.0] * 80 + [3.0]) == (2.0, 1.0)


def test_weights_by_the_libraries_own_names_are_the_same() -> None:
    size, weights = clip_size(read(FOLDER / "config.json")), clip_weights(FOLDER / "weights.safetensors")
    model = load_clip(weights, size, "of the vectors")
    own = model.state_dict() | {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    again = ClipNetwork(load_clip(own, size, "of the vectors"), lambda texts: torch.zeros(1))
    picture = inputs("anime/00001", "antialias")[None]
    assert torch.equal(again.images(picture), preference_network().images(picture))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("visual.ln_post.bias"), "1 missing: vision_model.post_layernorm.bias"),
        (lambda w: w.update(extra=torch.zeros(2)), "1 too many: extra"),
        (lambda w: w.update({"ln_final.bias": torch.zeros(7)}), "text_model.final_layer_norm.bias 7 for 32"),
        (lambda w: w.pop("transformer.resblocks.1.attn.in_proj_bias"), "3 missing"),
    ],
)
def test_other_weights_are_refused_with_a_list(change: Any, said: str) -> None:
    weights = clip_weights(FOLDER / "weights.safetensors")
    change(weights)
    with pytest.raises(IntegrityError, match=said) as raised:
        load_clip(weights, clip_size(read(FOLDER / "config.json")), "of the vectors")
    assert raised.value.hint


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 1.5e-3), (torch.bfloat16, 8e-3)])
def test_half_precision_is_near(dtype: torch.dtype, bound: float) -> None:
    """Bounds for cosines; HPSv2's are told a hundredfold."""
    cosines = read(FOLDER / "expected.json")["results"]["antialias"]["cosine"]
    half, found = preference_network(dtype=dtype), list[float]()
    for name in cosines:
        style, _, number = name.partition("/")
        text = read(FOLDER / "prompts" / f"{style}.json")[int(number)]
        found.append(float((half.images(inputs(name, "antialias")[None]) * half.texts([text])).sum()))
    difference = np.abs(np.subtract(found, list(cosines.values()))).max()
    assert 0 < difference < bound
