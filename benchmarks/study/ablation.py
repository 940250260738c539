"""Every switch of LD-Pruning and every control on one bundle: fidelity, objects, verdicts, operations, time.

    python -m benchmarks.study.ablation bundles/infinity-shapes          # measure (resumes), draw, write the page
    python -m benchmarks.study.ablation bundles/infinity-shapes --draw   # from the committed result alone

Writes benchmarks/results/infinity-shapes-ablation.json; of docs/results/ablation.md the charts and tables.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from ldp_calibration.search.fits import fit
from ldp_calibration.search.report import save_fits
from ldp_calibration.shapes import CATEGORIES, sample_prompt
from ldp_calibration.stats import front, mean_interval
from ldp_runtime.bundle.files import open_bundle
from ldp_runtime.bundle.saved_policies import FITTED, saved_folder
from ldp_runtime.pipeline.pipeline import Pipeline

from benchmarks.paths import REPORTS, RESULTS, result_file
from benchmarks.report.ablation import draw_front, draw_kept, draw_switches, page_with_tables
from benchmarks.report.read import GRAMMAR, read_result
from benchmarks.study.losers import LOSERS
from benchmarks.study.rows import Row, Setting, say, study, time_policies
from benchmarks.study.summary import margin_over_front, summarise
from ldp_export.bench.hardware import hardware, software

RESULT = RESULTS / "infinity-shapes-ablation.json"
#: What is fast, without and with fitted numbers.
OURS, OURS_FITTED = "ld-fast", "ld-fast:fill=linear"

PAPER = {
    "ld-paper": "LHEP and SATS as printed",
    "ld-skip-2": "the paper's headline mode",
    "ld-paper:delta=none": "LHEP alone",
    "ld-paper:scales=": "SATS alone",
    "ld-paper:fill=zero": "fill: zero",
    "ld-paper:fill=linear": "fill: fitted",
    "ld-paper:border=ignored": "border ignored",
    "ld-paper:energy_from=computed": "energy of computed residuals",
    "ld-paper:gap=l2": "gap as raw norm",
    "ld-paper:then=reuse": "guidance recalled after the stop",
    "ld-paper:score=distance": "score: distance",
    "ld-paper:score=variance": "score: variance",
    "ld-paper:score=error": "score: predicted pixels",
    **LOSERS,
}
OWN = {
    OURS: "the fast setting",
    OURS_FITTED: "the fast setting, with a fitted fill",
    "ld-fast:fill=repeat": "fill: repeat",
    "ld-fast:then=conditional": "without recalled guidance",
    "ld-fast:stop=none": "the branch never stops",
    "ld-fast:delta=0.25": "the branch stops by its gap",
    "ld-fast:p=0.9": "p 0.9",
    "ld-fast:p=0.7": "p 0.7",
    "ld-fast:p=0.9,delta=0.25": "p 0.9, stops by its gap",
    "ld": "score: LHEP (recommended)",
    "ld:rho=0.9": "score: LHEP, rho 0.9",
    "ld:rho=0.7": "score: LHEP, rho 0.7",
    "ld:rho=0.6": "score: LHEP, rho 0.6",
    "ld-fast:fill=linear,score=error": "score: predicted pixels, fitted fill",
    "ld-fast:fill=linear,score=error,p=0.9": "score: predicted pixels, p 0.9, fitted fill",
    "ld-fast:fill=linear,p=0.6": "p 0.6, fitted fill",
    "ld-fast:fill=linear,detail=0.45": "the last scale only, fitted fill",
}
CONTROLS = {
    "none:skip_last=1": "last scale skipped",
    "none:skip_last=2": "last two skipped",
    "none:stop=3": "branch stopped after 3",
    "none:stop=4": "branch stopped after 4",
    "none:stop=4,skip_last=1": "both",
    "none:stop=3,skip_last=2": "both",
    "top-k": "40 % by LHEP, repeat",
    "top-k:fill=zero": "40 % by LHEP, zero",
    "top-k:score=distance,fill=zero": "40 % by distance",
    "top-k:score=random,fill=zero": "40 % at random",
    "top-k:share=0.6,score=distance,fill=zero,stop=4": "60 % by distance, stopped",
    "top-k:score=distance,fill=zero,stop=4": "40 % by distance, stopped",
    "top-k:score=random,fill=zero,scales=6,stop=4": "40 % of the last at random, stopped",
    "top-k:score=distance,fill=zero,scales=6,stop=4": "40 % of the last by distance, stopped",
}
GROUPS = {"paper": PAPER, "ours": OWN, "controls": CONTROLS}
POLICIES = [policy for group in GROUPS.values() for policy in group]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--fit-prompts", type=int, default=64)
    parser.add_argument("--timed-prompts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--result", type=result_file, default=RESULT)
    parser.add_argument("--run", type=Path, default=Path("runs/ablation"), help="Folder of the pictures.")
    parser.add_argument("--pages", type=Path, default=REPORTS)
    parser.add_argument("--draw", action="store_true", help="Measure nothing.")
    options = parser.parse_args()
    if not options.draw:
        options.result.write_text(json.dumps(measure(options), indent=None, separators=(",", ":")))
    result = read_result(options.result)
    draw_front(result, options.pages / "ablation-front.png")
    draw_switches(result, options.pages / "ablation-switches.png")
    draw_kept(result, options.pages / "ablation-kept.png")
    page = options.pages / "ablation.md"
    page.write_text(page_with_tables(page.read_text(), result, RESULTS))
    print(options.result, page)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    opened = open_bundle(options.bundle)
    with Pipeline.load(opened) as pipe:
        fitted = fitted_file(pipe, options.fit_prompts)
    text = json.dumps(json.loads(fitted.read_text())["fitted"], sort_keys=True)
    setting = Setting(opened.manifest.digest, hashlib.sha256(text.encode()).hexdigest(), options.prompts)
    rows = study(options.bundle, setting, POLICIES, options.run, options.workers, say)
    with Pipeline.load(opened) as pipe:
        times = time_policies(pipe, setting, POLICIES, options.timed_prompts, options.repeats, say)
        scales = len(pipe.manifest.schedule())
    summaries = {p: asdict(summarise(p, rows[p], times, scales)) for p in POLICIES}
    return {
        "grammar": GRAMMAR,
        "model": opened.manifest.model.name,
        "setting": asdict(setting),
        "machine": {"hardware": hardware(), "software": software(), "load_average": os.getloadavg()[0]},
        "timed": {"prompts": options.timed_prompts, "repeats": options.repeats},
        "unpruned": {
            "milliseconds": float(np.median(times["none"])) * 1e3,
            "accepted": float(np.mean([row.accepted_full for row in rows[POLICIES[0]]])),
            "scales": [list(grid) for grid in opened.manifest.schedule().grids],
        },
        "groups": {name: group for name, group in GROUPS.items()},
        "policies": summaries,
        "margins": margins(rows, {p: summary["speedup"][0] for p, summary in summaries.items()}),
        "margins_by_operations": margins(rows, {p: summary["operations"] for p, summary in summaries.items()}),
        "differences": {p: differences(rows[p], rows[baseline(p)]) for p in POLICIES if p in PAPER or p in OWN},
        "seconds": {p: np.round(t, 5).tolist() for p, t in times.items()},
        "rows": {
            p: [[r.psnr, r.psnr_objects, r.ssim, r.ssim_objects, int(r.accepted), r.operations] for r in rows[p]]
            for p in POLICIES
        },
        "row_columns": ["psnr", "psnr_objects", "ssim", "ssim_objects", "accepted", "operations"],
    }


def fitted_file(pipe: Pipeline, count: int) -> Path:
    """What is fitted to the bundle; if nothing is, it is fitted now, on prompts and seeds that the study leaves out."""
    assert pipe.root is not None
    path = saved_folder(pipe.root, pipe.manifest) / FITTED
    if not path.is_file():
        rng, categories = np.random.default_rng((0, 7)), list(CATEGORIES)
        prompts = [sample_prompt(categories[i % len(categories)], rng).text for i in range(count)]
        save_fits(pipe.root, pipe.manifest, fit(pipe, prompts, range(count), say), prompts)
    return path


def margins(rows: dict[str, list[Row]], speed: dict[str, float]) -> dict[str, Any]:
    """How far each policy lies above the controls' front at its own speed (measured, or counted), per measure."""
    found: dict[str, Any] = {}
    for measure_name in ("psnr", "psnr_objects", "ssim"):
        prompts = [i for i, row in enumerate(rows["none:skip_last=1"]) if getattr(row, measure_name) is not None]
        quality = {p: np.array([getattr(rows[p][i], measure_name) for i in prompts]) for p in rows}
        points = [(speed[p], float(quality[p].mean())) for p in CONTROLS]
        best = [list(CONTROLS)[i] for i in front(points)]
        speeds = [speed[p] for p in best]
        matrix = np.stack([quality[p] for p in best])
        found[measure_name] = {
            "front": best,
            "margin": {
                p: margin_over_front(max(speed[p], speeds[0]), quality[p], speeds, matrix) for p in (*OWN, *PAPER)
            },
        }
    return found


def baseline(policy: str) -> str:
    """What a switch is compared with: the setting that it changes."""
    if policy in PAPER:
        return "ld-paper"
    return OURS_FITTED if "fill=linear" in policy and policy != OURS_FITTED else OURS


def differences(rows: list[Row], base: list[Row]) -> dict[str, Any]:
    """Paired differences to the baseline, with 95 % intervals."""
    pairs = list(zip(rows, base, strict=True))
    objects = [
        a.psnr_objects - b.psnr_objects for a, b in pairs if a.psnr_objects is not None and b.psnr_objects is not None
    ]
    return {
        "psnr": mean_interval([a.psnr - b.psnr for a, b in pairs]),
        "psnr_objects": mean_interval(objects),
        "operations": float(np.mean([a.operations / b.operations for a, b in pairs])),
    }


if __name__ == "__main__":
    main()
