"""ImageReward against the original: tokens, preprocessing, rewards, ranks, and weights that are not its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.evaluation_goldens import VECTORS, read, reward_size
from ldp_calibration.evaluation.networks.inputs import clip_input
from ldp_calibration.evaluation.networks.reward import RewardNetwork, load_reward
from ldp_calibration.evaluation.networks.tokens import bert_tokens
from ldp_runtime.errors import IntegrityError
from PIL import Image
from safetensors.torch import load_file

FOLDER = VECTORS / "imagereward"
GIVEN: dict[str, Any] = read(FOLDER / "cases.json")


@pytest.fixture(scope="module")
def network() -> RewardNetwork:
    model = load_reward(load_file(FOLDER / "weights.safetensors"), reward_size())
    return RewardNetwork(model, bert_tokens(FOLDER / "vocab.txt"))


def inputs(case: dict[str, Any]) -> torch.Tensor:
    return clip_input(Image.open(FOLDER / case["image"]))


@pytest.mark.parametrize("case", GIVEN["cases"], ids=[case["image"][7:9] for case in GIVEN["cases"]])
def test_rewards_are_those_of_the_original(network: RewardNetwork, case: dict[str, Any]) -> None:
    ids, mask = bert_tokens(FOLDER / "vocab.txt")([case["prompt"]])
    assert (ids[0].tolist(), mask[0].tolist()) == (case["input_ids"], case["attention_mask"])
    pixels, key = inputs(case), f"{case['image'][7:9]}_preprocessed"
    with np.load(FOLDER / "arrays.npz") as file:
        expected, seen = (file[key], pixels) if key in file else (file[f"{key}_8"], pixels[:, ::8, ::8])
    np.testing.assert_array_equal(seen.numpy(), expected)
    assert network.rewards(pixels[None], [case["prompt"]]) == pytest.approx([case["score"]], abs=1e-5)


def test_a_batch_is_ranked_as_by_the_original(network: RewardNetwork) -> None:
    batch = torch.stack([inputs(case) for case in GIVEN["cases"]])
    rewards = network.rewards(batch, [GIVEN["rank"]["prompt"]] * len(batch))
    assert rewards == pytest.approx(GIVEN["rank"]["rewards"], abs=2e-5)
    order = sorted(range(len(rewards)), key=lambda i: -rewards[i])
    assert [order.index(i) + 1 for i in range(len(rewards))] == GIVEN["rank"]["ranking"]


def test_other_weights_are_refused_with_a_list() -> None:
    weights = load_file(FOLDER / "weights.safetensors")
    weights["blip.itm_head.weight"] = torch.zeros(2, 3)
    del weights["mlp.layers.7.bias"]
    with pytest.raises(IntegrityError, match=r"1 missing: head\.4\.bias; 1 too many: blip\.itm_head\.weight"):
        load_reward(weights, reward_size())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 0.02), (torch.bfloat16, 0.15)])
def test_half_precision_is_near(network: RewardNetwork, dtype: torch.dtype, bound: float) -> None:
    """Bounds for rewards of random weights, which lie between -2 and 6."""
    model = load_reward(load_file(FOLDER / "weights.safetensors"), reward_size())
    half = RewardNetwork(model, bert_tokens(FOLDER / "vocab.txt"), dtype=dtype)
    batch, texts = torch.stack([inputs(case) for case in GIVEN["cases"]]), [case["prompt"] for case in GIVEN["cases"]]
    difference = np.abs(np.subtract(half.rewards(batch, texts), network.rewards(batch, texts))).max()
    assert 0 < difference < bound
