"""Policy profiles: thresholds that calibration found for one bundle, with the evidence for them.

A profile lies beside a bundle's versions, in `profiles/VERSION/NAME.json`, and names the version it was made for: the
thresholds of another model, precision or engine mean nothing here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ldp_runtime.bundle import Manifest
from ldp_runtime.errors import ConfigError, IncompatibleBundleError, IntegrityError
from ldp_runtime.pruning.names import POLICY_NAMES, parse_policy
from ldp_runtime.pruning.policy import Policy

PROFILES = "profiles"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class PolicyProfile(BaseModel):
    """A calibrated policy.

    Attributes:
        name: by which requests ask for it; policy: what `parse_policy` reads; digest: of the bundle it was made for.
        budget: what was asked; evidence: what was measured on held-out prompts, and how.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    policy: str
    digest: str
    budget: str
    evidence: dict[str, Any]


def check_profile_name(name: str) -> None:
    """Raises ConfigError for a name that is no plain file name, or that a policy already has."""
    if not _NAME.fullmatch(name) or name in POLICY_NAMES:
        raise ConfigError(
            f"{name!r} cannot name a profile", hint="use letters, digits, '.', '_' and '-', and no policy's name"
        )


def profile_folder(root: Path, manifest: Manifest) -> Path:
    return root / PROFILES / manifest.version


def list_profiles(root: Path | None, manifest: Manifest) -> list[str]:
    """Names of the profiles that were made for this version."""
    if root is None:
        return []
    return sorted(path.stem for path in profile_folder(root, manifest).glob("*.json"))


def read_profile(path: Path, manifest: Manifest) -> PolicyProfile:
    """A profile, checked against the bundle that it is to be used with.

    Raises:
        IntegrityError: unreadable. IncompatibleBundleError: made for another bundle.
    """
    try:
        profile = PolicyProfile.model_validate(json.loads(path.read_text()))
    except (OSError, ValueError, ValidationError) as error:
        raise IntegrityError(f"{path} is not a policy profile: {error}", hint="calibrate again") from error
    if profile.digest != manifest.digest:
        raise IncompatibleBundleError(
            f"the profile {profile.name!r} was made for the bundle {profile.digest[:16]}, this is {manifest.version}",
            hint="calibrate this bundle: ldp-export calibrate",
        )
    return profile


def resolve_policy(policy: Policy | str | None, root: Path | None, manifest: Manifest) -> Policy | None:
    """A policy object as it is, a policy's text, the name of a profile of this bundle, or the path of one.

    Raises:
        ConfigError: neither a policy nor a profile.
    """
    if not isinstance(policy, str):
        return policy
    name = policy.strip()
    if name.partition(":")[0] in POLICY_NAMES:
        return parse_policy(name)
    if name.endswith(".json"):
        return parse_policy(read_profile(Path(name), manifest).policy)
    known = list_profiles(root, manifest)
    if root is None or name not in known:
        raise ConfigError(
            f"unknown policy {name!r}: neither one of {', '.join(POLICY_NAMES)} nor a profile of this bundle "
            f"({', '.join(known) or 'it has none'})",
            hint="ldp-export calibrate makes profiles",
        )
    return parse_policy(read_profile(profile_folder(root, manifest) / f"{name}.json", manifest).policy)
