"""Verification of a bundle: its engines against the recorded runs of the reference model; fails closed.

Everything is compared per output and per scale, on the machine that will run the engines, from the bundle alone.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from ldp_runtime.bundle.files import REFERENCE, Bundle
from ldp_runtime.bundle.manifest import QuantizedScales
from ldp_runtime.engines.blocks import PromptRows
from ldp_runtime.errors import NonFiniteError, VerificationError
from ldp_runtime.families.choose import guidance_weights, placement
from ldp_runtime.guidance import per_scale
from ldp_runtime.numerics import all_finite
from ldp_runtime.pipeline.batch import ImageSettings, ImageState
from ldp_runtime.pipeline.conditions import class_rows, run_prompt, text_rows
from ldp_runtime.pipeline.open_engines import Engines, checked_threads, device_of, open_engines
from ldp_runtime.pipeline.scale_loop import Run
from ldp_runtime.pruning.policy import Policy
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.schedule import ScaleSchedule

from ldp_export.verification.cases import Case, ReferenceCases
from ldp_export.verification.forced import GivenMasks, OverheardBlocks, RecordedCodec
from ldp_export.verification.tolerances import (
    FEATURES,
    LATENT,
    LOGITS,
    QUANTIZED_IMAGE,
    ROUNDING_SLACK,
    UNIT,
    allowed_in_8_bits,
    clear_margin,
    image_tolerance,
    logits_tolerance,
)
from ldp_export.versions import installed


@dataclass(frozen=True)
class Check:
    """One comparison of a measured error with its limit."""

    name: str
    passed: bool
    measured: float
    limit: float
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """Result of a verification: its checks, and the machine they ran on."""

    digest: str
    state: str
    device: str
    machine: str
    packages: dict[str, str]
    checks: tuple[Check, ...]

    @property
    def failures(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def verify_bundle(
    bundle: Bundle,
    device: str = "cpu",
    threads: int | None = None,
    on_check: Callable[[Check], None] = lambda check: None,
) -> Report:
    """Runs all checks on the bundle's engines. Never raises for a wrong result, only for a bundle that cannot run.

    Raises:
        ConfigError: the device is unknown, or the number of threads is not positive.
        IncompatibleBundleError, IntegrityError: the engines cannot be opened here.
    """
    threads = checked_threads(threads)
    target = device_of(device)
    engines = open_engines(bundle, target, threads)
    checks: list[Check] = []

    def add(check: Check) -> None:
        checks.append(check)
        on_check(check)

    try:
        reference = ReferenceCases.load(bundle.path(REFERENCE))
        _check_text(engines, reference, target, add)
        for case in reference.cases:
            with _bad_numbers_fail(case.name, add):
                _check_case(bundle, engines, reference, case, target, add)
        with _bad_numbers_fail("quantized blocks", add):
            _check_quantized_blocks(bundle, engines, reference, target, add)
        with _bad_numbers_fail("identical rows", add):
            _check_identical_rows(bundle, engines, reference, target, add)
    finally:
        engines.close()
    state = "verified" if checks and all(check.passed for check in checks) else "rejected"
    return Report(bundle.manifest.digest, state, device, machine_name(target), packages(), tuple(checks))


@contextmanager
def _bad_numbers_fail(name: str, add: Callable[[Check], None]) -> Generator[None]:
    """Turns the error that NaN or infinity raises within the context into a failed check."""
    try:
        yield
    except NonFiniteError as error:
        add(Check(f"{name}, finite", False, float("inf"), 0.0, error.message))


def require_verified(report: Report, bundle: Bundle) -> None:
    """Raises VerificationError, which lists every failed check, unless the bundle is verified."""
    if report.state != "verified":
        lines = [f"{c.name}: {c.measured:.3g} exceeds {c.limit:.3g} {c.detail}".rstrip() for c in report.failures]
        raise VerificationError(
            f"{len(lines)} of {len(report.checks)} checks of {bundle.folder} failed:\n  " + "\n  ".join(lines),
            hint=f"the inputs and expected outputs are in {bundle.path(REFERENCE)}",
        )


def machine_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.system()} {platform.machine()}"


def packages() -> dict[str, str]:
    """Versions of the packages that run the engines."""
    names = ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx-cu13")
    return installed(names)


def _compare(
    name: str, got: torch.Tensor, expected: torch.Tensor, tolerance: float, rounding: float | None = None
) -> Check:
    """Check of the largest absolute difference; NaN, infinity and wrong shapes fail.

    Args:
        rounding: error that the graphs' precision alone causes (float32, too), as measured when they were built.
    """
    got, expected = got.cpu(), expected.cpu()
    if got.shape != expected.shape:
        return Check(
            name, False, float("inf"), tolerance, f"shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
        )
    size = float(expected.double().square().mean().sqrt()) if expected.numel() else 0.0
    limit = max(tolerance * max(1.0, size / UNIT), ROUNDING_SLACK * (rounding or 0.0))
    difference = float((got.double() - expected.double()).abs().max()) if expected.numel() else 0.0
    finite = all_finite(got) and all_finite(expected)
    return Check(name, finite and difference <= limit, difference if finite else float("inf"), limit)


def _compare_rms(name: str, got: torch.Tensor, expected: torch.Tensor, limit: float) -> Check:
    """Check of the root mean square of the difference; NaN and infinity fail."""
    difference = float((got.cpu().double() - expected.cpu().double()).square().mean().sqrt())
    return Check(name, difference <= limit, difference, limit)


def _check_text(
    engines: Engines, reference: ReferenceCases, device: torch.device, add: Callable[[Check], None]
) -> None:
    """Checks the text encoder, if there is one, on the recorded prompts."""
    if engines.text_encoder is None:
        return
    for i in range(len([name for name in reference.tensors if name.endswith(".ids")])):
        ids, expected = reference.tensors[f"text{i}.ids"], reference.tensors[f"text{i}.features"]
        features = torch.empty(1, *expected.shape, device=device)
        engines.text_encoder.run({"ids": ids[None].to(device)}, {"features": features})
        add(_compare(f"text_encoder, prompt {i}", features[0], expected, FEATURES, reference.rounding.get("features")))


def _check_case(
    bundle: Bundle,
    engines: Engines,
    reference: ReferenceCases,
    case: Case,
    device: torch.device,
    add: Callable[[Check], None],
) -> None:
    """Checks a teacher-forced run through prompt, blocks and decoder, scale by scale.

    A free run follows if the case's margin says that rounding cannot flip a decision.
    """
    schedule = case.of(bundle.manifest.schedule(case.aspect_ratio))
    S, quantized = len(schedule), _quantized_scales(bundle, case)
    tokens = [t.to(device) for t in reference.tokens(case, S)]
    keep = [None if i is None else i.to(device) for i in reference.keep(case, S)] if case.pruned else None
    seen: dict[int, torch.Tensor] = {}
    prompt = case_rows(bundle, engines, reference, case)
    state = run_case(
        bundle, engines, prompt, schedule, case, tokens, keep, lambda k, logits: seen.setdefault(k, logits)
    )
    for k in range(S):
        expected = reference.tensors[f"{case.name}.logits_{k}"]
        if k in quantized:
            allowed = allowed_in_8_bits(quantized[k], reference, k)
            add(_compare_8_bits(f"{case.name}, scale {k}", seen[k], expected, allowed))
            continue
        rounding = reference.rounding.get("logits")
        add(_compare(f"{case.name}, scale {k}, logits", seen[k], expected, logits_tolerance(case), rounding))
    if case.pruned:
        return
    latent = reference.tensors[f"{case.name}.latent"]
    add(_compare(f"{case.name}, latent", state.latent, latent, LATENT))
    if f"{case.name}.image" in reference.tensors:
        _check_image(bundle, engines, reference, case, add)
    if case.margin is not None and case.margin > clear_margin(bundle, reference, case) and not quantized:
        free = run_case(bundle, engines, prompt, schedule, case, None, None, None)
        add(_compare(f"{case.name}, latent drawn freely", free.latent, latent, LATENT))


def _quantized_scales(bundle: Bundle, case: Case) -> dict[int, QuantizedScales]:
    """Sets of the scales at which an image of the case runs quantized blocks, recorded or not."""
    return bundle.manifest.quantized_scales(bundle.manifest.schedule(case.aspect_ratio))


def _check_quantized_blocks(
    bundle: Bundle, engines: Engines, reference: ReferenceCases, device: torch.device, add: Callable[[Check], None]
) -> None:
    """Checks quantized blocks at the recorded scales, if these end before the scales of their set."""
    case = reference.cases[0]
    schedule = case.of(bundle.manifest.schedule(case.aspect_ratio))
    recorded, prompt = range(len(schedule)), case_rows(bundle, engines, reference, case)
    tokens = [t.to(device) for t in reference.tokens(case, len(schedule))]
    seen = {entry.name for k, entry in _quantized_scales(bundle, case).items() if k in recorded}
    for entry in (entry for entry in bundle.manifest.quantized if entry.name not in seen):

        def compare(k: int, logits: torch.Tensor, entry: QuantizedScales = entry) -> None:
            expected, allowed = reference.tensors[f"{case.name}.logits_{k}"], allowed_in_8_bits(entry, reference, k)
            add(_compare_8_bits(f"blocks of the {entry.name} scales at scale {k}", logits, expected, allowed))

        names = dict.fromkeys(recorded, entry.name)
        run_case(bundle, engines, prompt, schedule, case, tokens, None, compare, quantized=names)


def _compare_8_bits(where: str, got: torch.Tensor, expected: torch.Tensor, allowed: float) -> Check:
    limit = allowed * float(expected.double().square().mean().sqrt())
    return _compare_rms(f"{where}, logits in 8 bits, RMS", got, expected, limit)


def _check_image(
    bundle: Bundle, engines: Engines, reference: ReferenceCases, case: Case, add: Callable[[Check], None]
) -> None:
    """Checks the decoder on a case's recorded latent."""
    latent, expected = (reference.tensors[f"{case.name}.{what}"] for what in ("latent", "image"))
    device = engines.decoder.device
    image = torch.empty(1, *expected.shape, device=device)
    engines.decoder.run({"latent": latent[None].to(device).contiguous()}, {"image": image})
    if bundle.manifest.graphs["decoder"].quantized:
        add(_compare_rms(f"{case.name}, decoder in 8-bit integers, RMS", image[0], expected, QUANTIZED_IMAGE))
        return
    rounding = reference.rounding.get("image")
    add(_compare(f"{case.name}, decoder", image[0], expected, image_tolerance(expected), rounding))


def case_rows(bundle: Bundle, engines: Engines, reference: ReferenceCases, case: Case) -> PromptRows:
    """Rows of a recorded case's text or class, with the unconditional row if the case is guided."""
    schedule = bundle.manifest.schedule(case.aspect_ratio)
    guided = any(g != 1 for g in guidance_weights(bundle.manifest.model, case.guidance, len(schedule)))
    if case.label is not None:
        return class_rows(engines, bundle.manifest, case.label, guided)
    features = reference.tensors[f"{case.name}.features"].to(engines.prompt.device)
    return text_rows(engines, bundle.manifest, features, guided)


def run_case(
    bundle: Bundle,
    engines: Engines,
    prompt: PromptRows,
    schedule: ScaleSchedule,
    case: Case,
    tokens: Sequence[torch.Tensor] | None,
    keep: Sequence[torch.Tensor | None] | None,
    on_logits: Callable[[int, torch.Tensor], Any] | None,
    quantized: Mapping[int, str] | None = None,
) -> ImageState:
    """Draws one image with the runtime's loop, teacher-forced if `tokens` are given.

    Args:
        quantized: set of each scale that runs quantized blocks; None for the bundle's own.
    """
    manifest = bundle.manifest
    codec, S = engines.codec, len(schedule)
    device, defaults = engines.blocks.device, manifest.defaults
    noise = codec.noise(case.seed or 0, schedule) if tokens is None else tokens
    settings = ImageSettings(
        codec if tokens is None else RecordedCodec(codec),
        guidance_weights(manifest.model, case.guidance, S),
        per_scale(defaults.temperature, S, "temperature"),
        SamplingFilter(defaults.top_k, defaults.top_p),
        Policy(None if keep is None else GivenMasks(keep)),
    )
    state = ImageState.new(settings, schedule, case.seed or 0, tuple(n.to(device) for n in noise), device)
    blocks = engines.blocks if on_logits is None else OverheardBlocks(engines.blocks, on_logits)
    placed = placement(manifest.model, engines.constants, schedule)
    if quantized is None:
        quantized = bundle.manifest.scale_sets(bundle.manifest.schedule(case.aspect_ratio))
    Run(blocks, placed, [state], prompt, quantized).complete()
    return state


def _twice(bundle: Bundle, engines: Engines, reference: ReferenceCases, case: Case) -> PromptRows:
    """Rows of a case's text or class, twice in one call."""
    if case.label is not None:
        both = torch.tensor([case.label] * 2, device=engines.prompt.device)
        return run_prompt(engines, bundle.manifest, {"labels": both})
    features = reference.tensors[f"{case.name}.features"].to(engines.prompt.device)
    return run_prompt(engines, bundle.manifest, {"features": torch.stack((features, features))})


def _check_identical_rows(
    bundle: Bundle,
    engines: Engines,
    reference: ReferenceCases,
    device: torch.device,
    add: Callable[[Check], None],
) -> None:
    """Checks that the same text (or class) twice in one call gives the same logits twice."""
    case = reference.cases[0]
    schedule, worst = case.of(bundle.manifest.schedule(case.aspect_ratio)), 0.0
    prompt = _twice(bundle, engines, reference, case)
    tokens = [t.to(device) for t in reference.tokens(case, len(schedule))]

    def compare(k: int, logits: torch.Tensor) -> None:
        nonlocal worst
        worst = max(worst, float((logits[0] - logits[1]).abs().max()))

    guided = replace(case, guidance=case.guidance if case.guidance not in (0, 1) else 2.0)
    run_case(bundle, engines, prompt, schedule, guided, tokens, None, compare)
    add(Check("identical rows, logits", worst <= LOGITS, worst, LOGITS))
