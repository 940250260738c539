"""Saved policies: thresholds that calibration found for one bundle, with the evidence for them.

A saved policy lies beside a bundle's versions, in `profiles/VERSION/NAME.json`, and names the version it was made for.
Thresholds of another model, precision or engine do not carry over.
"""

from __future__ import annotations

import dataclasses
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ldp_runtime.arguments import shown
from ldp_runtime.bundle.files import SAVED
from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.bundle.parsing import complaint
from ldp_runtime.errors import ConfigError, IncompatibleBundleError, IntegrityError, suggestion
from ldp_runtime.pruning.fitted import Fitted, needs_fits
from ldp_runtime.pruning.older import LD
from ldp_runtime.pruning.parse import NAMED, POLICY_NAMES, parse_policy, read_policy
from ldp_runtime.pruning.policy import Policy
from ldp_runtime.system.small_files import read_json

#: File of the numbers that were fitted to a version; policies given as text use them.
FITTED = "fitted.json"


#: Most characters of a policy's text.
_LONGEST = 2000


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class SavedPolicy(BaseModel):
    """A calibrated policy.

    Attributes:
        name: name by which requests ask for the policy.
        policy: the policy as text, for `parse_policy`.
        digest: digest of the bundle that the policy was made for.
        budget: the budget that calibration was given.
        evidence: measurements on held-out prompts, and how they were made.
        fitted: numbers that the policy needs, as `Fitted.to_json` writes them, or None.
        grammar: of the text; 2 writes out every field. In files without it, `ld` has its older meaning.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    policy: str
    digest: str
    budget: str
    evidence: dict[str, Any]
    fitted: dict[str, Any] | None = None
    grammar: int = 1

    def to_policy(self) -> Policy | None:
        older = NAMED | {"ld": LD} if self.grammar == 1 else NAMED
        policy = read_policy(self.policy, older)
        return policy if self.fitted is None else with_fits(policy, Fitted.from_json(self.fitted))


class FittedFile(BaseModel):
    """Numbers fitted to the bundle `digest`, and the prompts that they were fitted on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: str
    prompts_sha256: str
    prompts: int
    fitted: dict[str, Any]


def with_fits(policy: Policy | None, fitted: Fitted | None) -> Policy | None:
    """The policy with the fitted numbers that it lacks; any policy that lacks none is returned unchanged."""
    if fitted is None or not needs_fits(policy):
        return policy
    assert policy is not None
    rule: Any = policy.tokens
    return dataclasses.replace(policy, tokens=dataclasses.replace(rule, fitted=fitted))


def bundle_fits(root: Path | None, manifest: Manifest) -> Fitted | None:
    """Numbers that were fitted to this version, or None.

    Raises:
        IntegrityError: the file cannot be read.
        IncompatibleBundleError: the file was made for another bundle.
    """
    path = None if root is None else saved_folder(root, manifest) / FITTED
    if path is None or not path.is_file():
        return None
    return _read_fits(path, path.stat().st_mtime_ns, manifest.digest)


@lru_cache(maxsize=8)
def _read_fits(path: Path, _: int, digest: str) -> Fitted:
    """Fitted numbers of a file, cached because every request asks for them.

    The second argument, the time of the last change, tells a new file from the cached one.
    """
    try:
        file = FittedFile.model_validate(read_json(path))
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"{path} does not hold fitted numbers: {complaint(error)}", hint="calibrate again"
        ) from error
    if file.digest != digest:
        raise IncompatibleBundleError(
            f"{path} was fitted to the bundle {file.digest[:16]}, this is {digest[:16]}", hint="calibrate this bundle"
        )
    return Fitted.from_json(file.fitted)


def check_saved_name(name: str) -> None:
    """Raises ConfigError for a name that is not a plain file name, or that a built-in policy has."""
    if not _NAME.fullmatch(name) or name.endswith(".json") or name in (*POLICY_NAMES, Path(FITTED).stem):
        raise ConfigError(
            f"{name!r} cannot name a profile",
            hint="use letters, digits, '.', '_' and '-', no policy's name, and no .json at the end: that is a path",
        )


def saved_folder(root: Path, manifest: Manifest) -> Path:
    return root / SAVED / manifest.version


def list_saved(root: Path | None, manifest: Manifest) -> list[str]:
    """Names of the saved policies of this version."""
    if root is None:
        return []
    return sorted(path.stem for path in saved_folder(root, manifest).glob("*.json") if path.name != FITTED)


def read_saved(path: Path, manifest: Manifest) -> Policy | None:
    """Policy of a saved policy's file, checked against the bundle that it is to be used with.

    Raises:
        ConfigError: there is no such file.
        IntegrityError: the file cannot be read.
        IncompatibleBundleError: it was made for another bundle.
    """
    if not path.is_file():
        raise ConfigError(f"there is no policy profile {path}", hint="ldp-export calibrate makes profiles")
    return _read_policy(path, path.stat().st_mtime_ns, manifest.digest)


@lru_cache(maxsize=8)
def _read_policy(path: Path, _: int, digest: str) -> Policy | None:
    """Policy of a file, cached as in `_read_fits`: most of the file is fitted numbers."""
    try:
        saved = SavedPolicy.model_validate(read_json(path))
    except (OSError, ValueError, ValidationError) as error:
        raise IntegrityError(f"{path} is not a policy profile: {complaint(error)}", hint="calibrate again") from error
    if saved.digest != digest:
        raise IncompatibleBundleError(
            f"the profile {saved.name!r} was made for the bundle {saved.digest[:16]}, this is {digest[:16]}",
            hint="calibrate this bundle: ldp-export calibrate",
        )
    return saved.to_policy()


def resolve_policy(policy: Policy | str | None, root: Path | None, manifest: Manifest) -> Policy | None:
    """Turns what a request names into a policy, with the fitted numbers that it needs.

    Args:
        policy: a policy object; a policy's text; or the name of a saved policy of this bundle. It is never a path, so
            that whoever may send requests cannot ask for files; `policy_of_command` reads those.

    Raises:
        ConfigError: the text is neither a policy nor a saved policy, or a rule is given for a policy.
    """
    if not isinstance(policy, Policy | str | None):
        raise ConfigError(
            f"a policy is expected, got {type(policy).__name__}", hint="compose one, such as Policy(LHEP(), SATS())"
        )
    if not isinstance(policy, str):
        return with_fits(policy, bundle_fits(root, manifest)) if needs_fits(policy) else policy
    name = policy[: _LONGEST + 1].strip()
    if len(policy) > _LONGEST:
        raise ConfigError(f"a policy of {len(policy)} characters", hint=f"its text has at most {_LONGEST}")
    if name.partition(":")[0] in POLICY_NAMES:
        return resolve_policy(parse_policy(name), root, manifest)
    known = list_saved(root, manifest)
    if root is None or name not in known:
        raise ConfigError(
            f"unknown policy {shown(name)}; policies are {', '.join(POLICY_NAMES)}, and profiles of this bundle are "
            f"{', '.join(known) or 'not there'}",
            hint=f"{suggestion(name.partition(':')[0], (*POLICY_NAMES, *known))}ldp-export calibrate makes profiles",
        )
    return read_saved(saved_folder(root, manifest) / f"{name}.json", manifest)


def policy_of_command(policy: Policy | str | None, root: Path | None, manifest: Manifest) -> Policy | None:
    """Policy that a command line names: as `resolve_policy`, or the path of a saved policy's file (.json).

    Raises:
        ConfigError, IntegrityError, IncompatibleBundleError: see `resolve_policy` and `read_saved`.
    """
    if isinstance(policy, str) and policy.strip().endswith(".json"):
        return read_saved(Path(policy.strip()), manifest)
    return resolve_policy(policy, root, manifest)
