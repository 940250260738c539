"""Partial images: how near they are to the bundle's own decoder, and what they cost.

python -m benchmarks.serving.previews BUNDLE --output benchmarks/results/serving-previews.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from ldp_runtime import Pipeline
from ldp_runtime.pixels import to_output
from ldp_serving.preview import fit_previews, psnr_db

from benchmarks.paths import PROMPTS


def main() -> None:
    """Draws prompts that the fit did not see, and compares at every scale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--policy", default="ld")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    prompts = [line for line in PROMPTS.read_text().splitlines() if line][: options.prompts]
    with Pipeline.load(options.bundle) as pipeline:
        started = time.perf_counter()
        fitted = fit_previews(pipeline)
        result: dict[str, Any] = {"fit_s": round(time.perf_counter() - started, 1), "fitted": fitted is not None}
        assert fitted is not None
        decibels: dict[int, list[float]] = {}
        spent, drawing = list[float](), list[float]()
        torch.set_num_threads(1)
        for seed, prompt in enumerate(prompts):
            latents: list[torch.Tensor] = []

            def keep(event: Any, kept: list[torch.Tensor] = latents) -> None:
                kept.append(event.latents[0].clone())

            begun = time.perf_counter()
            pipeline(prompt, seed=900 + seed, policy=options.policy, callback_on_scale=keep)
            drawing.append(time.perf_counter() - begun)
            for scale, latent in enumerate(latents):
                full = pipeline.decode(latent[None], "torch") * 2 - 1
                begun = time.perf_counter()
                pixels = fitted.pixels(latent)
                to_output(pixels.clone(), "pil")
                spent.append(time.perf_counter() - begun)
                decibels.setdefault(scale, []).append(psnr_db(pixels, full))
    result["psnr_db"] = {
        scale: {"least": round(min(values), 1), "mean": round(statistics.fmean(values), 1)}
        for scale, values in decibels.items()
    }
    result["picture_ms"] = round(1e3 * statistics.median(drawing), 2)
    result["partial_ms"] = round(1e3 * statistics.median(spent), 2)
    result["three_partials_share"] = round(3 * statistics.median(spent) / statistics.median(drawing), 4)
    print(json.dumps(result, indent=1))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
