"""Verification of a bundle: its engines against the recorded runs of the reference model; fails closed.

Everything is compared per output and per scale, on the machine that will run the engines, from the bundle alone.
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from typing import Any

import torch
from ldp_runtime.bundle.files import REFERENCE, Bundle
from ldp_runtime.bundle.manifest import QuantizedScales
from ldp_runtime.errors import VerificationError
from ldp_runtime.pipeline.open_engines import Engines, checked_threads, device_of, open_engines

from ldp_export.verification.case_runs import case_rows, quantized_scales, run_case
from ldp_export.verification.cases import RESIDUAL, Case, ReferenceCases
from ldp_export.verification.checks import Add, Check, bad_numbers_fail, compare, compare_rms
from ldp_export.verification.rows import ROW_CHECKS
from ldp_export.verification.shapes import check_shapes
from ldp_export.verification.tolerances import QUANTIZED_IMAGE, Limits, allowed_in_8_bits
from ldp_export.versions import installed


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
    on_check: Add = lambda check: None,
) -> Report:
    """Runs all checks on the bundle's engines. Never raises for a wrong result, only for a bundle that cannot run.

    Raises:
        ConfigError: the device is unknown, or the number of threads is not positive.
        IncompatibleBundleError, IntegrityError: the engines cannot be opened here.
    """
    threads = checked_threads(threads)
    target = device_of(device)
    engines = open_engines(bundle, target, threads, keeps_text_encoder=False)
    checks: list[Check] = []

    def add(check: Check) -> None:
        checks.append(check)
        on_check(check)

    try:
        reference = ReferenceCases.load(bundle.path(REFERENCE))
        limits = Limits.of(bundle, reference)
        _check_text(engines, limits, target, add)
        engines.release_text_encoder()
        for case in reference.cases:
            with bad_numbers_fail(case.name, add):
                _check_case(bundle, engines, limits, case, target, add)
        with bad_numbers_fail("residual", add):
            _check_residual(engines, limits, target, add)
        with bad_numbers_fail("quantized blocks", add):
            _check_quantized_blocks(bundle, engines, reference, target, add)
        check_shapes(bundle, engines, limits, add)
        for name, check in ROW_CHECKS.items():
            with bad_numbers_fail(name, add):
                check(bundle, engines, limits, add)
    finally:
        engines.close()
    state = "verified" if checks and all(check.passed for check in checks) else "rejected"
    return Report(bundle.manifest.digest, state, device, machine_name(target), packages(), tuple(checks))


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


def _check_text(engines: Engines, limits: Limits, device: torch.device, add: Add) -> None:
    """Checks the text encoder, if there is one, on the recorded prompts."""
    reference = limits.reference
    if engines.text_encoder is None:
        return
    for text in reference.texts:
        ids, expected = reference.tensors[f"{text}.ids"], reference.tensors[f"{text}.features"]
        features = torch.empty(1, *expected.shape, device=device)
        engines.text_encoder.run({"ids": ids[None].to(device)}, {"features": features})
        name = f"text_encoder, prompt {text.removeprefix('text')}"
        add(compare(name, features[0], expected, limits.features(text, expected)))


def _check_residual(engines: Engines, limits: Limits, device: torch.device, add: Add) -> None:
    """Checks the residual's graph, if there is one, on its recorded inputs."""
    if engines.residual is None:
        return
    recorded = {
        name.removeprefix(f"{RESIDUAL}."): tensor.to(device)
        for name, tensor in limits.reference.tensors.items()
        if name.startswith(f"{RESIDUAL}.")
    }
    expected = recorded.pop(RESIDUAL)
    residual = torch.empty_like(expected)
    engines.residual.run(recorded, {"residual": residual})
    add(compare("residual", residual, expected.cpu(), limits.shape(RESIDUAL, expected)))


def _check_case(
    bundle: Bundle,
    engines: Engines,
    limits: Limits,
    case: Case,
    device: torch.device,
    add: Add,
) -> None:
    """Checks a teacher-forced run through prompt, blocks and decoder, scale by scale.

    A free run follows if the case's margin says that rounding cannot flip a decision.
    """
    schedule, reference = case.of(bundle.manifest.schedule(case.aspect_ratio)), limits.reference
    S, quantized = len(schedule), quantized_scales(bundle, case)
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
        add(compare(f"{case.name}, scale {k}, logits", seen[k], expected, limits.logits(case, k, expected)))
    latent = reference.tensors.get(f"{case.name}.latent")
    if latent is None:
        return
    add(compare(f"{case.name}, latent", state.latent, latent, limits.latent(latent)))
    if f"{case.name}.image" in reference.tensors:
        _check_image(bundle, engines, limits, case, add)
    if case.margin is not None and case.margin > limits.margin(case, S) and not quantized:
        free = run_case(bundle, engines, prompt, schedule, case, None, None, None)
        add(compare(f"{case.name}, latent drawn freely", free.latent, latent, limits.latent(latent)))


def _check_quantized_blocks(
    bundle: Bundle, engines: Engines, reference: ReferenceCases, device: torch.device, add: Add
) -> None:
    """Checks quantized blocks at the recorded scales, if these end before the scales of their set."""
    case = reference.cases[0]
    schedule = case.of(bundle.manifest.schedule(case.aspect_ratio))
    recorded, prompt = range(len(schedule)), case_rows(bundle, engines, reference, case)
    tokens = [t.to(device) for t in reference.tokens(case, len(schedule))]
    seen = {entry.name for k, entry in quantized_scales(bundle, case).items() if k in recorded}
    for entry in (entry for entry in bundle.manifest.quantized if entry.name not in seen):

        def check(k: int, logits: torch.Tensor, entry: QuantizedScales = entry) -> None:
            expected, allowed = reference.tensors[f"{case.name}.logits_{k}"], allowed_in_8_bits(entry, reference, k)
            add(_compare_8_bits(f"blocks of the {entry.name} scales at scale {k}", logits, expected, allowed))

        names = dict.fromkeys(recorded, entry.name)
        run_case(bundle, engines, prompt, schedule, case, tokens, None, check, quantized=names)


def _compare_8_bits(where: str, got: torch.Tensor, expected: torch.Tensor, allowed: float) -> Check:
    limit = allowed * float(expected.double().square().mean().sqrt())
    return compare_rms(f"{where}, logits in 8 bits, RMS", got, expected, limit)


def _check_image(bundle: Bundle, engines: Engines, limits: Limits, case: Case, add: Add) -> None:
    """Checks the decoder on a case's recorded latent."""
    latent, expected = (limits.reference.tensors[f"{case.name}.{what}"] for what in ("latent", "image"))
    device = engines.decoder.device
    image = torch.empty(1, *expected.shape, device=device)
    engines.decoder.run({"latent": latent[None].to(device).contiguous()}, {"image": image})
    if bundle.manifest.graphs["decoder"].quantized:
        add(compare_rms(f"{case.name}, decoder in 8-bit integers, RMS", image[0], expected, QUANTIZED_IMAGE))
        return
    add(compare(f"{case.name}, decoder", image[0], expected, limits.image(expected)))
