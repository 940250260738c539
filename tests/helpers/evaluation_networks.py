"""Small networks with random weights for every published scorer, in files by the published names and formats."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt
from ldp_calibration.evaluation.benchmarks.shapes import shapes
from ldp_calibration.evaluation.geneval.verdict import COLOURS
from ldp_calibration.evaluation.networks import weights
from ldp_calibration.evaluation.networks.clip import ClipSize
from ldp_calibration.evaluation.networks.weights import Networks
from ldp_calibration.evaluation.run import Run
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


def judged_prompts(count: int) -> tuple[EvaluationPrompt, ...]:
    """Prompts of the small world with everything that published scorers and layouts want to know of them."""
    return tuple(_judged(i, prompt) for i, prompt in enumerate(shapes().prompts[:count]))


def _judged(number: int, prompt: EvaluationPrompt) -> EvaluationPrompt:
    claims = prompt.facts["claims"]
    include: list[dict[str, Any]] = [
        {"class": kind, "count": prompt.facts.get("count", 1)} | ({"color": colour} if colour in COLOURS else {})
        for kind, colour in claims
    ]
    if "relation" in prompt.facts:
        include.reverse()  # the target comes first
        include[1]["position"] = [prompt.facts["relation"], 0]
    questions = [
        {
            "row": 2 * number + i,
            "id": str(i + 1),
            "dependency": "0" if i == 0 else "0,1",
            "tuple": f"entity - whole ({i})",
            "question": f"Is there, in picture {number}, thing {i}?",
        }
        for i in range(2)
    ]
    facts = {"include": include, "index": number, "id": f"s-{number}", "item_id": f"item{number}"}
    return replace(prompt, facts=prompt.facts | facts | {"questions": questions})


def write_answers(run: Run, policy: str, path: Path) -> None:
    """A detail file as the official script writes it, which never asks the first row of its file."""
    side, lines = 64, list[str]()
    for i, prompt in enumerate(run.prompts):
        for tile in range(run.settings.images):
            left, top = tile % 2 * side, tile // 2 * side
            for k, question in enumerate(prompt.facts["questions"]):
                if question["row"] == 0:
                    continue
                answer = "no" if (i + tile + k + len(policy)) % 3 == 0 else "yes"
                box = f"({left}, {top}, {left + side}, {top + side})"
                lines.append(f"out/{prompt.facts['item_id']}.png, {box}, {question['question']}, {answer}\n")
    path.write_text("".join(lines))
