"""Pruning: policies composed of a rule that picks tokens and a rule that stops the unconditional branch."""

from ldp_runtime.pruning.parse import parse_policy
from ldp_runtime.pruning.policy import Policy
from ldp_runtime.pruning.stopping import SATS, StopAt
from ldp_runtime.pruning.tokens import LHEP, TopK, TopP

__all__ = ["LHEP", "SATS", "Policy", "StopAt", "TopK", "TopP", "parse_policy"]
