"""Choice of a builder from the user's options; everything that can be refused is refused here, before any work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from ldp_runtime.bundle.manifest import Backend, Precision, QuantizedPrecision, QuantizedScales, RangeKind
from ldp_runtime.engines.hardware import instructions, local_capability, multiplies_bfloat16
from ldp_runtime.engines.onnxruntime import check_provider
from ldp_runtime.engines.tensorrt.library import capability, load_library
from ldp_runtime.engines.torch_compiled.compiler import check_compilers
from ldp_runtime.errors import ConfigError, IncompatibleBundleError

from ldp_export.builders.base import Builder
from ldp_export.builders.onnxruntime import Int8Builder, OnnxRuntimeBuilder
from ldp_export.builders.tensorrt.optimization_profiles import buckets_of
from ldp_export.builders.tensorrt.targets import check_precision, check_targets, parse_capabilities
from ldp_export.models.registry import AnySpec

#: Default number of buckets of scales: early, middle, late. Thirteen (one per scale) take ten times as long to build as
#: a single one.
PROFILES = 3


#: Default of the most images in one call, for engines that are built with limits.
MAX_BATCH = 4


#: Default share of the tokens, counted from the last scale, whose blocks `--quantize` quantizes: scales 9 to 12
#: of the 13 of a 1M square image.
QUANTIZED_SHARE = 0.85


#: Lowest compute capability that multiplies 8-bit floats.
_FLOAT8_SINCE = (8, 9)


#: What `--quantize` takes: a precision of products, or weights alone.
Quantization = Literal["int8", "float8", "int8-weights"]
WEIGHTS_ALONE: Quantization = "int8-weights"
_TOO_SMALL = "steps of 8-bit numbers can be too small for float16"


@dataclass(frozen=True)
class BackendOptions:
    """User's options for the engines of a build; None where the user says nothing.

    Attributes:
        backend: backend of the engines.
        capabilities: compute capabilities to build for, as "8.6,8.9".
        profiles: number of buckets of scales.
        max_batch: most images in one call.
        int8_decoder: makes a decoder that multiplies 8-bit integers, in ONNX Runtime on a CPU.
        quantize: precision of the quantized last scales, see `QuantizedScales`; or weights alone, at all scales.
        quantize_share: share of the tokens at the quantized last scales; see `QuantizedScales`.
        quantize_ranges: origin of the ranges of quantized inputs; see `QuantizedScales`.
    """

    backend: Backend = "onnxruntime"
    capabilities: str | None = None
    profiles: int | None = None
    max_batch: int | None = None
    int8_decoder: bool = False
    quantize: Quantization | None = None
    quantize_share: float | None = None
    quantize_ranges: RangeKind | None = None


def choose_builder(options: BackendOptions, spec: AnySpec, size: str, precision: str) -> Builder:
    """Builder for a model, as the options ask for it.

    Args:
        size: name of the scale schedule to build for.
        precision: precision of the graphs.

    Raises:
        ConfigError: the backend lacks an option, or does not serve a GPU, or not in this precision.
        EngineBuildError, IncompatibleBundleError: the compiler, library or GPU that the build needs is missing here.
    """
    on_gpu = local_capability() is not None
    if options.int8_decoder and (options.backend.startswith("tensorrt") or (options.backend == "torch" and on_gpu)):
        raise ConfigError(
            f"{options.backend} on a GPU has no decoder in 8-bit integers: ONNX Runtime multiplies them on a CPU",
            hint="leave --int8-decoder out",
        )
    rounds_weights = options.quantize == WEIGHTS_ALONE
    if rounds_weights:
        _check_weights_alone(options, spec, precision)
    quantized = None if rounds_weights else _quantized(options, spec, precision)
    if options.backend == "onnxruntime":
        _refuse_options(options)
        check_provider("cpu")  # a build verifies its engines there
        return (
            Int8Builder(decoder=options.int8_decoder, quantized=quantized, weights_in_8_bits=rounds_weights)
            if options.int8_decoder or quantized or rounds_weights
            else OnnxRuntimeBuilder()
        )
    if options.backend == "torch":
        _refuse_options(options)
        check_compilers(on_gpu)
        from ldp_export.builders.torch_compiled.builder import TorchBuilder

        if on_gpu:
            return TorchBuilder("cuda", fused=True, quantized=quantized)
        if precision == "bfloat16" and not multiplies_bfloat16():
            raise ConfigError(
                f"this processor ({instructions()}) has no bfloat16; emulated, it took four times as long as float32",
                hint="leave --precision out",
            )
        if options.int8_decoder:
            check_provider("cpu")
        return TorchBuilder(int8=Int8Builder(decoder=True) if options.int8_decoder else None)
    import platformdirs

    from ldp_export.builders.tensorrt.builder import TensorRtBuilder, check_polygraphy

    profiles = PROFILES if options.profiles is None else options.profiles
    batch = MAX_BATCH if options.max_batch is None else options.max_batch
    schedules = spec.schedules_of(size)
    buckets_of(len(schedules[0]), profiles)
    if batch < 1:
        raise ConfigError(
            f"--max-batch must be at least 1, got {batch}", hint=f"--max-batch {MAX_BATCH}, or leave it out"
        )
    check_polygraphy()
    capabilities = (
        _rtx_targets(options, precision) if options.backend == "tensorrt-rtx" else _own_gpu(options, precision)
    )
    return TensorRtBuilder(
        flavour=options.backend,
        capabilities=capabilities,
        schedules=schedules,
        layout=spec.layout,
        buckets=profiles,
        max_rows=2 * batch,
        text_tokens=spec.text_tokens,
        local=local_capability() in capabilities,
        quantized=quantized,
        weights_in_8_bits=rounds_weights,
        timing_cache=platformdirs.user_cache_path("ldp-export") / "timing" / f"{'-'.join(capabilities)}.cache",
    )


def default_precision(backend: Backend) -> Precision:
    """Precision of the graphs if the user names none: the one that the backend's usual machine computes fastest."""
    on_gpu = backend.startswith("tensorrt") or (backend == "torch" and local_capability() is not None)
    return "bfloat16" if on_gpu else "float32"


def _quantized(options: BackendOptions, spec: AnySpec, precision: str) -> QuantizedScales | None:
    """Quantized last scales that the user asks for, or None.

    Raises:
        ConfigError: the backend, the model or this machine's GPU does not support them.
    """
    bits, share, here = cast(QuantizedPrecision | None, options.quantize), options.quantize_share, local_capability()
    if bits is None:
        for name, value in (("--quantize-share", share), ("--quantize-ranges", options.quantize_ranges)):
            if value is not None:
                raise ConfigError(f"{name} belongs to --quantize", hint="add --quantize int8")
        return None
    share = QUANTIZED_SHARE if share is None else share
    if not 0 < share < 1:
        raise ConfigError(
            f"--quantize-share is a share of the tokens between 0 and 1, got {share:g}",
            hint=f"leave it out: {QUANTIZED_SHARE:g} of the tokens are then quantized",
        )
    ranges = _ranges(options, spec)
    if options.backend == "onnxruntime":
        if bits != "int8":
            raise ConfigError("ONNX Runtime multiplies 8-bit integers, no 8-bit floats", hint="--quantize int8")
        if precision != "float32":
            raise ConfigError(
                f"ONNX Runtime rounds to 8 bits from float32, not from {precision}",
                hint="leave --precision out, or --quantize",
            )
    elif options.backend == "torch" and here is None:
        raise ConfigError(
            "torch on a CPU has no blocks in 8 bits",
            hint="leave --quantize out; --backend onnxruntime has them on a CPU, torch on a GPU",
        )
    elif not spec.quantizes_on_gpu:
        raise ConfigError("on a GPU only Infinity's blocks are in 8 bits", hint="leave --quantize out")
    elif options.backend != "torch" and precision == "float16":
        raise ConfigError(_TOO_SMALL, hint="--precision bfloat16, or leave it out")
    elif bits == "float8" and options.backend == "torch" and precision == "float32":
        raise ConfigError(
            "on most GPUs products of 8-bit floats are bfloat16 or float16, not float32",
            hint="leave --precision out, or --quantize int8",
        )
    elif bits == "float8":
        _refuse_without_float8(options, here)
    return QuantizedScales(precision=bits, share=share, ranges=ranges)


def _check_weights_alone(options: BackendOptions, spec: AnySpec, precision: str) -> None:
    """Raises ConfigError if backend, model or precision have no 8-bit weights, or for options of quantized scales."""
    for name, value in (
        ("--quantize-share", options.quantize_share),
        ("--quantize-ranges", options.quantize_ranges),
    ):
        if value is not None:
            raise ConfigError(
                f"{name} belongs to products in 8 bits; {WEIGHTS_ALONE} rounds weights alone, at all scales",
                hint="leave it out, or use --quantize int8",
            )
    if options.backend == "torch":
        raise ConfigError("torch stores no weights in 8 bits for other products", hint="--quantize int8, on a GPU")
    if not spec.quantizes_on_gpu:
        raise ConfigError("weights alone are in 8 bits of Infinity's blocks only", hint="--quantize int8")
    if precision == "float16":
        raise ConfigError(_TOO_SMALL, hint="--precision bfloat16 or float32, or leave it out")


def _ranges(options: BackendOptions, spec: AnySpec) -> RangeKind:
    """Origin of the ranges; raises ConfigError for one that the backend or the model does not have."""
    tuned = options.backend.startswith("tensorrt")
    ranges = options.quantize_ranges or ("static" if tuned else "measured")
    if tuned and ranges == "measured":
        raise ConfigError(f"{options.backend} holds ranges in its engines", hint="leave --quantize-ranges out")
    if options.backend == "torch" and ranges == "static":
        raise ConfigError("torch measures ranges row by row in each call", hint="leave --quantize-ranges out")
    if ranges == "static" and not spec.quantizes_on_gpu:
        raise ConfigError("static ranges are measured on Infinity's blocks only", hint="leave --quantize-ranges out")
    return ranges


def _refuse_without_float8(options: BackendOptions, here: str | None) -> None:
    """Raises ConfigError if a GPU that is built for multiplies no 8-bit floats."""
    named = parse_capabilities(options.capabilities) if options.capabilities else tuple(filter(None, [here]))
    for name in named:
        if capability(name) < _FLOAT8_SINCE:
            raise ConfigError(f"a GPU of compute capability {name} multiplies no 8-bit floats", hint="--quantize int8")


def _refuse_options(options: BackendOptions) -> None:
    tensorrt_options = {
        "--compute-capability": options.capabilities,
        "--profiles": options.profiles,
        "--max-batch": options.max_batch,
    }
    for name, value in tensorrt_options.items():
        if value is not None:
            raise ConfigError(
                f"{name} belongs to TensorRT engines; those of {options.backend} take any size",
                hint="add --backend tensorrt-rtx (or tensorrt), or leave it out",
            )


def _rtx_targets(options: BackendOptions, precision: str) -> tuple[str, ...]:
    """Compute capabilities that the user named, or this machine's own."""
    library, here = load_library("tensorrt-rtx"), local_capability()
    capabilities = parse_capabilities(options.capabilities) if options.capabilities else tuple(filter(None, [here]))
    check_targets("tensorrt-rtx", capabilities, library.targets, precision)
    return capabilities


def _own_gpu(options: BackendOptions, precision: str) -> tuple[str, ...]:
    """Compute capability of this machine's GPU: TensorRT measures kernels on it, and builds for its kind only."""
    here = local_capability()
    if here is None:
        raise IncompatibleBundleError(
            "TensorRT builds on the kind of GPU that will run the engines, and this machine has none",
            hint="build there; or build here for GeForce and RTX cards: "
            "--backend tensorrt-rtx --compute-capability 8.6,8.9,12.0",
        )
    if options.capabilities is not None and parse_capabilities(options.capabilities) != (here,):
        raise ConfigError(
            f"TensorRT builds for this machine's GPU (compute capability {here}) only, not for {options.capabilities}",
            hint="leave --compute-capability out, or use --backend tensorrt-rtx",
        )
    load_library("tensorrt")
    check_precision("tensorrt", here, precision)
    return (here,)
