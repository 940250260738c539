"""Which policy is non-inferior: accepted pictures, pruned and unpruned, paired by prompt.

    python -m benchmarks.study.non_inferior bundles/infinity-shapes --set choose      # resumes
    python -m benchmarks.study.non_inferior bundles/infinity-shapes --set confirm --policy TEXT

A policy is non-inferior if a loss of two points or more of accepted pictures is ruled out, by the test of
`evaluate compare`. It is chosen on one thousand held-out prompts and confirmed once on a thousand others, which chose
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldp_calibration.evaluation.comparison.compare import Comparison, compare
from ldp_calibration.evaluation.score import score
from ldp_calibration.evaluation.scorers.choose import open_scorer
from ldp_calibration.fidelity import PSNR_CAP
from ldp_runtime.bundle.files import open_bundle

from benchmarks.paths import RESULTS, result_file
from benchmarks.report.read import GRAMMAR
from benchmarks.report.verdicts import Gain, gains
from benchmarks.study.rows import Setting, drawn_run, say
from ldp_export.bench.hardware import hardware, software

#: Points of accepted pictures that may be lost.
MARGIN = 2.0
#: First prompt of each set; both hold a thousand. The first two hundred are the ablation's.
SETS = {"choose": 200, "confirm": 1200}
PROMPTS = 1000
POLICIES = (
    "ld:rho=0.9",
    "ld:rho=0.8",
    "ld:rho=0.75",
    "ld:rho=0.7",
    "ld:rho=0.8,stop=2",
    "ld:rho=0.8,fill=repeat",
    "ld-fast:p=0.9",
    "ld-fast",
    "ld-paper",
)


def measure(bundle: Path, first: int, policies: Sequence[str], folder: Path, workers: int) -> dict[str, Any]:
    """Verdicts of all prompts and what each policy computes; a run that was interrupted goes on."""
    setting = Setting(open_bundle(bundle, "sizes").manifest.digest, "", PROMPTS, first=first)
    run = drawn_run(bundle, setting, policies, folder, workers, say)
    for name in ("shapes", "psnr"):
        score(run, open_scorer(name), report=say)
    found = compare(run, scorers=("shapes", "psnr"), labels=policies)
    result = {
        "model": run.settings.model,
        "bundle": run.settings.bundle,
        "set": {
            "first_prompt": first,
            "prompts": PROMPTS,
            "prompt_seed": setting.prompt_seed,
            "first_seed": setting.first_seed,
        },
        "margin_points": MARGIN,
        "verdicts": {
            one.policy.label: "".join("+" if v else "-" for v in found.scores["shapes", one.policy.label].ravel())
            for one in found.policies
        },
    }
    return result | {"policies": summary(found, gains(result))}


def summary(comparison: Comparison, gained: Mapping[str, Gain]) -> dict[str, Any]:
    """Each policy's acceptance, its paired difference, and what it computes."""
    found = dict[str, Any]()
    for one in comparison.policies:
        label, psnr = one.policy.label, one.results.get("psnr")
        found[label] = {
            "policy": one.policy.policy,
            "accepted_percent": round(100 * float(comparison.scores["shapes", label].mean()), 2),
            "difference_points": [round(value, 2) for value in gained[label].points],
            "non_inferior": gained[label].is_non_inferior,
            "tokens": round(one.cost.tokens, 1),
            "operations": round(one.cost.operations, 3),
            "psnr_db": PSNR_CAP if psnr is None else round(psnr.mean.value, 2),
        }
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--set", choices=SETS, default="choose")
    parser.add_argument("--policy", action="append", help="Instead of the listed ones; repeatable.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--run", type=Path, help="Folder of the pictures.  [default: runs/non-inferior-SET]")
    parser.add_argument("--output", type=result_file)
    options = parser.parse_args(arguments)
    output = options.output or RESULTS / f"non-inferior-{options.set}.json"
    folder = options.run or Path("runs") / f"non-inferior-{options.set}"
    policies = tuple(options.policy or POLICIES)
    found = measure(options.bundle, SETS[options.set], policies, folder, options.workers)
    machine = {"hardware": hardware(), "software": software(), "load_average": os.getloadavg()[0]}
    result = {"grammar": GRAMMAR, "machine": machine} | found
    output.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    for policy, one in main()["policies"].items():
        print(policy, one)
