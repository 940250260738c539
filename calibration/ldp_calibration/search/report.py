"""Writes a calibration as a saved policy, and as a chart of speed against fidelity."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.bundle.saved_policies import FITTED, FittedFile, SavedPolicy, saved_folder
from ldp_runtime.pruning.fitted import Fitted, needs_fits
from ldp_runtime.pruning.parse import parse_policy, policy_text
from ldp_runtime.pruning.policy import Policy
from ldp_runtime.system.disk import write_durably, written_result

from ldp_calibration.candidates import is_control
from ldp_calibration.drawing import pyplot
from ldp_calibration.search.calibrate import Calibration
from ldp_calibration.search.trials import Point, prompts_hash


def make_saved(name: str, manifest: Manifest, calibration: Calibration) -> SavedPolicy:
    """Saved policy that `generate --policy NAME` uses, with its evidence."""
    chosen, timed = calibration.chosen, calibration.timed
    chosen_policy = parse_policy(chosen.policy)
    evidence: dict[str, Any] = {
        "held_out_prompts": calibration.held_out_prompts,
        "search_prompts": calibration.search_prompts,
        "prompts_sha256": calibration.prompts_sha256,
        "seed": calibration.seed,
        "candidates_put_to_held_out_prompts": calibration.tries,
        "psnr_db": asdict(chosen.psnr),
        "ssim": asdict(chosen.ssim),
        "lpips": None if chosen.lpips is None else asdict(chosen.lpips),
        "operations_speedup": chosen.speedup,
        "measured_speedup": {"value": timed[0], "low": timed[1], "high": timed[2]},
        "kept_share_per_scale": list(chosen.kept),
        "stop_rate": chosen.stop_rate,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "torch": torch.__version__,
        "model": manifest.model.name,
        "precision": manifest.precision,
        "backend": manifest.backend,
    }
    return SavedPolicy(
        name=name,
        policy=policy_text(chosen_policy),
        grammar=2,
        digest=manifest.digest,
        budget=str(calibration.budget),
        evidence=evidence,
        fitted=calibration.fitted.to_json() if needs_fits(chosen_policy) else None,
    )


def save_policy(root: Path, manifest: Manifest, profile: SavedPolicy) -> Path:
    """Writes the saved policy beside the bundle's content, whole or not at all."""
    return _write(saved_folder(root, manifest) / f"{profile.name}.json", profile.model_dump_json())


def save_fits(root: Path, manifest: Manifest, fitted: Fitted, prompts: Sequence[str | int]) -> Path:
    """Writes the fitted numbers beside the bundle's content, where policies given as text find them."""
    content = FittedFile(
        digest=manifest.digest, prompts_sha256=prompts_hash(prompts), prompts=len(prompts), fitted=fitted.to_json()
    )
    return _write(saved_folder(root, manifest) / FITTED, content.model_dump_json())


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, text.encode())
    return path


def calibration_json(calibration: Calibration) -> str:
    """JSON of everything that was tried, for later charts."""
    plain = {k: v for k, v in calibration.__dict__.items() if k != "fitted"}
    return json.dumps(plain | {"fitted": calibration.fitted.to_json()}, default=asdict)


def draw_front(calibration: Calibration, path: Path) -> None:
    """Draws speed-up against fidelity of every candidate and control, the front, the budget and the choice."""
    plt = pyplot()
    measure = calibration.budget.measure if calibration.budget.measure in ("ssim", "lpips") else "psnr"
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for label, style, points in _groups(calibration.searched):
        axis.plot([p.speedup for p in points], [p.bound_of(measure).mean for p in points], style, label=label, ms=5)
    front = calibration.front
    axis.plot([p.speedup for p in front], [p.bound_of(measure).mean for p in front], "-", color="0.6", zorder=0)
    for p in calibration.searched:
        if is_control(p.policy):
            axis.annotate(
                p.policy, (p.speedup, p.bound_of(measure).mean), fontsize=6, xytext=(3, 3), textcoords="offset points"
            )
    chosen = calibration.chosen
    axis.plot(
        chosen.speedup, chosen.bound_of(measure).mean, "*", ms=15, color="tab:red", label=f"chosen: {chosen.policy}"
    )
    line = axis.axvline if calibration.budget.measure == "speedup" else axis.axhline
    line(calibration.budget.limit, ls=":", color="tab:red", label=f"budget {calibration.budget}")
    axis.set_xlabel("fewer operations in the blocks (x), search prompts; star: held-out prompts")
    axis.set_ylabel(f"{measure.upper()} against the unpruned image{' (dB)' if measure == 'psnr' else ''}")
    axis.legend(fontsize=7)
    with written_result(path) as scratch:
        figure.savefig(scratch, dpi=110, format=path.suffix.removeprefix(".").lower() or "png")
    plt.close(figure)


def _groups(points: tuple[Point, ...]) -> list[tuple[str, str, list[Point]]]:
    """Groups candidates by kind, for colours: label, plot style, points."""

    def kind(text: str) -> str:
        policy = parse_policy(text) or Policy()
        if is_control(text):
            return "controls"
        if policy.tokens is None:
            return "SATS alone"
        if policy.guidance is None:
            return "LHEP alone, " + ("repeat" if "fill=repeat" in text else "fitted or zero") + " fill"
        return "LHEP and SATS, last scale skipped" if policy.skip_last else "LHEP and SATS"

    styles = {
        "LHEP alone, fitted or zero fill": "o",
        "LHEP alone, repeat fill": "v",
        "SATS alone": "s",
        "LHEP and SATS": "^",
        "LHEP and SATS, last scale skipped": "D",
        "controls": "kx",
    }
    return [
        (name, style, matching)
        for name, style in styles.items()
        if (matching := [p for p in points if kind(p.policy) == name])
    ]
