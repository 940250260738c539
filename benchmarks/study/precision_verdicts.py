"""What precision costs in pictures: the evaluator's verdict on bundles of several precisions, pruned and not.

    python -m benchmarks.study.precision_verdicts bundles/infinity-shapes bundles/infinity-shapes-int8

200 held-out prompts, one seed each, the same for all; PSNR against what the first bundle draws unpruned. About a minute
for each bundle and policy on two quiet cores. Writes benchmarks/results/precision-verdicts-cpu.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from ldp_calibration.fidelity import psnr_db
from ldp_calibration.shapes.evaluator import Score, judge, object_mask
from ldp_runtime.bundle.files import open_bundle
from ldp_runtime.pipeline.pipeline import Pipeline
from rich.progress import track

from benchmarks.paths import RESULTS, result_file
from benchmarks.report.read import GRAMMAR
from benchmarks.study.rows import Setting
from ldp_export.bench.hardware import hardware, software
from ldp_export.bench.plan import label

RESULT = RESULTS / "precision-verdicts-cpu.json"
POLICIES = ("none", "ld", "ld-fast")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--policies", nargs="+", default=POLICIES)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--output", type=result_file, default=RESULT)
    options = parser.parse_args(arguments)
    setting = Setting(open_bundle(options.bundles[0]).manifest.digest, "", options.prompts)
    result = {
        "grammar": GRAMMAR,
        "machine": {"hardware": hardware(), "software": software()},
        "prompts": setting.prompts,
        "bundle": setting.digest[:16],
        "rows": rows(options.bundles, options.policies, setting),
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    return result


def rows(bundles: Sequence[Path], policies: Sequence[str], setting: Setting) -> list[dict[str, Any]]:
    """Of each bundle and policy; the first bundle's unpruned pictures are what all others are compared with."""
    found, references = [], None
    for path in bundles:
        with Pipeline.load(path) as pipe:
            for policy in policies if references is not None else ("none", *(p for p in policies if p != "none")):
                pictures, accepted = draw(pipe, policy, setting)
                references = pictures if references is None else references
                found.append({"engines": label(pipe.manifest), "policy": policy} | row(pictures, references, accepted))
    return found


def draw(pipe: Pipeline, policy: str, setting: Setting) -> tuple[list[np.ndarray], int]:
    """A picture [H, W, 3] in [0, 1] of each prompt, and how many of them the evaluator accepts."""
    pictures, accepted = [], 0
    for i, prompt in enumerate(track(setting.texts(), f"{label(pipe.manifest)}, {policy}")):
        drawn = pipe(prompt.text, seed=setting.first_seed + i, policy=policy, output_type="numpy").images[0]
        pictures.append(drawn)
        accepted += judge(in_bytes(drawn), prompt)
    return pictures, accepted


def row(pictures: Sequence[np.ndarray], references: Sequence[np.ndarray], accepted: int) -> dict[str, Any]:
    """What is reported of one bundle under one policy; no PSNR of the references themselves."""
    score = Score(accepted, len(pictures))
    pairs = list(zip(pictures, references, strict=True))
    same = pictures is references
    masks = [object_mask(in_bytes(reference)) for reference in references]
    objects = [psnr_db(a, b, mask) for (a, b), mask in zip(pairs, masks, strict=True) if mask.any()]
    return {
        "accepted": score.rate,
        "accepted_ci95": score.interval,
        "psnr_db": None if same else mean(psnr_db(a, b) for a, b in pairs),
        "psnr_objects_db": None if same or not objects else mean(objects),
    }


def in_bytes(picture: np.ndarray) -> np.ndarray:
    return (picture.clip(0, 1) * 255).astype(np.uint8)


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
