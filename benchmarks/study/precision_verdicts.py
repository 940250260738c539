"""What precision costs in pictures: the evaluator's verdict on bundles of several precisions, pruned and not.

    python -m benchmarks.study.precision_verdicts bundles/infinity-shapes bundles/infinity-shapes-int8

200 held-out prompts, one seed each, the same for all; PSNR against what the first bundle draws unpruned. The harness of
`evaluate` draws and scores, so an interrupted study goes on. Writes benchmarks/results/precision-verdicts-cpu.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from ldp_calibration.evaluation.comparison.paired import signs, verdict_interval
from ldp_calibration.evaluation.pictures import all_pictures, content, pixels
from ldp_calibration.evaluation.run import UNPRUNED, Run
from ldp_calibration.evaluation.score import read_scores, score
from ldp_calibration.evaluation.scorers.choose import open_scorer
from ldp_calibration.fidelity import psnr_db
from ldp_calibration.shapes.evaluator import Score, object_mask
from ldp_runtime.bundle.files import open_bundle

from benchmarks.paths import RESULTS, result_file
from benchmarks.report.read import GRAMMAR
from benchmarks.study.rows import Setting, drawn_run, say
from ldp_export.bench.hardware import hardware, software
from ldp_export.bench.plan import label

RESULT = RESULTS / "precision-verdicts-cpu.json"
POLICIES = ("none", "ld", "ld-fast")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--policies", nargs="+", default=POLICIES)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/precision"), help="Folder of the pictures.")
    parser.add_argument("--output", type=result_file, default=RESULT)
    options = parser.parse_args(arguments)
    setting = Setting(open_bundle(options.bundles[0]).manifest.digest, "", options.prompts)
    result = {
        "grammar": GRAMMAR,
        "machine": {"hardware": hardware(), "software": software()},
        "prompts": setting.prompts,
        "bundle": setting.digest[:16],
        "rows": rows(options.bundles, options.policies, setting, options.runs, options.workers),
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    return result


def rows(
    bundles: Sequence[Path], policies: Sequence[str], setting: Setting, runs: Path, workers: int
) -> list[dict[str, Any]]:
    """Of each bundle and policy; the first bundle's unpruned pictures are what all others are compared with.

    Other bundles are also compared with the first one under the same policy, in pairs.
    """
    found: list[dict[str, Any]] = []
    references, first = None, dict[str, tuple[Sequence[np.ndarray], np.ndarray]]()
    pruned = [policy for policy in policies if policy != UNPRUNED]
    for path in bundles:
        manifest = open_bundle(path, "sizes").manifest
        run = drawn_run(path, setting, pruned, runs / manifest.digest[:16], workers, say)
        for policy in policies if references is not None else (UNPRUNED, *pruned):
            drawn, accepted = pictures(run, policy), verdicts(run, policy)
            references = drawn if references is None else references
            found.append({"engines": label(manifest), "policy": policy} | row(drawn, references, int(accepted.sum())))
            if policy in first:
                found[-1]["same_policy"] = paired(*first[policy], drawn, accepted)
            first.setdefault(policy, (drawn, accepted))
    return found


def pictures(run: Run, policy: str) -> list[np.ndarray]:
    """Pictures [H, W, 3] uint8 of a policy, one of each prompt."""
    return [pixels(content(picture)) for picture in all_pictures(run, [run.settings.policy(policy)])]


def verdicts(run: Run, policy: str) -> np.ndarray:
    """1 for each picture that the evaluator accepts, else 0."""
    scorer = open_scorer("shapes")
    score(run, scorer, [policy], report=say)
    return read_scores(run, scorer.name, scorer.fingerprint, run.settings.policy(policy), {}).ravel()


def paired(
    before: Sequence[np.ndarray], accepted_before: np.ndarray, after: Sequence[np.ndarray], accepted: np.ndarray
) -> dict[str, Any]:
    """What other engines change under one policy: accepted pictures, in points, and PSNR."""
    changes = accepted - accepted_before
    return {
        "accepted_difference": 100 * float(changes.mean()),
        "accepted_difference_ci95": [100 * end for end in verdict_interval(signs(changes))],
        "lost": int((changes < 0).sum()),
        "gained": int((changes > 0).sum()),
        "psnr_db": mean(psnr_db(in_unit(a), in_unit(b)) for a, b in zip(before, after, strict=True)),
    }


def row(pictures: Sequence[np.ndarray], references: Sequence[np.ndarray], accepted: int) -> dict[str, Any]:
    """What is reported of one bundle under one policy; no PSNR of the references themselves.

    Args:
        pictures, references: [H, W, 3] uint8.
    """
    score = Score(accepted, len(pictures))
    pairs = list(zip(pictures, references, strict=True))
    same = pictures is references
    masks = [object_mask(reference) for reference in references]
    objects = [psnr_db(in_unit(a), in_unit(b), mask) for (a, b), mask in zip(pairs, masks, strict=True) if mask.any()]
    return {
        "accepted": score.rate,
        "accepted_ci95": score.interval,
        "psnr_db": None if same else mean(psnr_db(in_unit(a), in_unit(b)) for a, b in pairs),
        "psnr_objects_db": None if same or not objects else mean(objects),
    }


def in_unit(picture: np.ndarray) -> np.ndarray:
    return picture / np.float32(255)


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
