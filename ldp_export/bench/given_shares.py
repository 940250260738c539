"""Keep shares and the scale after which the unconditional branch stops: given by hand, or from a saved policy.

Random weights cannot choose tokens. A saved policy was calibrated on another model. That its shares hold for this one
is an assumption, which the report names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ldp_runtime.bundle.parsing import complaint
from ldp_runtime.bundle.saved_policies import SavedPolicy
from ldp_runtime.errors import ConfigError
from ldp_runtime.pruning.older import LD
from ldp_runtime.pruning.parse import NAMED, read_policy
from ldp_runtime.pruning.stopping import StopAt, derived_scales
from ldp_runtime.pruning.tokens import LHEP, TopP
from ldp_runtime.schedule import ScaleSchedule

#: Shares of the last three scales if none are given: assumed, not measured on any model.
ASSUMED = (0.45, 0.4, 0.35)


@dataclass(frozen=True)
class Shares:
    """Keep shares of a policy with given numbers.

    Attributes:
        keep: share of tokens of each of the last scales.
        stop_scale: scale after which the unconditional branch stops; None if it never stops.
        origin: source of the numbers, in words for the report.
    """

    keep: tuple[float, ...]
    stop_scale: int | None
    origin: str


def told(keep: str | None, stop_scale: int | None) -> Shares:
    """Parses shares such as "0.5,0.3"; None takes the assumed ones.

    Raises:
        ConfigError: not numbers in [0, 1].
    """
    if keep is None:
        return Shares(ASSUMED, stop_scale, "assumed, not calibrated")
    try:
        shares = tuple(float(part) for part in keep.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--keep takes shares such as 0.5,0.3, got {keep!r}",
            hint="name the shares of the last scales, from coarse to fine",
        ) from error
    if not all(0 <= share <= 1 for share in shares):
        raise ConfigError(
            f"--keep takes shares in [0, 1], got {keep!r}", hint="0 keeps no token, 1 keeps all: as 0.45,0.4,0.35"
        )
    return Shares(shares, stop_scale, "given by hand")


def calibrated(path: Path, schedule: ScaleSchedule) -> Shares:
    """Mean shares that LD-Pruning kept of its scales on held-out prompts, for the scales it prunes of `schedule`.

    If it prunes more scales here than there, the first share stands for the earlier ones too. The branch stops after
    the first scale where the policy may stop it, if it stopped for at least half of the images.

    Args:
        path: a saved policy of `ldp-export calibrate`, or the result of the study of policies, whose `ld` is then
            taken.

    Raises:
        ConfigError: the file is neither of the two, has no shares, or is not of LD-Pruning.
    """
    name, model, text, kept, rate, is_older = _read(path)
    policy = read_policy(text, NAMED | {"ld": LD} if is_older else NAMED)
    pruned = tuple(share for share in kept if 0 < share < 1)
    if not isinstance(policy.tokens, LHEP | TopP) or not pruned:
        raise ConfigError(
            f"{name} ({text}) prunes no tokens, so it says of no share that is kept",
            hint="name a saved policy that prunes, or the study of policies",
        )
    count = max(1, len(policy.prunes(schedule)) - policy.skip_last)
    keep = (pruned[0],) * (count - len(pruned)) + pruned[-count:] + (0.0,) * policy.skip_last
    rule = policy.guidance
    stops = () if rule is None else getattr(rule, "scales", None) or derived_scales(schedule)
    if isinstance(rule, StopAt) and rule.scale != "first":
        stops = (rule.scale,)
    words = f"from {name} ({text}) of {model}, whose branch stopped for {rate:.0%} of the held-out prompts"
    return Shares(keep, stops[0] if stops and rate >= 0.5 else None, words)


def _read(path: Path) -> tuple[str, str, str, list[float], float, bool]:
    """Reads a file: its description, model, policy in words, share kept of each scale, and rate of stopped branches.

    The last is true where `ld` has its older meaning.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "policies" in content:
            row = content["policies"]["ld"]
            return f"the study {path.name}", content["model"], "ld", row["kept"], row["stop_rate"], True
        saved = SavedPolicy.model_validate(content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is not a policy profile: {complaint(error)}", hint="ldp-export calibrate makes them"
        ) from error
    evidence = saved.evidence
    kept, rate = evidence.get("kept_share_per_scale") or [], evidence.get("stop_rate", 0.0)
    name, model = f"the profile {saved.name!r}", evidence.get("model", "another model")
    return name, model, saved.policy, kept, rate, saved.grammar == 1
