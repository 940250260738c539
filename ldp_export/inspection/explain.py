"""Draws one run as a picture: what each scale added, where it computed, and what it cost."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from ldp_calibration.drawing import pyplot
from ldp_calibration.fidelity import psnr_db
from ldp_runtime.pipeline.drawing import ScaleEvent
from ldp_runtime.pipeline.pipeline import Pipeline
from ldp_runtime.pipeline.trace import ScaleTrace, Trace
from ldp_runtime.pruning.parse import describe, parse_policy
from ldp_runtime.pruning.policy import Policy
from ldp_runtime.system.disk import written_result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Explanation:
    """Run of one image: the image after each scale, its trace, and the full model's image and trace beside them."""

    prompt: str | int
    previews: tuple[Any, ...]
    image: Any
    full: Any
    trace: Trace
    full_trace: Trace


def explain(
    pipe: Pipeline,
    prompt: str | int,
    policy: Policy | str | None,
    seed: int | None = None,
    guidance: float | None = None,
) -> Explanation:
    """Draws a prompt (or class) with a policy and, for comparison, without one."""
    previews: list[Any] = []

    def keep(event: ScaleEvent) -> None:
        previews.append(event.preview())

    pruned = pipe.draw(prompt, policy=policy, seed=seed, guidance_scale=guidance, callback_on_scale=keep)
    full = pipe.draw(prompt, policy="none", seed=pruned.seeds[0], guidance_scale=guidance)
    return Explanation(prompt, tuple(previews), pruned.images[0], full.images[0], pruned.traces[0], full.traces[0])


def draw(explanation: Explanation, path: Path) -> None:
    """Saves the picture: a row per scale, and the final image beside the full model's. Needs matplotlib."""
    plt = pyplot()
    scales = explanation.trace.scales
    figure = plt.figure(figsize=(9.5, 1.55 * len(scales) + 2.6), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[2.3, 1.55 * len(scales)])
    top, bottom = parts
    _draw_result(top, explanation)
    axes = bottom.subplots(len(scales), 4, width_ratios=[1, 1, 1, 2.1], squeeze=False)
    policy = parse_policy(explanation.trace.policy)
    score = "" if policy is None else getattr(policy.tokens, "score", "")
    for row, (scale, preview) in enumerate(zip(scales, explanation.previews, strict=True)):
        _draw_scale(axes[row], scale, preview, score, first=row == 0)
    with written_result(path) as scratch:
        figure.savefig(scratch, dpi=110, format=path.suffix.removeprefix(".").lower() or "png")
    plt.close(figure)


def _draw_result(figure: Any, explanation: Explanation) -> None:
    axes = figure.subplots(1, 3, width_ratios=[1, 1, 1.6])
    show(axes[0], explanation.full, "full model")
    show(axes[1], explanation.image, title(explanation))
    trace, axis = explanation.trace, axes[2]
    axis.axis("off")
    stopped = trace.stopped_after
    lines = [
        *textwrap.wrap(_words(explanation.prompt), 44),
        f"seed {trace.seed}",
        f"{trace.tokens} of {trace.tokens_full} tokens computed",
        f"{len(trace.scales)} of {trace.scales_full} scales run",
        "both branches to the end" if stopped is None else f"one branch from scale {stopped + 1} on",
        f"blocks {sum(s.blocks_s for s in trace.scales) * 1e3:.0f} ms, decoder {trace.decode_s * 1e3:.0f} ms",
    ]
    axis.text(0, 0.95, "\n".join(lines), va="top", fontsize=9, parse_math=False)


def _words(prompt: str | int) -> str:
    return f"class {prompt}" if isinstance(prompt, int) else f"“{prompt}”"


def _draw_scale(axes: Sequence[Axes], scale: ScaleTrace, preview: Any, score: str, first: bool) -> None:
    h, w = scale.grid
    show(axes[0], preview, "image so far" if first else "")
    axes[0].set_ylabel(f"scale {scale.scale}\n{h}x{w}", fontsize=8)
    if scale.score is None:
        axes[1].axis("off")
    else:
        axes[1].imshow(scale.score.cpu().numpy(), cmap="magma")
        axes[1].set(xticks=[], yticks=[])
        axes[1].set_title(score, fontsize=8)
    show(axes[2], dimmed(preview, scale), "" if scale.kept is None else "computed here")
    text = [f"{scale.tokens} of {scale.tokens_full} tokens ({scale.kept_share:.0%})"]
    text.append("two branches" if scale.rows == 2 else "one branch")
    if scale.gap is not None:
        text.append(f"guidance gap {scale.gap:.2f}")
    if scale.unconditional_stopped:
        text.append("unconditional branch stops here")
    choosing = (scale.select_s + scale.residual_s) * 1e3
    text.append(f"engine {scale.blocks_s * 1e3:.1f} ms, around it {choosing:.1f} ms")
    axes[3].axis("off")
    axes[3].text(0, 0.5, "\n".join(text), va="center", fontsize=8)


def title(explanation: Explanation) -> str:
    """The policy in its shortest words, broken into lines that fit over a picture, and its PSNR."""
    words = describe(parse_policy(explanation.trace.policy)).replace(",", ", ")
    return f"{fill(words, 34)}: {quality(explanation):.1f} dB"


def show(axis: Axes, image: Any, title: str) -> None:
    """Shows an image without ticks."""
    axis.imshow(np.asarray(image))
    axis.set_title(title, fontsize=8)
    axis.set(xticks=[], yticks=[])


def dimmed(image: Any, scale: ScaleTrace) -> np.ndarray:
    """Image [H, W, 3], darkened at the positions that this scale did not compute."""
    pixels = np.asarray(image).astype(float) / 255
    if scale.kept is None:
        return pixels
    h, w = scale.grid
    mask = np.zeros(h * w)
    mask[scale.kept.cpu().numpy()] = 1
    rows = np.arange(pixels.shape[0]) * h // pixels.shape[0]
    columns = np.arange(pixels.shape[1]) * w // pixels.shape[1]
    return pixels * (0.2 + 0.8 * mask.reshape(h, w)[np.ix_(rows, columns)][..., None])


def quality(explanation: Explanation) -> float:
    """PSNR in dB of the image against the full model's."""
    full, image = (np.asarray(x, dtype=float) / 255 for x in (explanation.full, explanation.image))
    return psnr_db(image, full)


def draw_comparison(rows: Sequence[Explanation], path: Path) -> None:
    """Saves a grid of prompts x (full model, pruned, computed at each pruned scale, tokens per scale)."""
    plt = pyplot()
    masks = max(sum(s.kept is not None for s in row.trace.scales) for row in rows)
    columns = 3 + masks
    size = (2.1 * columns + 1.4, 2.35 * len(rows))
    ratios = [1.0] * (columns - 1) + [1.7]
    figure: Figure
    figure, axes = plt.subplots(
        len(rows), columns, figsize=size, width_ratios=ratios, layout="constrained", squeeze=False
    )
    for axis_row, row in zip(axes, rows, strict=True):
        show(axis_row[0], row.full, "full model")
        axis_row[0].set_ylabel("\n".join(textwrap.wrap(_words(row.prompt), 22)), fontsize=9, parse_math=False)
        show(axis_row[1], row.image, title(row))
        thinned = [scale for scale in row.trace.scales if scale.kept is not None]
        for axis, scale in zip(axis_row[2:-1], thinned, strict=False):
            show(axis, dimmed(row.image, scale), f"scale {scale.scale}: {scale.kept_share:.0%} computed")
        for axis in axis_row[2 + len(thinned) : -1]:
            axis.axis("off")
        draw_counts(axis_row[-1], row)
    with written_result(path) as scratch:
        figure.savefig(scratch, dpi=110, format=path.suffix.removeprefix(".").lower() or "png")
    plt.close(figure)


def draw_counts(axis: Axes, explanation: Explanation) -> None:
    """Draws tokens times branches of each scale: those of the full model, and those computed here."""
    trace, full = explanation.trace, explanation.full_trace.scales
    ks = [scale.scale for scale in trace.scales]
    tokens = [s.tokens for s in trace.scales]
    axis.bar([s.scale for s in full], [s.rows * s.tokens for s in full], color="0.88", label="full model")
    axis.bar(ks, tokens, color="tab:blue", label="conditional")
    both = [s.tokens if s.rows == 2 else 0 for s in trace.scales]
    axis.bar(ks, both, bottom=tokens, color="tab:orange", label="unconditional")
    axis.set_title("tokens per scale", fontsize=8)
    axis.set_xticks([s.scale for s in full])
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=6, frameon=False, loc="upper left")
