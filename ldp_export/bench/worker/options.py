"""Options of a comparison, in one object that is passed from the command line down to the workers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from ldp_runtime.errors import ConfigError

from ldp_export.models.hub_files import TEXT_ENCODERS

#: The three scopes of a latency; papers mostly time the second, users wait for the third.
#: "blocks": the transformer's calls of all scales.
#: "image": also the loop around them and the decoder, from encoded text to pixels.
#: "prompt-to-image": also the text encoder and the prompt graph.
Scope = Literal["blocks", "image", "prompt-to-image"]


@dataclass(frozen=True)
class BenchOptions:
    """Options of a comparison. None: the plan chooses.

    Attributes:
        prompts: texts, drawn once each per repetition, prompt i with seed + i. Default: a few texts; seeded random text
            features for a bundle without text encoder.
        classes: labels in place of prompts, for a class-conditional model. Default: some spread over all.
        policies: policies of the pruned candidates; the unpruned engines are always measured.
        repeats: measured calls per prompt (batch).
        warmup: calls per candidate before the measured ones.
        batch: images per call; each size is a comparison of its own.
        threads: threads of every candidate. Default: one per physical core.
        seed: seed of the first prompt.
        device: "cpu" or "cuda", for every candidate.
        scope: scope of the report's times; the JSON holds all three.
        aspect_ratio: height / width of every image; the nearest one that the model draws is taken.
        share_engines: load engines once for all their policies: large models do not fit several times.
        eager: False leaves eager PyTorch out.
        weights, vae, text_encoder, text_encoder_2: the eager candidate's checkpoint. Default: found by the model's
            name, or beside a bundle of random weights.
    """

    prompts: tuple[str, ...] | None = None
    classes: tuple[int, ...] | None = None
    policies: tuple[str, ...] | None = None
    repeats: int = 10
    warmup: int = 3
    batch: tuple[int, ...] = (1,)
    threads: int | None = None
    seed: int = 0
    device: str = "cpu"
    scope: Scope = "prompt-to-image"
    aspect_ratio: float = 1.0
    share_engines: bool = False
    eager: bool = True
    weights: Path | None = None
    vae: Path | None = None
    text_encoder: Path | None = None
    text_encoder_2: Path | None = None

    def __post_init__(self) -> None:
        for field in fields(self):  # JSON has lists only
            if isinstance(value := getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(value))

    def settings(self) -> dict[str, Any]:
        """Options that a result holds: all but the eager candidate's."""
        names = [field.name for field in fields(self)]
        return {name: getattr(self, name) for name in names[: names.index("eager")]}

    def check(self) -> None:
        """Raises ConfigError for numbers and words that make no sense with any bundle."""
        threads = 1 if self.threads is None else self.threads
        least = {"repeats": (self.repeats, 1), "warmup": (self.warmup, 0), "threads": (threads, 1)}
        least |= {"seed": (self.seed, 0), "batch": (min(self.batch, default=0), 1)}
        for name, (value, bound) in least.items():
            if value < bound:
                raise ConfigError(f"{name} must be at least {bound}, got {value}", hint=f"--{name} {bound} or more")
        if self.scope not in get_args(Scope):
            raise ConfigError(f"unknown scope {self.scope!r}", hint=f"one of {', '.join(get_args(Scope))}")
        if self.device not in ("cpu", "cuda"):
            raise ConfigError(f"unknown device {self.device!r}", hint="cpu or cuda")
        files = [name for name in ("weights", "vae", *TEXT_ENCODERS) if getattr(self, name) is not None]
        if files and not self.eager:
            raise ConfigError(
                f"{', '.join(files)} given, but the eager candidate that would read them is switched off",
                hint="leave --no-eager out, or the files",
            )
