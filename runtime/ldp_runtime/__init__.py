"""The runtime of ldp-export bundles: load one, draw with it. Needs no exporter."""

from ldp_runtime.bundle import open_bundle
from ldp_runtime.errors import LdpError
from ldp_runtime.pipeline import GenerationResult, Pipeline, ScaleEvent
from ldp_runtime.pruning import (
    FixedRatio,
    LatentDiscrepancy,
    Policy,
    SkipLastScales,
    StopGuidanceAfter,
    parse_policy,
)

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
