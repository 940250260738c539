"""Runtime of ldp-export bundles: loads a bundle and draws images with it, without the exporter.

Names are imported when they are first used, so that importing the package (or its errors) does not load PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldp_runtime.bundle.files import open_bundle
    from ldp_runtime.errors import LdpError
    from ldp_runtime.pipeline.drawing import ScaleEvent
    from ldp_runtime.pipeline.pipeline import GenerationResult, Pipeline
    from ldp_runtime.pruning import (
        FixedRatio,
        LatentDiscrepancy,
        Policy,
        SkipLastScales,
        StopGuidanceAfter,
        parse_policy,
    )

_HOMES = {
    "open_bundle": "bundle.files",
    "LdpError": "errors",
    "GenerationResult": "pipeline.pipeline",
    "Pipeline": "pipeline.pipeline",
    "ScaleEvent": "pipeline.drawing",
    "FixedRatio": "pruning",
    "LatentDiscrepancy": "pruning",
    "Policy": "pruning",
    "SkipLastScales": "pruning",
    "StopGuidanceAfter": "pruning",
    "parse_policy": "pruning",
}

__all__ = [
    "FixedRatio",
    "GenerationResult",
    "LatentDiscrepancy",
    "LdpError",
    "Pipeline",
    "Policy",
    "ScaleEvent",
    "SkipLastScales",
    "StopGuidanceAfter",
    "open_bundle",
    "parse_policy",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
