"""Optimization profiles: the sizes of each dynamic axis that an engine was built for, and the choice between them.

An engine with dynamic shapes is built for ranges of sizes. Each profile is tuned for its typical sizes and serves
all sizes within its ranges; a call must lie within one profile. The choice depends on the call's sizes alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from ldp_runtime.errors import CapacityError, InternalError


@dataclass(frozen=True)
class AxisRange:
    """Sizes of one axis: the smallest and largest that are served, and the typical one that kernels are tuned for."""

    smallest: int
    typical: int
    largest: int

    def __post_init__(self) -> None:
        if not 0 <= self.smallest <= self.typical <= self.largest:
            raise InternalError(
                f"a range needs 0 <= smallest <= typical <= largest, "
                f"got {self.smallest}, {self.typical}, {self.largest}"
            )

    def __contains__(self, size: int) -> bool:
        return self.smallest <= size <= self.largest

    def __str__(self) -> str:
        return str(self.largest) if self.smallest == self.largest else f"{self.smallest}-{self.largest}"


@dataclass(frozen=True)
class OptimizationProfile:
    """Sizes that one optimization profile of an engine serves.

    Attributes:
        axes: name of each dynamic axis ("rows", "tokens", "past", "text", ...) -> its range.
        scales: first and last scale that the profile is meant for, in every aspect ratio, pruned or not. None for
            graphs that do not run once per scale.
    """

    axes: Mapping[str, AxisRange]
    scales: tuple[int, int] | None = None

    def covers(self, sizes: Mapping[str, int]) -> bool:
        """True if a call with these sizes, one per axis, can run in this profile."""
        return all(sizes[axis] in sides for axis, sides in self.axes.items())

    @property
    def volume(self) -> int:
        """Product of the largest sizes; of the profiles that cover a call, the smallest is tuned closest to it."""
        return prod(max(1, sides.largest) for sides in self.axes.values())

    def __str__(self) -> str:
        words = ", ".join(_words(axis, sides) for axis, sides in self.axes.items())
        if self.scales is None:
            return words
        first, last = self.scales
        return f"{f'scales {first}-{last}' if first != last else f'scale {first}'}: {words}"


#: Axes whose name is a plural, so that text puts the number first: "4 rows", but "past 340".
_COUNTED = ("tokens", "rows", "images")


def _words(axis: str, sides: AxisRange) -> str:
    return f"{sides} {axis}" if axis in _COUNTED else f"{axis} {sides}"


def choose_profile(profiles: Sequence[OptimizationProfile], sizes: Mapping[str, int], graph: str) -> int:
    """Index of the tightest profile that covers a call.

    Args:
        sizes: size of every dynamic axis of the call.
        graph: name of the graph, for the message.

    Raises:
        CapacityError: no profile covers the call; nothing was sent to the device.
    """
    covering = [index for index, profile in enumerate(profiles) if profile.covers(sizes)]
    if not covering:
        asked = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
        built = "; ".join(str(profile) for profile in profiles)
        raise CapacityError(
            f"the engine {graph!r} was not built for {asked}; its profiles cover: {built}",
            hint="ask for less, or build the bundle for more: --max-batch, --size",
        )
    return min(covering, key=lambda index: (profiles[index].volume, index))
