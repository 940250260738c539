"""Run: a folder of what is drawn for a benchmark by several policies, and of what is found out about it.

    RUN/
      run.json                              bundle, benchmark, seeds, policies; never changed in what it says
      prompts.jsonl                         the prompts, with their tags and what scorers know of them
      images/POLICY/PROMPT/00000.png        pictures of a prompt, and index.jsonl: a line each; what is listed is done
      times/PROCESS.jsonl                   seconds, apart from everything that is the same whenever it is drawn
      scores/SCORER/POLICY.jsonl            a line a picture, by its hash
      compare/                              tables, chart and pictures of a comparison

A prompt's folder is whole once its index is there. So shards may be drawn in one folder, or copied together from
several machines, in any number and order.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.bundle.parsing import complaint
from ldp_runtime.errors import ConfigError, IntegrityError
from ldp_runtime.system.disk import acquired, exclusive, is_scratch, remove_leftovers, write_durably
from ldp_runtime.system.small_files import read_json, read_small
from pydantic import BaseModel, ConfigDict, Field

from ldp_calibration.evaluation.benchmarks.benchmark import Benchmark
from ldp_calibration.evaluation.benchmarks.prompts import (
    MOST_BYTES,
    EvaluationPrompt,
    as_lines,
    from_lines,
    lines_hash,
)

RUN, PROMPTS, IMAGES, TIMES, SCORES, COMPARE, LOCKS = (
    "run.json",
    "prompts.jsonl",
    "images",
    "times",
    "scores",
    "compare",
    ".locks",
)
#: Label of the unpruned policy, and of the null run: the same with other seeds.
UNPRUNED, NULL = "none", "null"
#: Distance of the null run's seeds. Generators of 32 bits tell it apart, and no other seed of a run reaches it.
NULL_SEEDS = 1 << 31


class RunPolicy(BaseModel):
    """A policy of a run.

    Attributes:
        label: what the user calls it; folder: where its pictures lie.
        policy: with every field written out.
        fits: hash of the fitted numbers that it uses, or None.
        other_seeds: True for the null run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    folder: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._=+-]*$")
    policy: str
    fits: str | None = None
    other_seeds: bool = False


class RunSettings(BaseModel):
    """Settings of a run; pictures of other settings are never mixed in.

    Attributes:
        prompts: number of prompts of the benchmark; limit: how many of them are drawn, from the first.
        images: pictures of a prompt; picture j of prompt i has the seed `seed` + `images` i + j.
        scorers: what judges the pictures by default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    benchmark: str
    prompts_sha256: str
    prompts: int = Field(ge=1)
    limit: int = Field(ge=1)
    images: int = Field(ge=1)
    seed: int = Field(ge=0)
    scorers: tuple[str, ...]
    bundle: str
    model: str
    backend: str
    precision: str
    device: str
    picture_format: Literal["PNG"] = "PNG"
    policies: tuple[RunPolicy, ...]

    def seed_of(self, policy: RunPolicy, prompt: int, image: int) -> int:
        return self.seed + (NULL_SEEDS if policy.other_seeds else 0) + self.images * prompt + image

    def policy(self, label: str) -> RunPolicy:
        """Policy of a label. Raises ConfigError if the run has none of it."""
        found = next((policy for policy in self.policies if policy.label == label), None)
        if found is None:
            raise ConfigError(
                f"the run has no policy {label!r}", hint=f"it has {', '.join(p.label for p in self.policies)}"
            )
        return found


@dataclass(frozen=True)
class Run:
    """A run's folder, its settings, and the prompts that are drawn."""

    folder: Path
    settings: RunSettings
    prompts: tuple[EvaluationPrompt, ...]

    def prompt_folder(self, policy: RunPolicy, prompt: int) -> Path:
        return self.folder / IMAGES / policy.folder / f"{prompt:05d}"

    def exclusive(self, name: str, work: str) -> Any:
        """Context that keeps other processes from the same work."""
        return exclusive(self.folder / LOCKS / name, f"{work} is going on in {self.folder}")


def open_run(folder: Path) -> Run:
    """Opens a run.

    Raises:
        ConfigError: there is none.
        IntegrityError: its settings are damaged, or of a later version; or its prompts are not those it began with.
    """
    settings = read_settings(folder)
    return Run(folder, settings, _read_prompts(folder / PROMPTS, settings))


def read_settings(folder: Path) -> RunSettings:
    """Settings of a run; raises as `open_run`."""
    path = folder / RUN
    if not path.is_file():
        raise ConfigError(
            f"there is no evaluation run in {folder}",
            hint=f"ldp-export evaluate generate BUNDLE --benchmark shapes --output {folder}",
        )
    try:
        return RunSettings.model_validate(read_json(path))
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"{path} does not hold the settings of a run: {complaint(error)}",
            hint="restore it, or draw anew into another folder",
        ) from error


def _read_prompts(path: Path, settings: RunSettings) -> tuple[EvaluationPrompt, ...]:
    try:
        content = read_small(path, MOST_BYTES)
        if hashlib.sha256(content).hexdigest() != settings.prompts_sha256:
            raise ValueError("it was changed since the run began")
        prompts = from_lines(content)
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"{path} does not hold the prompts of the run: {error}",
            hint="restore it, or draw anew into another folder",
        ) from error
    return tuple(prompts[: settings.limit])


def new_settings(
    manifest: Manifest,
    benchmark: Benchmark,
    policies: Sequence[RunPolicy],
    *,
    seed: int,
    images: int | None = None,
    limit: int | None = None,
    device: str = "cpu",
) -> RunSettings:
    """Settings of a run.

    Raises:
        ConfigError: a number is out of range.
    """
    count = len(benchmark.prompts)
    images = benchmark.images if images is None else images
    for name, value in (("--images", images), ("--limit", limit)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}", hint=f"leave {name} out, or give 1 or more")
    if not 0 <= seed <= NULL_SEEDS - images * count:
        raise ConfigError(
            f"--seed must lie in [0, {NULL_SEEDS - images * count}], got {seed}", hint="--seed 0, or another number"
        )
    return RunSettings(
        benchmark=benchmark.name,
        prompts_sha256=lines_hash(benchmark.prompts),
        prompts=count,
        limit=min(count, limit or count),
        images=images,
        seed=seed,
        scorers=benchmark.scorers,
        bundle=manifest.digest,
        model=manifest.model.name,
        backend=manifest.backend,
        precision=manifest.precision,
        device=device.partition(":")[0],
        policies=tuple(policies),
    )


def check_settings(folder: Path, wanted: RunSettings) -> RunSettings:
    """Settings with which a run goes on: those that it has, and what is new in those that are wanted.

    A run may take further policies, and more prompts. Nothing is written.

    Raises:
        ConfigError: the folder holds something else, or a run of other settings.
    """
    if not (folder / RUN).exists():
        is_folder = folder.is_dir()
        foreign = sorted(path.name for path in folder.iterdir() if not _is_ours(path)) if is_folder else []
        if foreign or (folder.exists() and not is_folder):
            what = f"it holds {', '.join(foreign[:3])}" if foreign else "it is a file"
            raise ConfigError(f"{folder} is no folder of a run: {what}", hint="name a new folder")
        return wanted
    known = read_settings(folder)
    for name in ("bundle", "benchmark", "prompts_sha256", "images", "seed", "device"):
        before, now = getattr(known, name), getattr(wanted, name)
        if before != now:
            what = name.replace("prompts_sha256", "hash of the prompts")
            raise ConfigError(
                f"the run in {folder} was drawn with the {what} {before}, not with {now}",
                hint="name another folder: pictures of several settings are not mixed",
            )
    return known.model_copy(
        update={
            "policies": _joined(folder, known.policies, wanted.policies),
            "limit": max(known.limit, wanted.limit),
        }
    )


def _is_ours(path: Path) -> bool:
    """True for what a run that died early leaves in its folder."""
    return path.name in (PROMPTS, LOCKS) or is_scratch(path)


def _joined(folder: Path, known: Sequence[RunPolicy], wanted: Sequence[RunPolicy]) -> tuple[RunPolicy, ...]:
    """Policies of a run and those that are new to it; null and unpruned first, the others in the order they came."""
    found = {policy.label: policy for policy in known}
    for policy in wanted:
        before = found.setdefault(policy.label, policy)
        if (before.policy, before.fits) != (policy.policy, policy.fits):
            now = policy.policy if before.policy != policy.policy else "the same with other fitted numbers"
            raise ConfigError(
                f"in the run in {folder} the policy {policy.label} is {before.policy}, now it is {now}",
                hint="name another folder: pictures of several policies are not mixed",
            )
    check_policies(list(found.values()))
    return tuple(found.values())


def check_policies(policies: Sequence[RunPolicy]) -> None:
    """Raises ConfigError if two labels stand for one policy: it would be drawn, and compared, twice."""
    labels: dict[tuple[str, str | None, bool], str] = {}
    for policy in policies:
        other = labels.setdefault((policy.policy, policy.fits, policy.other_seeds), policy.label)
        if other != policy.label:
            raise ConfigError(f"{other} and {policy.label} are one policy", hint="leave one of them out")


def begin(folder: Path, wanted: RunSettings, prompts: Sequence[EvaluationPrompt]) -> Run:
    """Opens the run of these settings, or makes it; shards that begin together make one.

    Raises:
        ConfigError: see `check_settings`.
    """
    settings = check_settings(folder, wanted)
    (folder / LOCKS).mkdir(parents=True, exist_ok=True)
    held = acquired(folder / LOCKS / "settings")
    try:
        remove_leftovers(folder)
        settings = check_settings(folder, wanted)
        if not (folder / RUN).exists() or read_settings(folder) != settings:
            write_durably(folder / PROMPTS, as_lines(prompts))
            write_durably(folder / RUN, f"{settings.model_dump_json(indent=1)}\n".encode())
    finally:
        held.release()
    return run_of(folder, settings, prompts)


def run_of(folder: Path, settings: RunSettings, prompts: Sequence[EvaluationPrompt]) -> Run:
    """Run of these settings, which need not be written yet."""
    return Run(folder, settings, tuple(prompts[: settings.limit]))


def folder_name(label: str) -> str:
    """Name of a policy's folder: its label, as far as file systems take it."""
    plain = re.sub(r"[^A-Za-z0-9._=+-]+", "_", label).strip("._-+=")[:60]
    if plain == label and plain == plain.lower():
        return plain
    return f"{plain or 'policy'}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
