"""Checks that a library serves a precision on a GPU, before a build that could not succeed.

Sources: the libraries' own lists of targets, and their error messages (a test reproduces each).
"""

from __future__ import annotations

from collections.abc import Sequence

from ldp_runtime.engines.tensorrt.library import Flavour, capability
from ldp_runtime.errors import ConfigError

#: Lowest compute capability that runs a graph of each precision. Every graph keeps float32 islands with matrix products
#: (the head), and TensorRT-RTX has no float32 products on 7.5.
_SINCE: dict[Flavour, dict[str, tuple[int, int]]] = {
    "tensorrt": {"float32": (7, 5), "float16": (7, 5), "bfloat16": (8, 0)},
    "tensorrt-rtx": {"float32": (8, 0), "float16": (8, 0), "bfloat16": (8, 0)},
}


#: Data centre GPUs of the architectures whose consumer members TensorRT-RTX serves.
_DATA_CENTRE = {(9, 0): "H100, H200", (10, 0): "B200", (10, 3): "B300"}


def parse_capabilities(text: str) -> tuple[str, ...]:
    """Compute capabilities in a text, in ascending order, each once: "8.9,8.6" gives ("8.6", "8.9").

    Raises:
        ConfigError: a part between the commas is no compute capability.
    """
    capabilities = {capability(part) for part in text.split(",")}
    return tuple(f"{major}.{minor}" for major, minor in sorted(capabilities))


def check_targets(flavour: Flavour, wanted: Sequence[str], offered: Sequence[str], precision: str) -> None:
    """Refuses GPUs that the library cannot build for, and precisions in which the GPUs cannot compute.

    Args:
        wanted: compute capabilities to build for.
        offered: compute capabilities that the library can build for.
        precision: "float32", "float16" or "bfloat16".

    Raises:
        ConfigError: says which GPU is refused, why, and what to do instead.
    """
    if not wanted:
        raise ConfigError(
            f"{flavour} builds for named GPUs; none was named",
            hint="for example --compute-capability 8.6,8.9,12.0 (GeForce RTX 30, 40, 50)",
        )
    for name in wanted:
        if name not in offered:
            raise ConfigError(_not_offered(flavour, name, offered), hint=_instead(name))
        check_precision(flavour, name, precision)


def check_precision(flavour: Flavour, name: str, precision: str) -> None:
    """Refuses a precision in which `flavour` does not compute on GPUs of compute capability `name`."""
    known = _SINCE[flavour]
    if precision not in known:
        raise ConfigError(
            f"{flavour} engines are built in {', '.join(sorted(known))}, not in {precision!r}",
            hint=f"--precision {sorted(known)[0]}",
        )
    if capability(name) < known[precision]:
        others = [other for other, since in known.items() if since <= capability(name)]
        raise ConfigError(
            f"{flavour} serves {precision} graphs from compute capability {'.'.join(map(str, known[precision]))} on, "
            f"not on {name}",
            hint=f"--precision {others[-1]}" if others else "leave that GPU out, or run ONNX Runtime on it",
        )


def _not_offered(flavour: str, name: str, offered: Sequence[str]) -> str:
    known = _DATA_CENTRE.get(capability(name))
    what = f"{name} ({known})" if known else name
    return f"{flavour} cannot build for compute capability {what}; it can for {', '.join(offered)}"


def _instead(name: str) -> str:
    if capability(name) in _DATA_CENTRE:
        return "on that GPU, build with --backend tensorrt"
    return "leave that GPU out, or use --backend tensorrt on it"
