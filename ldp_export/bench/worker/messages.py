"""Messages between the comparison and its workers: one JSON object per line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ldp_export.bench.worker.options import BenchOptions

Kind = Literal["eager", "hoisted", "engines"]


@dataclass(frozen=True)
class Embeds:
    """Seeded random text features [tokens, text_channels] that stand in for `count` prompts."""

    count: int
    tokens: int
    seed: int


@dataclass(frozen=True)
class Job:
    """Candidate that a worker loads.

    Attributes:
        bundle: folder of one version of a bundle.
        batch: images of every call.
        options: options of the comparison, of which prompts or classes, threads and files are known.
        embeds: stand-ins for prompts, where there are neither prompts nor classes.
    """

    kind: Kind
    bundle: str
    batch: int
    options: BenchOptions
    embeds: Embeds | None = None

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self), default=str))

    @classmethod
    def of_json(cls, entry: dict[str, Any]) -> Job:
        embeds = entry["embeds"]
        read: dict[str, Any] = {"options": BenchOptions(**entry["options"]), "embeds": embeds and Embeds(**embeds)}
        return cls(**{**entry, **read})


@dataclass(frozen=True)
class DrawRequest:
    """Request of one call.

    Attributes:
        prompts: index of each image's prompt or class.
        seeds: seed of each image.
        policy: text that `parse_policy` reads; the original loop has no policy.
        save: file for the images [B, 3, H, W] float32 in [0, 1] (.npy), written after the clock has stopped.
    """

    prompts: tuple[int, ...]
    seeds: tuple[int, ...]
    policy: str
    save: str | None = None


@dataclass(frozen=True)
class Drawn:
    """Reply to one call; times in milliseconds.

    Attributes:
        wall_ms, cpu_ms: times of the whole call; process CPU time counts all threads.
        text_ms: from prompts to the inputs of the blocks.
        blocks_ms: embedding, blocks and head of all scales.
        loop_ms: everything else.
        decode_ms: latents to pixels.
        tokens: tokens computed per image, each once.
        row_tokens: tokens times the rows (branches) that computed them, per image.
        tokens_full: tokens of the whole schedule.
        scales_ms: parts of `blocks_ms` by scale.
        loop_scales_ms: parts of `loop_ms` by scale, where they can be told apart.
        scale_tokens, scale_rows: tokens and rows of each scale, means over the call's images.
        flops: floating-point operations of the blocks, counted from architecture, tokens, rows and past.
        peak_rss_mb: largest resident memory of the process so far, in MiB.
        peak_device_mb: most memory allocated on a GPU, in MiB; None on a CPU.
        device_ms: time of the whole call by CUDA events; None on a CPU.
    """

    wall_ms: float
    cpu_ms: float
    text_ms: float
    blocks_ms: float
    loop_ms: float
    decode_ms: float
    tokens: tuple[int, ...]
    row_tokens: tuple[int, ...]
    tokens_full: int
    peak_rss_mb: float
    scales_ms: tuple[float, ...] = ()
    loop_scales_ms: tuple[float, ...] = ()
    scale_tokens: tuple[float, ...] = ()
    scale_rows: tuple[float, ...] = ()
    flops: float = 0.0
    peak_device_mb: float | None = None
    device_ms: float | None = None
