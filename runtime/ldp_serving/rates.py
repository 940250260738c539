"""Measured rates: seconds of a picture and of its scales, from which waits and the places of previews are predicted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from ldp_runtime.pipeline.request import ImageRequest
from ldp_runtime.pipeline.trace import Trace
from ldp_runtime.pruning.parse import policy_text
from ldp_runtime.schedule import ScaleSchedule

#: Weight of the newest measurement.
_NEWEST = 0.2

#: Share of a run before which the last partial image does not come. A little above 60 %: times vary.
LAST_PARTIAL = 0.63

#: Share of the scales after which partial images begin: the latents of earlier ones are too far from a picture's.
_FIRST_SCALES = 0.45


class Rates:
    """Moving averages; written by the engine thread, read by any."""

    def __init__(self) -> None:
        self.picture_s = 0.0
        self._runs: dict[tuple[ScaleSchedule, str], list[float]] = {}

    def picture(self, seconds: float) -> None:
        """Notes the engine's time for one picture."""
        self.picture_s = _mean(self.picture_s, seconds)

    def run(self, request: ImageRequest, trace: Trace) -> None:
        """Notes the times of a drawn picture: its text, each scale, and its decoding."""
        scales = [scale.select_s + scale.blocks_s / scale.images_in_call + scale.residual_s for scale in trace.scales]
        times = [trace.text_s, *scales, trace.decode_s]
        key = (request.schedule, policy_text(request.policy))
        before = self._runs.get(key, [])
        if len(before) != len(times):
            before = [0.0] * len(times)
        self._runs[key] = [_mean(old, new) for old, new in zip(before, times, strict=True)]
        while len(self._runs) > 256:  # clients choose policies
            self._runs.pop(next(iter(self._runs)))

    def shares(self, request: ImageRequest) -> list[float]:
        """Share of a run's time that is over after each of its scales; before it is measured, by counts of tokens."""
        scales = request.policy.scales_to_run(request.schedule)
        measured = self._runs.get((request.schedule, policy_text(request.policy)))
        if measured is None or len(measured) != scales + 2:
            tokens = request.schedule.tokens[:scales]
            measured = [0.0, *(float(count) for count in tokens), 0.3 * sum(tokens)]
        return [time / sum(measured) for time in accumulate(measured)][1:-1]


def partial_scales(shares: Sequence[float], count: int) -> list[int]:
    """Scales after which `count` partial images are shown, spread over the run; fewer if it has fewer scales.

    Args:
        shares: of the run's time that is over after each scale.
    """
    if count < 1 or not shares:
        return []
    last = next((k for k, share in enumerate(shares) if share >= LAST_PARTIAL), len(shares) - 1)
    chosen, first = {last}, int(_FIRST_SCALES * len(shares))
    for i in range(count - 1, 0, -1):
        wanted = shares[last] * i / count
        free = range(first, min(chosen))
        if free:
            chosen.add(min(free, key=lambda k: abs(shares[k] - wanted)))
    return sorted(chosen)


def _mean(old: float, new: float) -> float:
    return new if old == 0 else old + _NEWEST * (new - old)
