"""Scorers that look at a picture and its prompt: HPSv2, ImageReward, and CLIP's score.

Sources: Wu et al., "Human Preference Score v2"; Xu et al., "ImageReward"; Hessel et al., "CLIPScore" (its cosine).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ldp_calibration.evaluation.networks import weights
from ldp_calibration.evaluation.networks.clip import ClipNetwork, ClipSize, load_clip
from ldp_calibration.evaluation.networks.inputs import clip_input, padded_input
from ldp_calibration.evaluation.networks.reward import RewardNetwork, load_reward
from ldp_calibration.evaluation.networks.tokens import bert_tokens, clip_tokens
from ldp_calibration.evaluation.scorers.opening import Opened, Wish
from ldp_calibration.evaluation.scorers.scorer import Sample, Score, installed_version

#: Factor of HPSv2's cosines in its benchmark.
_PERCENT = 100.0


def library_settings(wish: Wish) -> dict[str, Any]:
    """Settings that every network's numbers depend on."""
    versions = {name: installed_version(name, "scorers") for name in ("torch", "transformers", "Pillow")}
    return {"device": wish.device.partition(":")[0], "precision": wish.precision} | versions


def clip_network(wish: Wish, name: str, size: ClipSize, scorer: str) -> tuple[ClipNetwork, dict[str, Any]]:
    """Network of a CLIP whose weights lie in a file, and the settings that name them; raises as `open_scorer`."""
    networks = wish.networks or weights.Networks()
    file, words = (weights.existing(wish.weights, one, scorer) for one in (name, weights.CLIP_WORDS))
    tensors, source = weights.read_weights(file, networks.known)
    tokens = clip_tokens(words)
    model = load_clip(tensors, size, name)
    settings = {name: source, weights.CLIP_WORDS: weights.checked_hash(words, networks.known)}
    settings |= {"ftfy": installed_version("ftfy", "scorers")} | library_settings(wish)
    return ClipNetwork(model, tokens, wish.device, getattr(torch, wish.precision)), settings


def open_hps_v21(wish: Wish) -> Opened:
    return _open_hps(wish, weights.HPS_V21, "hpsv2.1", antialias=True)


def open_hps_v21_no_antialias(wish: Wish) -> Opened:
    return _open_hps(wish, weights.HPS_V21, "hpsv2.1", antialias=False)


def open_hps_v20(wish: Wish) -> Opened:
    return _open_hps(wish, weights.HPS_V20, "hpsv2.0", antialias=True)


def open_hps_v20_no_antialias(wish: Wish) -> Opened:
    return _open_hps(wish, weights.HPS_V20, "hpsv2.0", antialias=False)


def _open_hps(wish: Wish, file: str, scorer: str, antialias: bool) -> Opened:
    wish.check()
    size = (wish.networks or weights.Networks()).hps
    network, settings = clip_network(wish, file, size, scorer)

    def score(samples: Sequence[Sample]) -> list[Score]:
        inputs = torch.stack([padded_input(one.image, size.side, antialias) for one in samples])
        return [Score(_PERCENT * value) for value in cosines(network, inputs, samples)]

    return Opened(score, {**settings, "antialias": antialias, "factor": _PERCENT}, batch=wish.batch)


def cosines(network: ClipNetwork, inputs: Tensor, samples: Sequence[Sample]) -> list[float]:
    """Cosines of pictures and their prompts."""
    texts = [one.prompt.text for one in samples]
    return (network.images(inputs) * network.texts(texts)).sum(-1).tolist()


def open_clip_score(wish: Wish) -> Opened:
    wish.check()
    size = (wish.networks or weights.Networks()).clip
    network, settings = clip_network(wish, weights.CLIP, size, "clip")

    def score(samples: Sequence[Sample]) -> list[Score]:
        inputs = torch.stack([clip_input(_picture(one), size.side) for one in samples])
        return [Score(value) for value in cosines(network, inputs, samples)]

    return Opened(score, settings, batch=wish.batch)


def open_imagereward(wish: Wish) -> Opened:
    wish.check()
    networks = wish.networks or weights.Networks()
    file, words = (weights.existing(wish.weights, one, "imagereward") for one in (weights.REWARD, weights.BERT_WORDS))
    tensors, source = weights.read_weights(file, networks.known)
    model = load_reward(tensors, networks.reward)
    network = RewardNetwork(model, bert_tokens(words), wish.device, getattr(torch, wish.precision))
    settings = {weights.REWARD: source, weights.BERT_WORDS: weights.checked_hash(words, networks.known)}

    def score(samples: Sequence[Sample]) -> list[Score]:
        inputs = torch.stack([clip_input(_picture(one), networks.reward.side) for one in samples])
        return [Score(value) for value in network.rewards(inputs, [one.prompt.text for one in samples])]

    return Opened(score, settings | library_settings(wish), batch=wish.batch)


def _picture(sample: Sample) -> Any:
    from PIL import Image

    return Image.fromarray(sample.image)
