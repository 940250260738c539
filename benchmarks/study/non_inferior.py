"""Which policy is non-inferior: accepted pictures, pruned and unpruned, paired by prompt.

    python -m benchmarks.study.non_inferior bundles/infinity-shapes --set choose      # resumes
    python -m benchmarks.study.non_inferior bundles/infinity-shapes --set confirm --policy TEXT

A policy is non-inferior if the lower 95 % bound of the paired difference in accepted pictures lies above -2 points, by
both of two intervals. It is chosen on one thousand held-out prompts and confirmed once on a thousand others, which
chose nothing. The first interval is exact for the number of prompts whose verdicts differ: the share of them that
pruning wins is binomial. The second resamples prompts, and lets that number vary.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ldp_calibration.cost import full_flops, trace_flops
from ldp_calibration.fidelity import psnr_db
from ldp_calibration.processes import in_processes
from ldp_calibration.resumable import appended, read_entries
from ldp_calibration.shapes import CATEGORIES, Prompt, sample_prompt
from ldp_calibration.shapes.evaluator import judge
from ldp_calibration.stats import Interval, mean_interval
from ldp_runtime.bundle.files import open_bundle
from ldp_runtime.pipeline.pipeline import Pipeline
from ldp_runtime.pruning.parse import parse_policy, policy_text
from scipy.stats import binomtest

from benchmarks.paths import RESULTS, result_file
from benchmarks.report.read import GRAMMAR
from ldp_export.bench.hardware import hardware, software

#: Points of accepted pictures that may be lost.
MARGIN = 2.0
#: First prompt of each set; both hold a thousand. The first two hundred are the ablation's.
SETS = {"choose": 200, "confirm": 1200}
PROMPTS = 1000
_PROMPT_SEED, _FIRST_SEED = 2027, 100_000
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


@dataclass(frozen=True)
class Row:
    """One prompt: the evaluator's verdict on the unpruned picture and on each policy's.

    Attributes:
        accepted: by policy, "none" among them.
        tokens: computed, by policy.
        operations: of the full model's blocks over the policy's, by policy.
        psnr: against the unpruned picture in dB, by policy.
    """

    prompt: int
    accepted: dict[str, bool]
    tokens: dict[str, int]
    operations: dict[str, float]
    psnr: dict[str, float]


def prompts(first: int, count: int) -> list[Prompt]:
    """Held-out prompts of all categories in turn; prompt i is drawn with seed 100,000 + i."""
    rng, categories = np.random.default_rng((_PROMPT_SEED, 11)), list(CATEGORIES)
    return [sample_prompt(categories[i % len(categories)], rng) for i in range(first + count)][first:]


_worker: dict[str, Any] = {}


def _open(bundle: Path, first: int, count: int) -> None:
    _worker["pipe"] = Pipeline.load(bundle, threads=1, integrity="sizes")
    _worker["prompts"] = prompts(first, count)
    _worker["first"] = first


def _row(index: int, policies: Sequence[str]) -> Row:
    pipe, prompt, seed = _worker["pipe"], _worker["prompts"][index], _FIRST_SEED + _worker["first"] + index
    model, schedule = pipe.manifest.model, pipe.manifest.schedule()
    row = Row(_worker["first"] + index, {}, {}, {}, {})
    full = None
    for policy in ("none", *policies):
        result = pipe(prompt.text, seed=seed, policy=policy, output_type="numpy")
        image, trace = result.images[0], result.traces[0]
        full = image if full is None else full
        row.accepted[policy] = bool(judge((image.clip(0, 1) * 255).astype(np.uint8), prompt))
        row.tokens[policy] = trace.tokens
        row.operations[policy] = round(full_flops(model, schedule, guided=True) / max(1, trace_flops(model, trace)), 4)
        row.psnr[policy] = round(psnr_db(image, full), 3)
    return row


def measure(bundle: Path, first: int, policies: Sequence[str], work: Path, workers: int) -> list[Row]:
    """Rows of all prompts, appended to `work` line by line; a run that was interrupted goes on."""
    rows = {row.prompt: row for row in (Row(**entry) for entry in read_entries(work))}
    rows = {index: row for index, row in rows.items() if set(policies) <= set(row.accepted)}
    tasks = [(i, policies) for i in range(PROMPTS) if first + i not in rows]
    with appended(work) as add:
        drawn = in_processes(workers, _open, (bundle, first, PROMPTS), _row, tasks)
        for done, row in enumerate(drawn, start=1):
            rows[row.prompt] = row
            add(asdict(row))
            print(f"\r{done}/{len(tasks)}", end="", flush=True)
    print()
    return [rows[first + i] for i in range(PROMPTS)]


def paired_difference(pruned: Sequence[bool], full: Sequence[bool]) -> tuple[float, float, float]:
    """Points of accepted pictures gained, with the exact 95 % interval over prompts whose verdicts differ."""
    wins = sum(a and not b for a, b in zip(pruned, full, strict=True))
    losses = sum(b and not a for a, b in zip(pruned, full, strict=True))
    differing, share = wins + losses, 100 / len(full)
    if not differing:
        return 0.0, 0.0, 0.0
    interval = binomtest(wins, differing).proportion_ci(0.95, "exact")
    low, high = ((2 * bound - 1) * differing * share for bound in (interval.low, interval.high))
    return (wins - losses) * share, low, high


def resampled_difference(pruned: Sequence[bool], full: Sequence[bool], seed: int = 0) -> Interval:
    """Points of accepted pictures gained, with the 95 % interval of resampled prompts."""
    return mean_interval([100.0 * (int(a) - int(b)) for a, b in zip(pruned, full, strict=True)], seed)


def summary(rows: Sequence[Row], policies: Sequence[str]) -> dict[str, Any]:
    """Each policy's acceptance, its paired difference, and what it computes."""
    full = [row.accepted["none"] for row in rows]
    found: dict[str, Any] = {}
    for policy in ("none", *policies):
        accepted = [row.accepted[policy] for row in rows]
        difference, resampled = paired_difference(accepted, full), resampled_difference(accepted, full)
        found[policy] = {
            "policy": policy_text(parse_policy(policy)),
            "accepted_percent": round(100 * float(np.mean(accepted)), 2),
            "difference_points": [round(v, 2) for v in difference],
            "resampled_points": [round(v, 2) for v in resampled],
            "non_inferior": min(difference[1], resampled[1]) > -MARGIN,
            "tokens": round(float(np.mean([row.tokens[policy] for row in rows])), 1),
            "operations": round(len(rows) / sum(1 / row.operations[policy] for row in rows), 3),
            "psnr_db": round(float(np.mean([row.psnr[policy] for row in rows])), 2),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--set", choices=SETS, default="choose")
    parser.add_argument("--policy", action="append", help="Instead of the listed ones; repeatable.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=result_file)
    options = parser.parse_args()
    policies = tuple(options.policy or POLICIES)
    output = options.output or RESULTS / f"non-inferior-{options.set}.json"
    first = SETS[options.set]
    rows = measure(options.bundle, first, policies, output.with_suffix(".jsonl"), options.workers)
    manifest = open_bundle(options.bundle, integrity="sizes").manifest
    result = {
        "grammar": GRAMMAR,
        "model": manifest.model.name,
        "bundle": manifest.digest,
        "set": {"first_prompt": first, "prompts": PROMPTS, "prompt_seed": _PROMPT_SEED, "first_seed": _FIRST_SEED},
        "margin_points": MARGIN,
        "machine": {"hardware": hardware(), "software": software(), "load_average": os.getloadavg()[0]},
        "policies": summary(rows, policies),
        "verdicts": {
            policy: "".join("+" if row.accepted[policy] else "-" for row in rows) for policy in ("none", *policies)
        },
    }
    output.write_text(json.dumps(result, indent=1) + "\n")
    for policy, one in result["policies"].items():
        print(policy, one)


if __name__ == "__main__":
    main()
