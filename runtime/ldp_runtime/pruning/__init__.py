"""What to compute next: LD-Pruning (LHEP: which tokens; SATS: when the unconditional branch stops) and its controls."""

from ldp_runtime.pruning.controls import FixedRatio, SkipLastScales, StopGuidanceAfter
from ldp_runtime.pruning.latent_discrepancy import LatentDiscrepancy
from ldp_runtime.pruning.parse import parse_policy
from ldp_runtime.pruning.policy import Policy

__all__ = ["FixedRatio", "LatentDiscrepancy", "Policy", "SkipLastScales", "StopGuidanceAfter", "parse_policy"]
