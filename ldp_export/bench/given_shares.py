"""Keep shares and the scale after which the unconditional branch stops: told, or taken from a calibrated profile.

Random weights cannot choose tokens. A profile was calibrated on another model: that its shares hold for this one is an
assumption, which the report names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ldp_runtime.errors import ConfigError
from ldp_runtime.profiles import PolicyProfile
from ldp_runtime.pruning.latent_discrepancy import LatentDiscrepancy
from ldp_runtime.schedule import ScaleSchedule
from pydantic import ValidationError

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


def of_profile(path: Path, schedule: ScaleSchedule) -> Shares:
    """Mean shares that a calibrated LD-Pruning policy kept of its last scales, for the last scales of `schedule`.

    The branch stops after the first scale where the policy may stop it, if it stopped for at least half of the images.

    Raises:
        ConfigError: no profile, one without shares, or not of LD-Pruning.
    """
    try:
        profile = PolicyProfile.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError, ValueError) as error:
        raise ConfigError(f"{path} is not a policy profile: {error}", hint="ldp-export calibrate makes them") from error
    policy, kept = profile.to_policy(), profile.evidence.get("kept_share_per_scale") or []
    pruned = next((k for k, share in enumerate(kept) if share < 1), len(kept))
    keep = tuple(float(share) for share in kept[pruned:])
    if not isinstance(policy, LatentDiscrepancy) or not keep:
        raise ConfigError(
            f"the profile {profile.name!r} ({profile.policy}) says of no share of tokens that LD-Pruning keeps",
            hint="give the shares with --keep, or the profile of a policy that prunes",
        )
    keep += (0.0,) * policy.skip_last
    rate, stops = float(profile.evidence.get("stop_rate", 0.0)), policy.stops(schedule)
    model, prompts = (profile.evidence.get(name, "unknown") for name in ("model", "held_out_prompts"))
    words = (
        f"from the profile {profile.name!r} ({profile.policy}) of {model}, mean over {prompts} held-out prompts; "
        f"its branch stopped for {rate:.0%} of them"
    )
    return Shares(keep, stops[0] if stops and rate >= 0.5 else None, words)
