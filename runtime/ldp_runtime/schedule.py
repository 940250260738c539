"""Scale schedules: the token grids that a model draws, in order, and the positions of their tokens.

Source: the Infinity reference implementation's dynamic-resolution templates and 2-D RoPE
(`rope2d_normalized_by_hw = 2`). Positions are measured in units of the *final grid of the 1M schedule* of the
aspect ratio, also when a smaller schedule is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from ldp_runtime.errors import ConfigError, InternalError

if TYPE_CHECKING:
    import torch

Grid = tuple[int, int]

#: height / width -> the 13 token grids (h, w) of the 1M schedule. Ratios below 1 are these with h and w swapped.
_TALL_TEMPLATES: dict[float, str] = {
    1.0: "1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20 24x24 32x32 40x40 48x48 64x64",
    1.25: "1x1 2x2 3x3 5x4 10x8 15x12 20x16 25x20 30x24 35x28 45x36 55x44 70x56",
    1.333: "1x1 2x2 4x3 8x6 12x9 16x12 20x15 24x18 28x21 36x27 48x36 60x45 72x54",
    1.5: "1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52",
    1.75: "1x1 2x2 3x3 7x4 11x6 14x8 21x12 28x16 35x20 42x24 56x32 70x40 84x48",
    2.0: "1x1 2x2 4x2 6x3 10x5 16x8 22x11 30x15 38x19 46x23 60x30 74x37 90x45",
    2.5: "1x1 2x2 5x2 10x4 15x6 20x8 25x10 30x12 40x16 50x20 65x26 80x32 100x40",
    3.0: "1x1 2x2 6x2 9x3 15x5 21x7 27x9 36x12 45x15 54x18 72x24 90x30 111x37",
}

#: Number of scales of each named size; the name is roughly the number of pixels.
SCALES_OF_SIZE: dict[str, int] = {"0.06M": 7, "0.25M": 10, "0.6M": 12, "1M": 13}


def _parse(template: str) -> tuple[Grid, ...]:
    sides = (grid.split("x") for grid in template.split())
    return tuple((int(h), int(w)) for h, w in sides)


def _all_templates() -> dict[float, tuple[Grid, ...]]:
    """Aspect ratio (height / width) -> grids, in the reference implementation's order (first wins on ties)."""
    table: dict[float, tuple[Grid, ...]] = {}
    for ratio, text in _TALL_TEMPLATES.items():
        grids = _parse(text)
        table[ratio] = grids
        if ratio != 1.0:
            table[int(1 / ratio * 1000) / 1000] = tuple((w, h) for h, w in grids)
    return table


TEMPLATES: dict[float, tuple[Grid, ...]] = _all_templates()


@dataclass(frozen=True)
class ScaleSchedule:
    """The token grids of one image, coarse to fine, and the grid that positions are measured in.

    Attributes:
        grids: (h, w) of every scale.
        position_grid: (h, w) of the last grid of the 1M schedule of this aspect ratio.
    """

    grids: tuple[Grid, ...]
    position_grid: Grid

    def __post_init__(self) -> None:
        if not self.grids or any(h < 1 or w < 1 for h, w in self.grids):
            raise ConfigError(
                f"a scale schedule needs at least one grid of at least 1x1, got {self.grids}", hint="as 1x1 2x2 4x4"
            )
        shrinks = any(a[0] > b[0] or a[1] > b[1] for a, b in zip(self.grids, self.grids[1:], strict=False))
        if shrinks:
            raise ConfigError(
                f"the grids of a scale schedule must not shrink, got {self.grids}",
                hint="order the grids from coarse to fine",
            )

    @classmethod
    def of_size(cls, size: str, aspect_ratio: float = 1.0) -> ScaleSchedule:
        """The schedule of a named size ("0.06M", "0.25M", "0.6M", "1M") at the template nearest to height/width.

        Raises:
            ConfigError: unknown size, or an aspect ratio that is not positive.
        """
        if size not in SCALES_OF_SIZE:
            raise ConfigError(f"unknown size {size!r}", hint=f"one of {', '.join(SCALES_OF_SIZE)}")
        if not 0 < aspect_ratio < float("inf"):
            raise ConfigError(
                f"aspect ratio (height / width) must be positive, got {aspect_ratio}",
                hint="as 0.5625 for 16:9, 1.0 for a square",
            )
        return _of_template(size, nearest_template(aspect_ratio))

    @classmethod
    def of_grids(cls, grids: tuple[Grid, ...] | list[list[int]]) -> ScaleSchedule:
        """A schedule from explicit grids; positions follow the template that begins with them.

        A schedule that begins no template measures positions in its own last grid.
        """
        own = tuple((int(g[-2]), int(g[-1])) for g in grids)
        for template in TEMPLATES.values():
            if template[: len(own)] == own:
                return cls(own, template[-1])
        return cls(own, own[-1])

    @classmethod
    def of_squares(cls, sides: Sequence[int]) -> ScaleSchedule:
        """Square grids of these sides; positions are measured in the last one."""
        return cls(tuple((side, side) for side in sides), (sides[-1], sides[-1]))

    def __len__(self) -> int:
        return len(self.grids)

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """Number of tokens of each scale."""
        return tuple(h * w for h, w in self.grids)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Number of tokens before each scale, with the total at the end (length: scales + 1)."""
        sums = [0]
        for count in self.tokens:
            sums.append(sums[-1] + count)
        return tuple(sums)

    @property
    def total_tokens(self) -> int:
        return self.offsets[-1]

    @property
    def final_grid(self) -> Grid:
        return self.grids[-1]

    def detail_scales(self, share: float = 0.75) -> tuple[int, ...]:
        """The fewest last scales that together hold at least `share` of all tokens: those worth pruning.

        On the 1M square schedule these are scales 10, 11 and 12, the paper's choice.
        """
        return _detail_scales(self, share)

    def positions(self, scale: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and column of each token of a scale in units of `position_grid`: two [h*w] float32 tensors."""
        import torch

        h, w = self.grids[scale]
        # `torch.round` rounds exact .5 ties to even: part of the released models' behaviour.
        ys = torch.round(_counted(h) * (self.position_grid[0] / h))
        xs = torch.round(_counted(w) * (self.position_grid[1] / w))
        return ys.repeat_interleave(w), xs.repeat(h)


def _counted(count: int) -> torch.Tensor:
    """0, 1, 2, ... as float32 on the CPU [count]."""
    import torch

    return torch.arange(count, dtype=torch.float32, device="cpu")


@lru_cache(maxsize=64)  # policies ask several times per scale
def _detail_scales(schedule: ScaleSchedule, share: float) -> tuple[int, ...]:
    scales, total = len(schedule), schedule.total_tokens
    for first in range(scales - 1, -1, -1):
        if total - schedule.offsets[first] >= share * total:
            return tuple(range(first, scales))
    return tuple(range(scales))


@lru_cache(maxsize=64)  # one object per schedule: its cached properties are computed once, not for every request
def _of_template(size: str, template: float) -> ScaleSchedule:
    grids = TEMPLATES[template]
    return ScaleSchedule(grids[: SCALES_OF_SIZE[size]], grids[-1])


def nearest_template(aspect_ratio: float) -> float:
    """The template ratio (height / width) nearest to `aspect_ratio`; the first of the table wins on ties."""
    return min(TEMPLATES, key=lambda ratio: abs(ratio - aspect_ratio))


@lru_cache(maxsize=4)
def rope_table(schedule: ScaleSchedule, head_dim: int) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Rotary cosines and sines of every scale: a (cos, sin) pair of [h*w, head_dim / 2] float32 per scale.

    The first half of the angles depends on the row, the second half on the column (2-D RoPE, base 10000).
    Tables are cached for the next image of the same schedule: callers must not write to them.
    """
    import torch

    if head_dim % 4:
        raise InternalError(f"2-D RoPE needs a head dimension divisible by 4, got {head_dim}")
    quarter = head_dim // 4
    theta = 1.0 / (10000 ** ((2 * _counted(quarter)) / (2 * quarter)))
    table = []
    for scale in range(len(schedule)):
        ys, xs = schedule.positions(scale)
        angles = torch.cat([ys[:, None] * theta, xs[:, None] * theta], dim=1)  # [h*w, head_dim/2]
        table.append((angles.cos(), angles.sin()))
    return tuple(table)


@lru_cache(maxsize=4)
def relative_rope_table(
    schedule: ScaleSchedule, head_dim: int, theta: float, size: int
) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Rotary cosines and sines of every scale, whose positions run from 0 to `size` whatever its number of tokens.

    Each scale has a (cos, sin) pair of [h*w, head_dim / 2] float32. The first half of the angles depends on the column,
    the second half on the row, as in Switti. Tables are cached: callers must not write to them.
    """
    import torch

    if head_dim % 4:
        raise InternalError(f"2-D RoPE needs a head dimension divisible by 4, got {head_dim}")
    frequencies = 1.0 / theta ** (4 * _counted(head_dim // 4) / head_dim)
    table = []
    for h, w in schedule.grids:
        # With one position all angles are 0, whatever the step.
        xs, ys = (_counted(side)[:, None] * (frequencies * (size / max(side - 1, 1))) for side in (w, h))
        angles = torch.cat([xs.repeat(h, 1), ys.repeat_interleave(w, 0)], dim=1)  # [h*w, head_dim/2]
        table.append((angles.cos(), angles.sin()))
    return tuple(table)


@lru_cache(maxsize=4)
def corner_places(schedule: ScaleSchedule, head_dim: int) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Places and frequencies of every scale, from which angles follow where a prompt's length is known.

    Places are (row, column) on the last scale's grid [h*w, 2], of the corner of each token. The frequencies
    [h*w, head_dim / 2] serve both halves of the channels. The token of scale 0 is a text's last row: it has the
    frequencies of text. Tensors are cached: callers must not write to them.
    """
    import torch

    if head_dim % 4:
        raise InternalError(f"2-D RoPE needs a head dimension divisible by 4, got {head_dim}")
    text = 1.0 / 10000 ** (2 * _counted(head_dim // 2) / head_dim)
    image = 1.0 / 10000 ** (4 * _counted(head_dim // 4) / head_dim)
    last, table = schedule.grids[-1][0], []
    for scale, (h, w) in enumerate(schedule.grids):
        ys, xs = (_counted(side) / side * last for side in (h, w))
        places = torch.stack((ys.repeat_interleave(w), xs.repeat(h)), dim=1)
        frequencies = text if scale == 0 else torch.cat((image, image))
        table.append((places, frequencies.expand(h * w, -1).contiguous()))
    return tuple(table)
