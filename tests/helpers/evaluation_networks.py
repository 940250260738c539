"""Small networks with random weights for every published scorer, in files by the published names and formats."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import torch
from ldp_calibration.evaluation.networks import weights
from ldp_calibration.evaluation.networks.clip import ClipSize
from ldp_calibration.evaluation.networks.weights import Networks
from safetensors.torch import load_file, save_file

from helpers.evaluation_goldens import VECTORS, clip_size, clip_weights, detector_size, read, reward_size

#: Pairs that the small vocabulary joins.
_MERGES = ("r e", "re d</w>", "c a", "b l", "ca t</w>")
#: Number of words of the small vocabulary: bytes, bytes at the end, pairs, start and end.
VOCABULARY = 2 * 256 + len(_MERGES) + 2
#: Names of the small detector's classes; the first ones are those of the embedded model's shapes.
CLASSES = ("circle", "square", "triangle", "star", "ring", *(f"thing {i}" for i in range(75)))


def words_file(folder: Path) -> Path:
    """File of a small vocabulary in CLIP's format."""
    path = folder / weights.CLIP_WORDS
    path.write_bytes(gzip.compress("\n".join(("#version: 0.2", *_MERGES, "")).encode(), mtime=0))
    return path


def _own_words(weights_of: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a CLIP with a table of random rows for the small vocabulary."""
    rows = torch.Generator().manual_seed(1)
    width = weights_of["token_embedding.weight"].shape[1]
    return weights_of | {"token_embedding.weight": torch.randn(VOCABULARY, width, generator=rows).half()}


def _small(size: ClipSize) -> ClipSize:
    return replace(size, vocabulary=VOCABULARY)


def small_networks(folder: Path) -> Networks:
    """Writes every published scorer's files, with random weights of small networks, and says their sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    colours, preference = VECTORS / "geneval_color", VECTORS / "hpsv2"
    words_file(folder)
    save_file(_own_words(clip_weights(colours / "clip.safetensors")), folder / weights.CLIP)
    hps = _own_words(clip_weights(preference / "weights.safetensors"))
    for name in (weights.HPS_V21, weights.HPS_V20):
        torch.save({"state_dict": hps}, folder / name)
    detector = load_file(VECTORS / "mask2former" / "weights.safetensors")
    torch.save({"state_dict": detector, "meta": {"CLASSES": "many"}}, folder / weights.DETECTOR)
    torch.save(load_file(VECTORS / "imagereward" / "weights.safetensors"), folder / weights.REWARD)
    (folder / weights.BERT_WORDS).write_bytes((VECTORS / "imagereward" / "vocab.txt").read_bytes())
    (folder / weights.CLASSES).write_text("".join(f"{name}\n" for name in CLASSES))
    return Networks(
        detector_size(),
        _small(clip_size(read(colours / "clip_config.json"))),
        _small(clip_size(read(preference / "config.json"))),
        reward_size(),
        known={},
    )
