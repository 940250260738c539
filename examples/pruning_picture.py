"""Draws a picture of what LD-Pruning does: prompts x (full model, pruned, tokens computed at each scale).

    python examples/pruning_picture.py bundles/infinity-shapes --output pruning.png
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from ldp_runtime import GenerationResult, Pipeline
from ldp_runtime.trace import ScaleTrace, Trace

PROMPTS = (
    "a red circle",
    "a blue square to the left of a yellow star",
    "three green triangles",
    "a purple ring above an orange circle",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--output", type=Path, default=Path("pruning.png"))
    parser.add_argument("--policy", default="ld")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--prompt", action="append", help="may be given several times")
    options = parser.parse_args()
    prompts = options.prompt or list(PROMPTS)
    with Pipeline.load(options.bundle, max_batch=len(prompts)) as pipe:
        full = pipe(prompts, seed=options.seed)
        pruned = pipe(prompts, seed=options.seed, policy=options.policy)
    figure = draw(prompts, full, pruned)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=110)
    print(f"{options.output}: {len(prompts)} prompts, policy {options.policy}")


def draw(prompts: Sequence[str], full: GenerationResult, pruned: GenerationResult) -> plt.Figure:
    masks = max(sum(s.kept is not None for s in trace.scales) for trace in pruned.traces)
    columns = 3 + masks
    figure, axes = plt.subplots(
        len(prompts),
        columns,
        figsize=(2.1 * columns + 1.2, 2.3 * len(prompts) + 0.4),
        width_ratios=[1] * (columns - 1) + [1.7],
        layout="constrained",
        squeeze=False,
    )
    for row, prompt in enumerate(prompts):
        trace = pruned.traces[row]
        show(axes[row][0], full.images[row], f"full: {full.traces[row].row_tokens} token rows")
        axes[row][0].set_ylabel("\n".join(wrapped(prompt)), fontsize=9)
        quality = psnr(full.images[row], pruned.images[row])
        show(axes[row][1], pruned.images[row], f"pruned: {trace.row_tokens} token rows, {quality:.1f} dB")
        thinned = [scale for scale in trace.scales if scale.kept is not None]
        for column, scale in enumerate(thinned):
            show_mask(axes[row][2 + column], pruned.images[row], scale)
        for column in range(2 + len(thinned), columns - 1):
            axes[row][column].axis("off")
        show_counts(axes[row][-1], trace)
    return figure


def wrapped(text: str, width: int = 22) -> list[str]:
    return textwrap.wrap(text, width)


def show(axis: plt.Axes, image: object, title: str) -> None:
    axis.imshow(np.asarray(image))
    axis.set_title(title, fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])


def show_mask(axis: plt.Axes, image: object, scale: ScaleTrace) -> None:
    """The image with the places dimmed that this scale did not compute."""
    h, w = scale.grid
    mask = np.zeros(h * w)
    if scale.kept is not None:
        mask[scale.kept.numpy()] = 1
    pixels = np.asarray(image).astype(float) / 255
    height, width = pixels.shape[:2]
    rows = (np.arange(height) * h // height).astype(int)
    cols = (np.arange(width) * w // width).astype(int)
    full = mask.reshape(h, w)[np.ix_(rows, cols)]
    show(axis, pixels * (0.2 + 0.8 * full[..., None]), f"scale {scale.scale}: {scale.kept_share:.0%} computed")


def show_counts(axis: plt.Axes, trace: Trace) -> None:
    """Tokens of each scale: full grid, and what was computed in one or two branches."""
    ks = [scale.scale for scale in trace.scales]
    axis.bar(ks, [2 * s.tokens_full for s in trace.scales], color="0.88", label="full model (2 branches)")
    axis.bar(ks, [s.tokens for s in trace.scales], color="tab:blue", label="conditional")
    both = [s.tokens if s.rows == 2 else 0 for s in trace.scales]
    axis.bar(ks, both, bottom=[s.tokens for s in trace.scales], color="tab:orange", label="unconditional")
    axis.set_title("tokens per scale", fontsize=8)
    axis.set_xticks(ks)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=6, frameon=False, loc="upper left")


def psnr(a: object, b: object) -> float:
    """Peak signal-to-noise ratio of two 8-bit images in dB, at most 60."""
    error = np.mean((np.asarray(a, dtype=float) - np.asarray(b, dtype=float)) ** 2)
    return min(60.0, 10 * np.log10(255**2 / max(error, 1e-12)))


if __name__ == "__main__":
    main()
