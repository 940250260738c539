"""Policy profiles: thresholds that calibration found for one bundle, with the evidence for them.

A profile lies beside a bundle's versions, in `profiles/VERSION/NAME.json`, and names the version it was made for: the
thresholds of another model, precision or engine mean nothing here.
"""

from __future__ import annotations

import dataclasses
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.bundle.parsing import complaint
from ldp_runtime.errors import ConfigError, IncompatibleBundleError, IntegrityError
from ldp_runtime.pruning.fitted import Fitted, needs_fits
from ldp_runtime.pruning.parse import POLICY_NAMES, parse_policy
from ldp_runtime.pruning.policy import Policy

SAVED = "profiles"


#: Holds what was fitted to a version; policies given as text take their numbers from it.
FITTED = "fitted.json"


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class SavedPolicy(BaseModel):
    """A calibrated policy.

    Attributes:
        name: by which requests ask for it; policy: what `parse_policy` reads; digest: of the bundle it was made for.
        budget: what was asked; evidence: what was measured on held-out prompts, and how.
        fitted: numbers that the policy needs, as `Fitted.to_json` writes them, or None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    policy: str
    digest: str
    budget: str
    evidence: dict[str, Any]
    fitted: dict[str, Any] | None = None

    def to_policy(self) -> Policy | None:
        policy = parse_policy(self.policy)
        return policy if self.fitted is None else with_fits(policy, Fitted.from_json(self.fitted))


class FittedFile(BaseModel):
    """What was fitted to the bundle `digest`, and on which prompts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: str
    prompts_sha256: str
    prompts: int
    fitted: dict[str, Any]


def with_fits(policy: Policy | None, fitted: Fitted | None) -> Policy | None:
    """The policy with the numbers that it needs and lacks; any other as it is."""
    if fitted is None or not needs_fits(policy):
        return policy
    return dataclasses.replace(policy, fitted=fitted)  # pyright: ignore[reportArgumentType, reportCallIssue, reportReturnType]


def bundle_fits(root: Path | None, manifest: Manifest) -> Fitted | None:
    """What was fitted to this version, or None.

    Raises:
        IntegrityError: unreadable. IncompatibleBundleError: of another bundle.
    """
    path = None if root is None else saved_folder(root, manifest) / FITTED
    if path is None or not path.is_file():
        return None
    return _read_fits(path, path.stat().st_mtime_ns, manifest.digest)


@lru_cache(maxsize=8)
def _read_fits(path: Path, _: int, digest: str) -> Fitted:
    """Read once: requests ask for it again and again. (The time of the last change tells a new file from the old.)"""
    try:
        found = FittedFile.model_validate_json(path.read_text())
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"{path} does not hold fitted numbers: {complaint(error)}", hint="calibrate again"
        ) from error
    if found.digest != digest:
        raise IncompatibleBundleError(
            f"{path} was fitted to the bundle {found.digest[:16]}, this is {digest[:16]}", hint="calibrate this bundle"
        )
    return Fitted.from_json(found.fitted)


def check_saved_name(name: str) -> None:
    """Raises ConfigError for a name that is no plain file name, or that a policy already has."""
    if not _NAME.fullmatch(name) or name.endswith(".json") or name in (*POLICY_NAMES, Path(FITTED).stem):
        raise ConfigError(
            f"{name!r} cannot name a profile",
            hint="use letters, digits, '.', '_' and '-', no policy's name, and no .json at the end: that is a path",
        )


def saved_folder(root: Path, manifest: Manifest) -> Path:
    return root / SAVED / manifest.version


def list_saved(root: Path | None, manifest: Manifest) -> list[str]:
    """Names of the profiles that were made for this version."""
    if root is None:
        return []
    return sorted(path.stem for path in saved_folder(root, manifest).glob("*.json") if path.name != FITTED)


def read_saved(path: Path, manifest: Manifest) -> Policy | None:
    """The policy of a profile, which is checked against the bundle that it is to be used with.

    Raises:
        ConfigError: no such file. IntegrityError: unreadable. IncompatibleBundleError: made for another bundle.
    """
    if not path.is_file():
        raise ConfigError(f"there is no policy profile {path}", hint="ldp-export calibrate makes profiles")
    return _read_policy(path, path.stat().st_mtime_ns, manifest.digest)


@lru_cache(maxsize=8)
def _read_policy(path: Path, _: int, digest: str) -> Policy | None:
    """Read once, as fits are: they are most of a profile."""
    try:
        profile = SavedPolicy.model_validate(json.loads(path.read_text()))
    except (OSError, ValueError, ValidationError) as error:
        raise IntegrityError(f"{path} is not a policy profile: {complaint(error)}", hint="calibrate again") from error
    if profile.digest != digest:
        raise IncompatibleBundleError(
            f"the profile {profile.name!r} was made for the bundle {profile.digest[:16]}, this is {digest[:16]}",
            hint="calibrate this bundle: ldp-export calibrate",
        )
    return profile.to_policy()


def resolve_policy(policy: Policy | str | None, root: Path | None, manifest: Manifest) -> Policy | None:
    """A policy object as it is, a policy's text, the name of a profile of this bundle, or the path of one.

    Raises:
        ConfigError: neither a policy nor a profile.
    """
    if not isinstance(policy, str):
        return with_fits(policy, bundle_fits(root, manifest)) if needs_fits(policy) else policy
    name = policy.strip()
    if name.partition(":")[0] in POLICY_NAMES:
        return resolve_policy(parse_policy(name), root, manifest)
    if name.endswith(".json"):
        return read_saved(Path(name), manifest)
    known = list_saved(root, manifest)
    if root is None or name not in known:
        raise ConfigError(
            f"unknown policy {name!r}: neither one of {', '.join(POLICY_NAMES)} nor a profile of this bundle "
            f"({', '.join(known) or 'it has none'})",
            hint="ldp-export calibrate makes profiles",
        )
    return read_saved(saved_folder(root, manifest) / f"{name}.json", manifest)
