"""Upgrade of a bundle's manifest to the schema of today, without a rebuild: its engines stay byte for byte."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ldp_runtime.bundle.files import Bundle, open_bundle, report_path
from ldp_runtime.bundle.manifest import SCHEMA_VERSION, Manifest
from ldp_runtime.bundle.parsing import complaint
from ldp_runtime.bundle.saved_policies import FITTED, SavedPolicy, saved_folder
from ldp_runtime.errors import ConfigError, EngineBuildError, IntegrityError
from ldp_runtime.pruning.parse import policy_text
from ldp_runtime.system.disk import exclusive, full_disk_is_typed, write_durably
from ldp_runtime.system.small_files import read_json

from ldp_export.building.publish import assemble_version, make_current


def upgrade(path: Path) -> Bundle:
    """Writes a version with the manifest of today, and makes it current; the version before it stays.

    Reports and saved policies are carried over, since the engines that they speak of are the same. A bundle whose
    manifest is of today is returned unchanged.

    Args:
        path: output path of a build.

    Raises:
        ConfigError: there is no bundle at `path`, or it is the folder of one version.
        IntegrityError: a file is missing, truncated or changed.
        IncompatibleBundleError: its schema is too old to be read.
        EngineBuildError: the disk is full.
    """
    before = open_bundle(path)
    root, manifest = before.root, before.manifest
    if manifest.schema_version == SCHEMA_VERSION:
        return before
    if root is None:
        raise ConfigError(f"{path} is the folder of one version, without the pointer that names it", hint="rebuild it")
    with full_disk_is_typed(root, EngineBuildError), exclusive(root / ".lock", f"build is writing to {root}"):
        after = manifest.model_copy(update={"schema_version": SCHEMA_VERSION}).sealed()
        assemble_version(root, after, {name: before.path(name) for name in manifest.files})
        _carry_report(root, manifest, after)
        _carry_policies(root, manifest, after)
        make_current(root, after)
    return open_bundle(root, integrity="sizes")


def _carry_report(root: Path, before: Manifest, after: Manifest) -> None:
    """Copies what `verify` found, under the new digest; a report that cannot be read counts as "rejected" there."""
    old = report_path(root, before)
    if not os.path.lexists(old):
        return
    try:
        report = dict(read_json(old))
    except (OSError, ValueError, TypeError):
        report = {}
    if report.get("digest") != before.digest:
        report = {"state": "rejected"}
    write_durably(report_path(root, after), json.dumps(report | {"digest": after.digest}, indent=1).encode())


def _carry_policies(root: Path, before: Manifest, after: Manifest) -> None:
    """Copies saved policies with every field written out, and fitted numbers, under the new digest."""
    place = saved_folder(root, after)
    for path in sorted(saved_folder(root, before).glob("*.json")):
        try:
            content = dict(read_json(path))
            if content.get("digest") != before.digest:
                continue
            content["digest"] = after.digest
            if path.name != FITTED:
                policy = SavedPolicy.model_validate(content).model_copy(update={"fitted": None}).to_policy()
                content |= {"policy": "none" if policy is None else policy_text(policy), "grammar": 2}
        except (OSError, ValueError, TypeError) as error:
            raise IntegrityError(
                f"{path} is not a policy profile: {complaint(error)}", hint="delete it, and calibrate again afterwards"
            ) from error
        place.mkdir(parents=True, exist_ok=True)
        write_durably(place / path.name, json.dumps(content, indent=1).encode())
