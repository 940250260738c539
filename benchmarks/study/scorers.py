"""Published scorers at true size with random weights: they load and score; seconds, memory, batches, half precision.

    python -m benchmarks.study.scorers --folder /tmp/scorers --output scorers.json

Writes the weights' files in the published names and formats (3 GB at a time), then opens each scorer twice (the first
time converts the pickle) and scores pictures of 1024x1024 noise on the CPU, one scorer after the other, each step in a
process of its own. The numbers are no scores of anything; CLIP's vocabulary is a stand-in of its true size.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.paths import new_folder, result_file
from benchmarks.study.peak import measured

#: Scorers, and the files of their networks with the functions that name the weights.
SCORERS: dict[str, tuple[tuple[str, str], ...]] = {
    "geneval": (("DETECTOR", "detector(SWIN_S)"), ("CLIP", "clip(VIT_L)")),
    "hpsv2.1": (("HPS_V21", "clip(VIT_H)"),),
    "imagereward": (("REWARD", "reward(VIT_L_BERT)"),),
    "clip": (("CLIP", "clip(VIT_L)"),),
}
HALVES = ("bfloat16", "float16")
_WRITE = """
import gzip
from benchmarks.study.scorer_names import clip, detector, random_weights, reward
from ldp_calibration.evaluation.networks import weights
from ldp_calibration.evaluation.networks.clip import VIT_H, VIT_L
from ldp_calibration.evaluation.networks.mask2former import SWIN_S
from ldp_calibration.evaluation.networks.reward import VIT_L_BERT
from ldp_calibration.evaluation.networks.tokens import byte_letters
from safetensors.torch import save_file
folder = Path({folder!r})
for name, shapes in ({files}):
    found = random_weights(shapes)
    if name.endswith(".safetensors"):
        save_file(found, folder / name)
    else:
        torch.save(dict(state_dict=found), folder / name)
pairs = [f"{{a}} {{b}}" for a in byte_letters() for b in byte_letters()][: 49408 - 512 - 2]
(folder / weights.CLIP_WORDS).write_bytes(gzip.compress("\\n".join(["#", *pairs]).encode()))
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{{i}}" for i in range(30517))]
(folder / weights.BERT_WORDS).write_text("\\n".join(words))
(folder / weights.CLASSES).write_text("".join(f"thing {{i}}\\n" for i in range(80)))
"""
_SCORE = """
import numpy as np
from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt
from ldp_calibration.evaluation.networks.weights import Networks
from ldp_calibration.evaluation.scorers.choose import open_scorer
from ldp_calibration.evaluation.scorers.opening import Wish
from ldp_calibration.evaluation.scorers.scorer import Sample
wish = Wish(weights=Path({folder!r}), networks=Networks(known={{}}), precision={precision!r}, batch={batch})
scorer = open_scorer({name!r}, wish=wish)
opened = time.perf_counter() - started
clauses = [dict({{"class": f"thing {{i}}", "count": 1}}, **(dict(color="red") if i < 4 else {{}})) for i in range(80)]
facts = {{"include": clauses}}
prompt = EvaluationPrompt("a red thing on a table", "colors", facts)
scorer.check(prompt)
def sample(i):
    pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return Sample(pixels.repeat(16, 0).repeat(16, 1), np.zeros((0, 0, 3), np.uint8), prompt)
times, scores, objects = [], [], []
for begin in range(0, {pictures}, {batch}):
    before = time.perf_counter()
    found = scorer.score([sample(i) for i in range(begin, begin + {batch})])
    times.append(time.perf_counter() - before)
    scores += [one.value for one in found]
    objects += [sum(map(len, one.facts["details"].values())) for one in found if "details" in one.facts]
print(json.dumps(dict(
    open_seconds=round(opened, 1),
    seconds_a_picture=[round(t / {batch}, 2) for t in times],
    scores=scores,
    **(dict(objects=objects) if objects else {{}}),
)))
"""
#: Classes and colours of the detector's pictures are looked at besides, whatever random weights find.
_COLOURS = """
from ldp_calibration.evaluation.geneval.colours import ColourClassifier
from ldp_calibration.evaluation.networks import weights
from ldp_calibration.evaluation.networks.clip import VIT_L
from ldp_calibration.evaluation.scorers.preference import clip_network
from PIL import Image
network, _ = clip_network(wish, weights.CLIP, VIT_L, "geneval")
classifier = ColourClassifier(network)
before = time.perf_counter()
classifier.vectors("thing 3")
texts = time.perf_counter() - before
before = time.perf_counter()
box = np.array([9.0, 9, 700, 900, 1])
classifier.colours(Image.fromarray(sample(0).image), "thing 3", [box] * 4, [None] * 4)
seconds = round((time.perf_counter() - before) / 4, 2)
print(json.dumps(dict(colour_class_seconds=round(texts, 2), colour_object_seconds=seconds)))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=new_folder, required=True, help="a new folder for about 5 GB; is deleted")
    parser.add_argument("--output", type=result_file, help="write the figures as JSON; those of other scorers stay")
    parser.add_argument("--scorer", choices=SCORERS, action="append", help="these only; repeatable")
    args = parser.parse_args()
    before = json.loads(args.output.read_text())["scorers"] if args.output and args.output.exists() else {}
    figures: dict[str, Any] = {"weights": "random", "machine": _machine(), "scorers": before}
    for name in args.scorer or SCORERS:
        args.folder.mkdir(parents=True)
        try:
            figures["scorers"][name] = prove(name, args.folder)
        finally:
            shutil.rmtree(args.folder, ignore_errors=True)
        print(json.dumps({name: figures["scorers"][name]}, indent=1), flush=True)
        if args.output:
            args.output.write_text(json.dumps(figures, indent=1) + "\n")


def _machine() -> dict[str, Any]:
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    names = ("torch", "transformers", "Pillow")
    return {
        "processor": cpu.partition(":")[2].strip(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in names},
        "busy": "shared with other work: times are of this hour alone",
    }


def prove(name: str, folder: Path) -> dict[str, Any]:
    """Figures of one scorer: seconds and memory of opening, of scoring one by one, in fours, in half precision."""
    files = ", ".join(f"(weights.{file}, {shapes})" for file, shapes in SCORERS[name])
    measured(_WRITE.format(folder=str(folder), files=f"{files},"))
    figures: dict[str, Any] = {"file_mib": sum(path.stat().st_size for path in folder.iterdir()) // 2**20}
    first = _scored(name, folder, "float32", 1, pictures=2)
    figures["first_opening"] = {key: first[key] for key in ("open_seconds", "peak_anonymous_mib")}
    figures["float32"] = _scored(name, folder, "float32", 1, pictures=3)
    if name != "geneval":  # its pictures go through the detector one by one
        figures["float32 in fours"] = _scored(name, folder, "float32", 4, pictures=4)
    for half in HALVES:
        figures[half] = _scored(name, folder, half, 1, pictures=2)
    plain = figures["float32"]["scores"]
    for other in ("float32 in fours", *HALVES):
        if other in figures:
            pairs = zip(plain, figures[other]["scores"], strict=False)
            figures[other]["largest_difference"] = max(abs(a - b) for a, b in pairs)
    return figures


def _scored(name: str, folder: Path, precision: str, batch: int, pictures: int) -> dict[str, Any]:
    code = _SCORE.format(folder=str(folder), name=name, precision=precision, batch=batch, pictures=pictures)
    return measured(code + (_COLOURS if name == "geneval" else ""))


if __name__ == "__main__":
    main()
