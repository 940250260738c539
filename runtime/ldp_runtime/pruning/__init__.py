"""Pruning policies: LD-Pruning and its controls.

LHEP selects the tokens to compute; SATS selects the scale after which the unconditional branch stops.
"""

from ldp_runtime.pruning.controls import FixedRatio, SkipLastScales, StopGuidanceAfter
from ldp_runtime.pruning.latent_discrepancy import LatentDiscrepancy
from ldp_runtime.pruning.parse import parse_policy
from ldp_runtime.pruning.policy import Policy

__all__ = ["FixedRatio", "LatentDiscrepancy", "Policy", "SkipLastScales", "StopGuidanceAfter", "parse_policy"]
