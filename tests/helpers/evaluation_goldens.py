"""Vectors of the original scorers, and the networks that they were made with; see `tests/golden/evaluation`.

The vectors of CLIP name the few rows of the token table that their texts use; the other rows are zero here.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ldp_calibration.evaluation.geneval.verdict import VerdictOptions
from ldp_calibration.evaluation.networks.clip import CONTEXT, END, ClipNetwork, ClipSize, TowerSize, load_clip
from ldp_calibration.evaluation.networks.mask2former import DetectorSize
from ldp_calibration.evaluation.networks.reward import RewardSize
from safetensors.torch import load_file

#: Folder of the vectors; another one of the same formats may be looked at.
VECTORS = Path(__file__).parents[1] / "golden" / "evaluation"
_OPTIONS = {"max_objects": "most_objects", "max_overlap": "most_overlap"}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def verdict_cases(folder: Path = VECTORS / "geneval") -> Iterator[dict[str, Any]]:
    """Cases of GenEval's verdict."""
    yield from map(json.loads, (folder / "cases.jsonl").read_text().splitlines())
    packed = folder / "random_cases.jsonl.gz"
    text = gzip.decompress(packed.read_bytes()) if packed.exists() else (folder / "random_cases.jsonl").read_bytes()
    yield from map(json.loads, text.splitlines())


def verdict_options(given: Mapping[str, Any]) -> VerdictOptions:
    """Options by the official script's names."""
    known = {_OPTIONS.get(name, name): float(value) for name, value in given.items() if name not in ("bgcolor", "crop")}
    if "most_objects" in known:
        known["most_objects"] = int(known["most_objects"])
    return VerdictOptions(**known)  # type: ignore[arg-type]


def clip_size(config: Mapping[str, Any]) -> ClipSize:
    vision, text = config["vision_cfg"], config["text_cfg"]
    return ClipSize(
        config["embed_dim"],
        TowerSize(vision["width"], vision["layers"], vision["width"] // vision["head_width"]),
        TowerSize(text["width"], text["layers"], text["heads"]),
        vision["patch_size"],
        vision["image_size"],
        "quick_gelu" if config.get("quick_gelu") else "gelu",
    )


def clip_weights(path: Path) -> dict[str, torch.Tensor]:
    weights = load_file(path)
    if "token_embedding.rows" in weights:
        rows, values = (weights.pop(f"token_embedding.{name}") for name in ("rows", "values"))
        table = torch.zeros(END + 1, values.shape[1], dtype=values.dtype)
        table[rows] = values
        weights["token_embedding.weight"] = table
    return weights


def tokens_of(table: Mapping[str, Sequence[int]]) -> Callable[[Sequence[str]], torch.Tensor]:
    """Function that looks token numbers up, as the vectors have them."""

    def tokens(texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[*table[text], *[0] * (CONTEXT - len(table[text]))] for text in texts])

    return tokens


@cache
def colour_network(folder: Path = VECTORS / "geneval_color", dtype: torch.dtype = torch.float32) -> ClipNetwork:
    size = clip_size(read(folder / "clip_config.json"))
    model = load_clip(clip_weights(folder / "clip.safetensors"), size, "of the vectors")
    return ClipNetwork(model, tokens_of(read(folder / "cases.json")["token_ids"]), dtype=dtype)


@cache
def preference_network(folder: Path = VECTORS / "hpsv2", dtype: torch.dtype = torch.float32) -> ClipNetwork:
    ids = read(folder / "expected.json")["token_ids"]
    table = {
        text: numbers
        for style in ids
        for text, numbers in zip(read(folder / "prompts" / f"{style}.json"), ids[style], strict=True)
    }
    table["a red cat"] = [END - 1, 320, 736, 2368, END]
    size = clip_size(read(folder / "config.json"))
    model = load_clip(clip_weights(folder / "weights.safetensors"), size, "of the vectors")
    return ClipNetwork(model, tokens_of(table), dtype=dtype)


def detector_size(folder: Path = VECTORS / "mask2former") -> DetectorSize:
    c = read(folder / "config.json")
    return DetectorSize(
        embed=c["embed"],
        depths=tuple(c["depths"]),
        heads=tuple(c["heads"]),
        dim=c["dim"],
        queries=c["queries"],
        encoder_layers=c["enc"],
        encoder_feedforward=2 * c["dim"],
        decoder_layers=c["dec"],
        decoder_feedforward=4 * c["dim"],
        decoder_heads=c["dheads"],
    )


def reward_size(folder: Path = VECTORS / "imagereward") -> RewardSize:
    sizes, text = read(folder / "sizes.json"), read(folder / "med_config.json")
    return RewardSize(
        TowerSize(sizes["vision_width"], sizes["vision_layers"], sizes["vision_heads"]),
        TowerSize(sizes["text_width"], sizes["text_layers"], sizes["text_heads"]),
        text["vocab_size"],
        text["max_position_embeddings"],
    )


def masks(packed: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Masks of packed bits."""
    return np.unpackbits(packed)[: int(np.prod(shape))].reshape(shape).astype(bool)
