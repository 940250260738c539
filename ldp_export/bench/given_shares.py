"""Keep shares and the scale after which the unconditional branch stops: told, or taken from a calibrated profile.

Random weights cannot choose tokens. A profile was calibrated on another model: that its shares hold for this one is an
assumption, which the report names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ldp_runtime.bundle.parsing import complaint
from ldp_runtime.bundle.saved_policies import SavedPolicy
from ldp_runtime.errors import ConfigError
from ldp_runtime.pruning.latent_discrepancy import LatentDiscrepancy
from ldp_runtime.pruning.parse import parse_policy
from ldp_runtime.schedule import ScaleSchedule

#: Shares of the last three scales where nothing is told: assumed, not measured on any model.
ASSUMED = (0.45, 0.4, 0.35)


@dataclass(frozen=True)
class Shares:
    """What a policy of given numbers does.

    Attributes:
        keep: share of tokens of each of the last scales. stop_scale: None where the branch never stops.
        origin: where the numbers come from, in words for the report.
    """

    keep: tuple[float, ...]
    stop_scale: int | None
    origin: str


def told(keep: str | None, stop_scale: int | None) -> Shares:
    """Shares such as "0.5,0.3".

    Raises:
        ConfigError: not numbers in [0, 1].
    """
    if keep is None:
        return Shares(ASSUMED, stop_scale, "assumed, not calibrated")
    try:
        shares = tuple(float(part) for part in keep.split(","))
    except ValueError as error:
        raise ConfigError(f"--keep takes shares such as 0.5,0.3, got {keep!r}") from error
    if not all(0 <= share <= 1 for share in shares):
        raise ConfigError(f"--keep takes shares in [0, 1], got {keep!r}")
    return Shares(shares, stop_scale, "given by hand")


def calibrated(path: Path, schedule: ScaleSchedule) -> Shares:
    """Mean shares that LD-Pruning kept of its scales on held-out prompts, for the scales it prunes of `schedule`.

    Where it prunes more scales here than there, the first share stands for the earlier ones too. The branch stops after
    the first scale where the policy may stop it, if it stopped for at least half of the images.

    Args:
        path: a profile of `ldp-export calibrate`, or the result of the study of policies, whose `ld` is then taken.

    Raises:
        ConfigError: neither of the two, one without shares, or not of LD-Pruning.
    """
    name, model, text, kept, rate = _read(path)
    policy = parse_policy(text)
    pruned = tuple(share for share in kept if 0 < share < 1)
    if not isinstance(policy, LatentDiscrepancy) or not pruned:
        raise ConfigError(
            f"{name} ({text}) says of no share of tokens that LD-Pruning keeps",
            hint="give the shares with --keep, or a profile whose policy prunes",
        )
    count = max(1, len(policy.prunes(schedule)) - policy.skip_last)
    keep = (pruned[0],) * (count - len(pruned)) + pruned[-count:] + (0.0,) * policy.skip_last
    stops = policy.stops(schedule)
    words = f"from {name} ({text}) of {model}, whose branch stopped for {rate:.0%} of the held-out prompts"
    return Shares(keep, stops[0] if stops and rate >= 0.5 else None, words)


def _read(path: Path) -> tuple[str, str, str, list[float], float]:
    """What the file is, its model, the policy in words, the share kept of each scale, how often the branch stopped."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if "policies" in found:
            row = found["policies"]["ld"]
            return f"the study {path.name}", found["model"], "ld", row["kept"], row["stop_rate"]
        profile = SavedPolicy.model_validate(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is not a policy profile: {complaint(error)}", hint="ldp-export calibrate makes them"
        ) from error
    evidence = profile.evidence
    kept, rate = evidence.get("kept_share_per_scale") or [], evidence.get("stop_rate", 0.0)
    return f"the profile {profile.name!r}", evidence.get("model", "another model"), profile.policy, kept, rate
