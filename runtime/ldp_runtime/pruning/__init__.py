"""What to compute next: LD-Pruning (LHEP: which tokens; SATS: when the unconditional branch stops) and its controls."""

from ldp_runtime.pruning.policies import (
    FixedRatio,
    LatentDiscrepancy,
    Policy,
    SkipLastScales,
    StopGuidanceAfter,
    parse_policy,
)

__all__ = ["FixedRatio", "LatentDiscrepancy", "Policy", "SkipLastScales", "StopGuidanceAfter", "parse_policy"]
