"""Runtime of ldp-export bundles: loads a bundle and draws images with it, without the exporter.

Names are imported when they are first used, so that importing the package (or its errors) does not load PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldp_runtime.bundle.files import open_bundle
    from ldp_runtime.errors import LdpError
    from ldp_runtime.pipeline.drawing import ImageEvent, ScaleEvent
    from ldp_runtime.pipeline.pipeline import GenerationResult, Pipeline
    from ldp_runtime.pruning import LHEP, SATS, Policy, StopAt, TopK, TopP, parse_policy

_HOMES = {
    "open_bundle": "bundle.files",
    "LdpError": "errors",
    "GenerationResult": "pipeline.pipeline",
    "Pipeline": "pipeline.pipeline",
    "ImageEvent": "pipeline.drawing",
    "ScaleEvent": "pipeline.drawing",
    "Policy": "pruning",
    "LHEP": "pruning",
    "TopP": "pruning",
    "TopK": "pruning",
    "SATS": "pruning",
    "StopAt": "pruning",
    "parse_policy": "pruning",
    # Deprecated: each warns when it is called.
    "FixedRatio": "pruning.older",
    "LatentDiscrepancy": "pruning.older",
    "SkipLastScales": "pruning.older",
    "StopGuidanceAfter": "pruning.older",
}

__all__ = [
    "LHEP",
    "SATS",
    "GenerationResult",
    "ImageEvent",
    "LdpError",
    "Pipeline",
    "Policy",
    "ScaleEvent",
    "StopAt",
    "TopK",
    "TopP",
    "open_bundle",
    "parse_policy",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
