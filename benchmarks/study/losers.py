"""Options that lost in the study and left the product; kept here, so that the study can be measured again.

Ending pictures one by one, guessing guidance by a fit, and scoring by a metric of the decoder lost too. Each needed
parts of the loop or of calibration that nothing else needs; their rows are in the committed result.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from ldp_calibration.evaluation.policies import named_policy
from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.pruning import lhep, scores
from ldp_runtime.pruning.policy import Policy, ScaleView, Selection
from ldp_runtime.pruning.stopping import SATS
from ldp_runtime.pruning.tokens import LHEP


@dataclass(frozen=True)
class ScaledFill(LHEP):
    """Rule whose fill repeats a part `factor` of the previous residual; a negative one takes a part back."""

    factor: float = -0.3

    def fill_residual(self, view: ScaleView) -> torch.Tensor:
        return self.factor * super().fill_residual(view)


@dataclass(frozen=True)
class ByChange(LHEP):
    """Rule that scores by the last change of the latent, instead of its Haar energy."""

    def keep(self, view: ScaleView) -> Selection:
        score = scores.change(view)
        return Selection(lhep.keep_by_energy(score, self.rho), score)


#: What they are called in the study, and in its result.
LOSERS = {
    "ld-paper:fill=scaled,fill_scale=-0.3": "fill: a part taken back",
    "ld-paper:score=change": "score: latent change",
}
_POLICIES = {
    "ld-paper:fill=scaled,fill_scale=-0.3": Policy(ScaledFill(), SATS()),
    "ld-paper:score=change": Policy(ByChange(), SATS()),
}


def studied(text: str, root: Path | None, manifest: Manifest) -> Policy:
    """A loser by its text; any other policy as a command line takes it."""
    return _POLICIES[text] if text in _POLICIES else named_policy(text, root, manifest)
