"""Is the bundle right? Engines against the recorded runs of the reference model; fails closed.

Everything is compared per output and per scale, on the machine that will run it, from the bundle alone.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from ldp_runtime.bundle.files import REFERENCE, Bundle
from ldp_runtime.bundle.manifest import QuantizedPrecision, QuantizedScales
from ldp_runtime.engines.blocks import PromptRows
from ldp_runtime.errors import NonFiniteError, VerificationError
from ldp_runtime.families.choose import guidance_weights, placement
from ldp_runtime.guidance import per_scale
from ldp_runtime.numerics import all_finite
from ldp_runtime.pipeline.conditions import class_rows, run_prompt, text_rows
from ldp_runtime.pipeline.open_engines import Engines, check_threads, device_of, open_engines
from ldp_runtime.pipeline.scale_loop import ImageState, LoopSettings, run_scales
from ldp_runtime.pruning.policy import Policy
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.schedule import ScaleSchedule

from ldp_export.verification.cases import Case, ReferenceCases
from ldp_export.verification.rounding import quantized_rounding
from ldp_export.versions import installed

#: Largest absolute error, per unit of the reference output's root mean square where that exceeds `UNIT`. Two correct
#: float32 implementations of a model with logits of standard deviation 2.5 differ by up to 1.2e-5; a model that rounds
#: more has said so when it was recorded (see rounding.py).
LOGITS, LATENT, IMAGE, FEATURES = 1.2e-5, 1e-6, 1e-4, 1e-5
#: Pixels up to which `IMAGE` holds; it grows with their number beyond. ONNX Runtime adds up the values of a group norm
#: one after another: two correct decoders differed by 2.3e-5 at 512x512 and by 2.7e-4 at 1024x1024 (random weights).
IMAGE_PIXELS = 2**16
#: The same for logits over a codebook, as two implementations of VAR were found to differ.
CLASS_LOGITS = 3e-5
UNIT = 2.5
#: Largest RMS error of an image in [-1, 1] that a decoder in 8-bit integers draws: a PSNR of 32 dB.
QUANTIZED_IMAGE = 0.05
#: Largest RMS error of logits from blocks that multiply 8-bit numbers, in units of the logits' own RMS, however the
#: reference model rounds: a trained one by 0.02 to 0.04 in integers, by 0.05 to 0.1 in floats of 4 significant bits.
QUANTIZED_LOGITS: dict[QuantizedPrecision, float] = {"int8": 0.1, "float8": 0.25}
#: Engines of a reduced precision may err by this many times the error that PyTorch makes in it: they add in another
#: order, and round in other places.
ROUNDING_SLACK = 3.0
#: Closest decision above which rounding cannot flip a bit, so that end images must agree in every bit.
CLEAR_MARGIN = 1e-4


@dataclass(frozen=True)
class Check:
    """One comparison: what was measured, against which limit."""

    name: str
    passed: bool
    measured: float
    limit: float
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """The result of a verification: what was checked, where."""

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
    """Runs all checks on the bundle's engines; never raises for a wrong result, only for a bundle that cannot run.

    Raises:
        ConfigError: an unknown device, or no thread.
        IncompatibleBundleError, IntegrityError: the engines cannot be opened here.
    """
    check_threads(threads)
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
        with _bad_numbers_fail("late blocks", add):
            _check_quantized_blocks(bundle, engines, reference, target, add)
        with _bad_numbers_fail("identical rows", add):
            _check_identical_rows(bundle, engines, reference, target, add)
    finally:
        engines.close()
    state = "verified" if checks and all(check.passed for check in checks) else "rejected"
    return Report(bundle.manifest.digest, state, device, machine_name(target), packages(), tuple(checks))


@contextmanager
def _bad_numbers_fail(name: str, add: Callable[[Check], None]) -> Generator[None]:
    """NaN or infinity ends a run; for a verification it is one more wrong result."""
    try:
        yield
    except NonFiniteError as error:
        add(Check(f"{name}, finite", False, float("inf"), 0.0, error.message))


def require_verified(report: Report, bundle: Bundle) -> None:
    """Raises VerificationError that lists every failed check."""
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
    """Versions of what runs the engines."""
    names = ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx-cu13")
    return installed(names)


def _clear_margin(bundle: Bundle, reference: ReferenceCases, case: Case) -> float:
    """Above it, neither the engines' rounding nor their precision's can flip a decision."""
    amplified = (2 * abs(case.guidance) + 1) / bundle.manifest.defaults.temperature
    return max(CLEAR_MARGIN, ROUNDING_SLACK * reference.rounding.get("logits", 0.0) * amplified)


def _compare(
    name: str, got: torch.Tensor, expected: torch.Tensor, tolerance: float, rounding: float | None = None
) -> Check:
    """Largest absolute difference; NaN, infinity and wrong shapes fail.

    `rounding` is the error that the graphs' precision alone causes, float32 included, as it was measured when they
    were built.
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
    """Root mean square of the difference; NaN and infinity fail."""
    difference = float((got.cpu().double() - expected.cpu().double()).square().mean().sqrt())
    return Check(name, difference <= limit, difference, limit)


def _check_text(
    engines: Engines, reference: ReferenceCases, device: torch.device, add: Callable[[Check], None]
) -> None:
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
    """A teacher-forced run through prompt, blocks and decoder, scale by scale; then a free run, where seeds say so."""
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
        if bundle.manifest.late is not None and k in quantized:
            allowed = _allowed_in_8_bits(bundle.manifest.late, reference, k)
            add(_compare_8_bits(f"{case.name}, scale {k}", seen[k], expected, allowed))
            continue
        rounding = reference.rounding.get("logits")
        add(_compare(f"{case.name}, scale {k}, logits", seen[k], expected, _logits_tolerance(case), rounding))
    if case.pruned:
        return
    latent = reference.tensors[f"{case.name}.latent"]
    add(_compare(f"{case.name}, latent", state.latent, latent, LATENT))
    if f"{case.name}.image" in reference.tensors:
        _check_image(bundle, engines, reference, case, add)
    if case.margin is not None and case.margin > _clear_margin(bundle, reference, case) and not quantized:
        free = run_case(bundle, engines, prompt, schedule, case, None, None, None)
        add(_compare(f"{case.name}, latent drawn freely", free.latent, latent, LATENT))


def _quantized_scales(bundle: Bundle, case: Case) -> frozenset[int]:
    """The scales of an image of the case that run blocks in 8 bits, recorded ones or not."""
    return bundle.manifest.quantized_scales(bundle.manifest.schedule(case.aspect_ratio))


def _check_quantized_blocks(
    bundle: Bundle, engines: Engines, reference: ReferenceCases, device: torch.device, add: Callable[[Check], None]
) -> None:
    """Blocks in 8 bits at the scales that were recorded, where these end before the scales that they are for."""
    case = reference.cases[0]
    schedule = case.of(bundle.manifest.schedule(case.aspect_ratio))
    recorded = frozenset(range(len(schedule)))
    entry = bundle.manifest.late
    if entry is None or _quantized_scales(bundle, case) & recorded:
        return

    def compare(k: int, logits: torch.Tensor) -> None:
        expected, allowed = reference.tensors[f"{case.name}.logits_{k}"], _allowed_in_8_bits(entry, reference, k)
        add(_compare_8_bits(f"late blocks at scale {k}", logits, expected, allowed))

    prompt = case_rows(bundle, engines, reference, case)
    tokens = [t.to(device) for t in reference.tokens(case, len(schedule))]
    run_case(bundle, engines, prompt, schedule, case, tokens, None, compare, quantized=recorded)


def _allowed_in_8_bits(quantized: QuantizedScales, reference: ReferenceCases, scale: int) -> float:
    """What rounding explains of a scale's logits, as measured when the bundle was built: a share of their RMS."""
    return min(QUANTIZED_LOGITS[quantized.precision], ROUNDING_SLACK * reference.rounding[quantized_rounding(scale)])


def _compare_8_bits(where: str, got: torch.Tensor, expected: torch.Tensor, allowed: float) -> Check:
    limit = allowed * float(expected.double().square().mean().sqrt())
    return _compare_rms(f"{where}, logits in 8 bits, RMS", got, expected, limit)


def _check_image(
    bundle: Bundle, engines: Engines, reference: ReferenceCases, case: Case, add: Callable[[Check], None]
) -> None:
    """The decoder on a case's recorded latent."""
    latent, expected = (reference.tensors[f"{case.name}.{what}"] for what in ("latent", "image"))
    device = engines.decoder.device
    image = torch.empty(1, *expected.shape, device=device)
    engines.decoder.run({"latent": latent[None].to(device).contiguous()}, {"image": image})
    if bundle.manifest.graphs["decoder"].quantized:
        add(_compare_rms(f"{case.name}, decoder in 8-bit integers, RMS", image[0], expected, QUANTIZED_IMAGE))
        return
    rounding = reference.rounding.get("image")
    add(_compare(f"{case.name}, decoder", image[0], expected, _image_tolerance(expected), rounding))


def case_rows(bundle: Bundle, engines: Engines, reference: ReferenceCases, case: Case) -> PromptRows:
    """Rows of a recorded case's text or class, with the unconditional one where it is guided."""
    schedule = bundle.manifest.schedule(case.aspect_ratio)
    guided = any(g != 1 for g in guidance_weights(bundle.manifest.model, case.guidance, len(schedule)))
    if case.label is not None:
        return class_rows(engines, bundle.manifest, case.label, guided)
    features = reference.tensors[f"{case.name}.features"].to(engines.prompt.device)
    return text_rows(engines, bundle.manifest, features, guided)


def _logits_tolerance(case: Case) -> float:
    return LOGITS if case.label is None else CLASS_LOGITS


def _image_tolerance(image: torch.Tensor) -> float:
    """For an image [3, H, W]."""
    return IMAGE * max(1.0, image[0].numel() / IMAGE_PIXELS)


def run_case(
    bundle: Bundle,
    engines: Engines,
    prompt: PromptRows,
    schedule: ScaleSchedule,
    case: Case,
    tokens: Sequence[torch.Tensor] | None,
    keep: Sequence[torch.Tensor | None] | None,
    on_logits: Callable[[int, torch.Tensor], Any] | None,
    quantized: frozenset[int] | None = None,
) -> ImageState:
    """One image through the runtime's loop, teacher-forced where `tokens` are given.

    Args:
        late: scales that run blocks in 8 bits; None: those of the bundle.
    """
    manifest = bundle.manifest
    codec, S = engines.codec, len(schedule)
    device, defaults = engines.blocks.device, manifest.defaults
    guidance = guidance_weights(manifest.model, case.guidance, S)
    state = ImageState(
        seed=case.seed or 0,
        noise=tuple(n.to(device) for n in codec.noise(case.seed or 0, schedule)),
        latent=codec.empty_latent(schedule).to(device),
        unconditional=any(g != 1 for g in guidance),
        forced_tokens=tokens,
        forced_keep=keep,
    )
    settings = LoopSettings(
        schedule,
        codec,
        guidance,
        per_scale(defaults.temperature, S, "temperature"),
        SamplingFilter(defaults.top_k, defaults.top_p),
        Policy(),
        placement(manifest.model, engines.constants, schedule),
        _quantized_scales(bundle, case) if quantized is None else quantized,
    )
    run_scales(engines.blocks, prompt, [state], settings, None, on_logits)
    return state


def _twice(bundle: Bundle, engines: Engines, reference: ReferenceCases, case: Case) -> PromptRows:
    """A case's text or class in two rows of one call."""
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
    """The same text (class) twice in one call gives the same logits twice."""
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
