"""Result of a comparison and its JSON, and the three scopes of a latency."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ldp_calibration.stats import Ratio

from ldp_export.bench.worker.options import Scope

#: Definition of the speed-ups, in words.
RATIO = "geometric mean over prompts of the median over repetitions of the paired ratio (same prompts, same repetition)"
INTERVAL = (
    "95 % expanded percentile bootstrap, seeded, {resamples} resamples: prompts are drawn anew; of fewer than "
    "{prompts}, repetitions within each"
)


def milliseconds(sample: Sample, scope: Scope) -> float:
    """Milliseconds of a call within a scope."""
    return within(scope, sample.wall_ms, sample.text_ms, sample.blocks_ms)


def within(scope: Scope, wall_ms: float, text_ms: float, blocks_ms: float) -> float:
    """Part of a call that a scope times, in milliseconds."""
    if scope == "blocks":
        return blocks_ms
    return wall_ms if scope == "prompt-to-image" else wall_ms - text_ms


SCHEMA = "ldp-export/bench/3"


@dataclass(frozen=True)
class Phases:
    """Means over all measured calls, in milliseconds; they add up to the mean call.

    Attributes:
        text: from prompts to the inputs of the blocks (for engines, with drawing of the noise).
        blocks: embedding, blocks and head of all scales.
        loop: everything between and after the calls.
        decode: latents to pixels.
    """

    text: float
    blocks: float
    loop: float
    decode: float


@dataclass(frozen=True)
class Sample:
    """One measured call; `group` is its index among the prompt batches. Times are in milliseconds.

    `scales_ms` and `loop_scales_ms` are the scales' parts of `blocks_ms` and `loop_ms`; `device_ms` is the whole call
    by CUDA events.
    """

    group: int
    repetition: int
    wall_ms: float
    cpu_ms: float
    text_ms: float
    blocks_ms: float
    loop_ms: float
    decode_ms: float
    scales_ms: tuple[float, ...] = ()
    loop_scales_ms: tuple[float, ...] = ()
    device_ms: float | None = None


@dataclass(frozen=True)
class ScaleResult:
    """One scale: medians over all measured calls that ran it, in milliseconds; tokens and rows are means."""

    scale: int
    blocks_ms: float
    loop_ms: float
    tokens: float
    rows: float


@dataclass(frozen=True)
class ScopeResult:
    """Result within one scope (see `Scope`): times of a call in milliseconds, and paired ratios."""

    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    speedup_vs_eager: Ratio | None
    speedup_vs_unpruned: Ratio | None


@dataclass(frozen=True)
class CandidateResult:
    """One candidate at one batch size. Times are of a call, which draws `batch` images, within the report's scope.

    Attributes:
        policy: "none" for the full model.
        cpu_p50_ms: process CPU time of a call, all threads.
        speedup_vs_eager, speedup_vs_unpruned: paired ratios; None if that candidate was not measured.
        psnr_db, ssim, psnr_objects_db: loss from pruning, as means over images, against the same engines' unpruned
            image of the same prompt and seed. All are None for candidates that prune nothing. `ssim` is also None
            without torchmetrics. `psnr_objects_db` (over the objects' pixels alone) is also None if the world has no
            objects to find.
        precision_psnr_db: change from another backend or precision, against the image of the bundle's own engines under
            the same policy. None for those engines themselves.
        scopes: results by the name of their scope.
        scales: times of each scale.
        flops: operations of the blocks in a call.
        peak_share: rate of these operations as a share of the machine's measured peak.
        tokens_computed, row_tokens, tokens_full: means over images; row_tokens counts a token once per branch.
        load_s: seconds of opening files and engines, with files in the page cache.
        first_ms: milliseconds of the first call after that.
        peak_rss_mb: largest resident memory of the candidate's process (MiB), loading included.
    """

    name: str
    policy: str
    batch: int
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    cpu_p50_ms: float
    speedup_vs_eager: Ratio | None
    speedup_vs_unpruned: Ratio | None
    psnr_db: float | None
    ssim: float | None
    psnr_objects_db: float | None
    precision_psnr_db: float | None
    tokens_computed: float
    row_tokens: float
    tokens_full: int
    phases_ms: Phases
    load_s: float
    first_ms: float
    peak_rss_mb: float
    peak_device_mb: float | None
    scopes: dict[str, ScopeResult]
    scales: tuple[ScaleResult, ...]
    flops: float
    peak_share: float
    samples: tuple[Sample, ...]

    @property
    def p50_ms_per_image(self) -> float:
        return self.p50_ms / self.batch

    def to_json(self) -> dict[str, Any]:
        plain = asdict(self) | {"p50_ms_per_image": self.p50_ms_per_image} | _ratios(self)
        plain["scopes"] = {name: asdict(scope) | _ratios(scope) for name, scope in self.scopes.items()}
        return plain


def _ratios(owner: CandidateResult | ScopeResult) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name in ("speedup_vs_eager", "speedup_vs_unpruned"):
        ratio: Ratio | None = getattr(owner, name)
        plain[name] = None if ratio is None else ratio.value
        plain[f"{name}_ci95"] = None if ratio is None or ratio.low is None else [ratio.low, ratio.high]
    return plain


@dataclass(frozen=True)
class PrecisionLoss:
    """Change from the engines' own rounding, apart from pruning: their unpruned images against eager PyTorch's.

    A rounding error can flip a bit whose decision was close, and the image then goes another way. A low PSNR here
    therefore need not mean a wrong engine (`ldp-export verify` compares logits).
    """

    psnr_db: float
    largest_difference: float
    images: int


@dataclass(frozen=True)
class ModelInfo:
    """Model that was measured."""

    name: str
    size: str
    image: tuple[int, int]
    bundle: str
    version: str
    state: str
    precision: str
    backend: str
    random_weights: bool


@dataclass(frozen=True)
class BenchResult:
    """The whole comparison; `to_json` gives the content of its file.

    Attributes:
        peak_gflops: rate of a large matrix product in float32 on the same threads, measured before the candidates.
        settings: options of the comparison, stand-ins for prompts, and the model's defaults.
        policies: text with every field of each policy, by the caller's words.
    """

    created: str
    hardware: dict[str, Any]
    software: dict[str, str]
    settings: dict[str, Any]
    model: ModelInfo
    statistics: dict[str, str]
    candidates: tuple[CandidateResult, ...]
    precision_loss: PrecisionLoss | None
    peak_gflops: float
    notes: tuple[str, ...]
    policies: dict[str, str]
    schema: str = SCHEMA

    def to_json(self) -> dict[str, Any]:
        plain = asdict(self) | {"candidates": [candidate.to_json() for candidate in self.candidates]}
        return {"schema": plain.pop("schema")} | plain
