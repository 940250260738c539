"""Simulation: should newcomers' early scales go between others' late ones?

Replays the scheduler's rules on measured times per scale, with Poisson arrivals, and compares `--interleave never` with
`early`: first preview (after the early scales), completion, throughput.

Times on this CPU are those of the committed results. The H200's are derived from differences of whole pictures: its
results hold no times per scale.

    python -m benchmarks.serving.interleaving --output benchmarks/results/serving-interleaving.json
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.paths import RESULTS

SHARES = (0.5, 0.8, 0.95)
BATCH, IN_FLIGHT, PICTURES = 4, 8, 4000


@dataclass(frozen=True)
class Times:
    """Milliseconds of one picture: its shared early scales (text included), its late scales, and its decoding.

    Attributes:
        together: cost of one more picture in a shared call, as a share of the first.
    """

    early: tuple[float, ...]
    late: tuple[float, ...]
    decode: float
    together: float

    @property
    def total(self) -> float:
        return sum(self.early) + sum(self.late) + self.decode

    def shared(self, k: int, pictures: int) -> float:
        """Milliseconds of an early scale of several pictures."""
        return self.early[k] * (1 + (pictures - 1) * self.together)


@dataclass
class _Flight:
    waiting: deque[float]
    early: int = 0
    late: int = 0
    previewed: bool = False
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = len(self.waiting)


def simulate(times: Times, share: float, interleave: bool, seed: int = 0) -> dict[str, Any]:
    """Figures of a simulated server at a share of its capacity."""
    generator, now, arriving = random.Random(seed), 0.0, deque[float]()
    for _ in range(PICTURES):
        now += generator.expovariate(share / times.total)
        arriving.append(now)
    now, queue, flights = 0.0, deque[float](), list[_Flight]()
    previews, ends = list[float](), list[float]()
    while arriving or queue or flights:
        while arriving and arriving[0] <= now:
            queue.append(arriving.popleft())
        early = [flight for flight in flights if flight.early < len(times.early)]
        flying = sum(len(flight.waiting) for flight in flights)
        if queue and (not flights or (interleave and not early and flying < IN_FLIGHT)):
            count = min(BATCH, IN_FLIGHT - flying, len(queue))
            flights.append(_Flight(deque(queue.popleft() for _ in range(count))))
            continue
        if not flights:
            now = arriving[0]
            continue
        flight = early[0] if early else flights[0]
        if flight.early < len(times.early):
            now += times.shared(flight.early, flight.count)
            flight.early += 1
            if flight.early == len(times.early):
                previews += [now - arrived for arrived in flight.waiting]
            continue
        now += times.late[flight.late]
        flight.late += 1
        if flight.late == len(times.late):
            now += times.decode
            ends.append(now - flight.waiting.popleft())
            flight.late = 0
            flights = [one for one in flights if one.waiting]
    return {"preview_ms": _figures(previews), "completion_ms": _figures(ends), "pictures_per_s": 1e3 * len(ends) / now}


def _figures(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"mean": round(statistics.fmean(ordered), 1), "p95": round(ordered[int(0.95 * len(ordered))], 1)}


def of_scales(scales: Sequence[float], text: float, decode: float, late: int) -> Times:
    """Times from those of each scale; the last `late` are drawn picture by picture."""
    early = (scales[0] + text, *scales[1:-late])
    return Times(early, tuple(scales[-late:]), decode, together=0.9)


def measured() -> dict[str, Times]:
    """Times of the committed results, under `ld`."""
    found = {}
    for name, file in (("infinity-shapes, 2 CPU cores", "infinity-shapes-policies-vnni-cpu.json"),):
        scales, text, decode = _scales(json.loads((RESULTS / file).read_text()), "ld")
        found[name] = of_scales(scales, text, decode, late=2)
    # Infinity-2B on the H200 (gpu.json): 154 ms a picture under LD, 110 ms without its last two scales, so 44 ms for
    # those. The other 110 ms are split by assumption: 70 ms early, 20 ms for scale 10, 20 ms for the decoder.
    found["infinity-2b, H200 (derived)"] = Times((7.0,) * 10, (20.0, 18.0, 26.0), 20.0, together=0.9)
    return found


def _scales(result: dict[str, Any], policy: str) -> tuple[list[float], float, float]:
    """Median milliseconds of each scale, the text and the decoder of a policy."""
    row = next(row for row in result["candidates"] if row["policy"] == policy and row["name"] != "eager")
    scales = [scale["blocks_ms"] + scale["loop_ms"] for scale in row["scales"]]
    return scales, row["phases_ms"]["text"], row["phases_ms"]["decode"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {}
    for name, times in measured().items():
        result[name] = {"picture_ms": round(times.total, 1), "early_ms": round(sum(times.early), 1)}
        for share in SHARES:
            rows = {word: simulate(times, share, word == "early") for word in ("never", "early")}
            result[name][str(share)] = rows
            print(name, share)
            for word, row in rows.items():
                print(f"  {word:6} preview {row['preview_ms']} completion {row['completion_ms']}", end=" ")
                print(f"{row['pictures_per_s']:.2f}/s")
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
