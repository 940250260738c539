"""Optimization profiles, derived from the scale schedules and never constant: the sizes that each engine must serve.

The scales of a size are cut into buckets, early to late. A bucket serves each of its scales at every aspect ratio of
the size. It takes all tokens or any smaller number (pruned), and any past up to the full one. So every call that the
loop can make lies in the bucket of its scale. A later bucket serves all calls that an earlier one does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ldp_runtime.bundle.optimization_profiles import AxisRange, OptimizationProfile
from ldp_runtime.errors import ConfigError
from ldp_runtime.schedule import ScaleSchedule
from ldp_runtime.token_layout import LatentLayout

from ldp_export.graphs.signature import Axis, GraphSignature

#: Rows of batch 1 with guidance: a branch for the prompt and one for the unconditional text.
_TYPICAL_ROWS = 2


#: Text tokens of a usual prompt (a sentence or two).
_TYPICAL_TEXT = 64


def graph_profiles(
    signature: GraphSignature,
    schedules: Sequence[ScaleSchedule],
    layout: LatentLayout,
    buckets: int,
    max_rows: int,
    text_tokens: int,
) -> tuple[OptimizationProfile, ...]:
    """Optimization profiles of one graph.

    Args:
        schedules: scale schedules of every shape that the model draws; kernels are tuned for the first.
        layout: layout of the tokens on the latent, for the decoder.
        buckets: number of buckets of scales, for graphs that run once per scale.
        max_rows: largest number of rows (guidance branches of images) in one call.
        text_tokens: tokens of the longest prompt; 0 for class-conditional models.
    """
    if Axis.TOKENS in signature.axes:
        of_scales = scale_profiles(schedules, buckets, max_rows, text_tokens if Axis.TEXT in signature.axes else 0)
        return tuple(_of_axes(profile, signature) for profile in of_scales)
    if Axis.HEIGHT in signature.axes:
        return latent_profiles(schedules, layout)
    return (OptimizationProfile(_prompt_axes(max_rows, text_tokens if Axis.TEXT in signature.axes else 0)),)


def scale_profiles(
    schedules: Sequence[ScaleSchedule], buckets: int, max_rows: int, text_tokens: int
) -> tuple[OptimizationProfile, ...]:
    """Optimization profiles, one per bucket of scales, early to late.

    Raises:
        ConfigError: there are fewer buckets than one, or more than scales.
    """
    profiles = []
    for first, last in buckets_of(len(schedules[0]), buckets):
        tokens, past = [s.tokens[last] for s in schedules], [s.offsets[last] for s in schedules]
        axes = {
            Axis.TOKENS.value: AxisRange(1, tokens[0], max(tokens)),
            Axis.PAST.value: AxisRange(0, past[0], max(past)),
            **_prompt_axes(max_rows, text_tokens),
        }
        profiles.append(OptimizationProfile(axes, (first, last)))
    return tuple(profiles)


def _of_axes(profile: OptimizationProfile, signature: GraphSignature) -> OptimizationProfile:
    """Profile without the axes that the graph lacks: with a static KV cache, for example, it has no past."""
    return replace(profile, axes={name: sides for name, sides in profile.axes.items() if name in signature.axes})


def latent_profiles(schedules: Sequence[ScaleSchedule], layout: LatentLayout) -> tuple[OptimizationProfile, ...]:
    """Two profiles for the decoder, tall and wide: one for both would include squares of the longest side."""
    grids = [layout.latent_grid(schedule.final_grid) for schedule in schedules]
    tall, wide = [g for g in grids if g[0] >= g[1]], [g for g in grids if g[0] < g[1]]
    return tuple(_latent_profile(group) for group in (tall, wide) if group)


def _latent_profile(grids: Sequence[tuple[int, int]]) -> OptimizationProfile:
    heights, widths = [h for h, _ in grids], [w for _, w in grids]
    return OptimizationProfile(
        {
            Axis.IMAGES.value: AxisRange(1, 1, 1),
            Axis.HEIGHT.value: AxisRange(min(heights), heights[0], max(heights)),
            Axis.WIDTH.value: AxisRange(min(widths), widths[0], max(widths)),
        }
    )


def buckets_of(scales: int, buckets: int) -> list[tuple[int, int]]:
    """First and last scale of each bucket. All have equally many scales, or the first ones one more if they must."""
    if not 1 <= buckets <= scales:
        raise ConfigError(
            f"{scales} scales can be served by 1 to {scales} profiles, not by {buckets}",
            hint=f"--profiles {min(3, scales)}, or leave it out",
        )
    share, extra = divmod(scales, buckets)
    ranges, first = [], 0
    for index in range(buckets):
        last = first + share - (index >= extra)
        ranges.append((first, last))
        first = last + 1
    return ranges


def _prompt_axes(max_rows: int, text_tokens: int) -> Mapping[str, AxisRange]:
    axes = {Axis.ROWS.value: AxisRange(1, min(_TYPICAL_ROWS, max_rows), max_rows)}
    if text_tokens:
        axes[Axis.TEXT.value] = AxisRange(1, min(_TYPICAL_TEXT, text_tokens), text_tokens)
    return axes
