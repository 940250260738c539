"""Policies of a run: what a user names, written out, with the hash of what was fitted for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.bundle.saved_policies import policy_of_command
from ldp_runtime.errors import ConfigError, IntegrityError
from ldp_runtime.pruning.fitted import Fitted, needs_fits
from ldp_runtime.pruning.parse import policy_text
from ldp_runtime.pruning.policy import Policy

from ldp_calibration.evaluation.run import NULL, UNPRUNED, RunPolicy, check_policies, folder_name

#: Policy of a label, with its fitted numbers.
Named = Callable[[str, Path | None, Manifest], Policy]


def named_policy(label: str, root: Path | None, manifest: Manifest) -> Policy:
    """Policy of a label as a command line takes it; `Policy()` prunes nothing."""
    return policy_of_command(label, root, manifest) or Policy()


def run_policies(
    labels: Sequence[str], root: Path | None, manifest: Manifest, with_null: bool, named: Named = named_policy
) -> list[RunPolicy]:
    """Policies of a run by the labels that a user gives: unpruned and the null run first, which are always part of it.

    Args:
        with_null: draw the unpruned model with other seeds too.
        named: finds the policies; drawing must be given the same.

    Raises:
        ConfigError: a label is no policy, or stands for one that is there already.
    """
    labels = list(dict.fromkeys((UNPRUNED, *(label.strip() for label in labels))))
    if NULL in labels:
        raise ConfigError(
            f"{NULL} is the name of the null run, which is drawn anyway", hint="give a saved policy another name"
        )
    policies = [run_policy(label, root, manifest, named) for label in labels]
    if with_null:
        null = RunPolicy(label=NULL, folder=NULL, policy=policies[0].policy, other_seeds=True)
        policies.insert(1, null)
    check_policies(policies)
    return policies


def distinct(labels: Sequence[str], root: Path | None, manifest: Manifest, named: Named = named_policy) -> list[str]:
    """Labels without those that stand for the policy of an earlier one, or for the unpruned one."""
    found: dict[tuple[str, str | None], str] = {}
    for label in (UNPRUNED, *labels):
        policy = run_policy(label, root, manifest, named)
        found.setdefault((policy.policy, policy.fits), label)
    return list(found.values())[1:]


def run_policy(label: str, root: Path | None, manifest: Manifest, named: Named = named_policy) -> RunPolicy:
    policy = named(label, root, manifest)
    policy.check(manifest.schedule())
    return RunPolicy(label=label, folder=folder_name(label), policy=policy_text(policy), fits=_fits_hash(policy))


def drawn_policy(given: RunPolicy, root: Path | None, manifest: Manifest, named: Named = named_policy) -> Policy:
    """Policy to draw with. Raises IntegrityError if its label stands for another one than when the run began."""
    if given.other_seeds:
        return Policy()
    policy = named(given.label, root, manifest)
    if (policy_text(policy), _fits_hash(policy)) != (given.policy, given.fits):
        raise IntegrityError(
            f"the policy {given.label} was changed while it was drawn", hint="draw it into another folder"
        )
    return policy


def _fits_hash(policy: Policy) -> str | None:
    fitted: Fitted | None = getattr(policy.tokens, "fitted", None)
    if fitted is None:
        if needs_fits(policy):
            raise ConfigError(
                f"the policy {policy_text(policy)} needs numbers that are fitted to the bundle",
                hint="ldp-export calibrate BUNDLE --fit-only",
            )
        return None
    return hashlib.sha256(json.dumps(fitted.to_json(), sort_keys=True).encode()).hexdigest()[:16]
