"""Scores of a run: a line a picture, keyed by the picture's hash, its twin's and the scorer's fingerprint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from ldp_runtime.errors import ConfigError, IntegrityError
from ldp_runtime.system.disk import full_disk_is_typed, remove_leftovers, write_durably
from ldp_runtime.system.small_files import read_json

from ldp_calibration.evaluation.pictures import Picture, all_pictures, content, pixels
from ldp_calibration.evaluation.run import SCORES, UNPRUNED, Run, RunPolicy
from ldp_calibration.evaluation.scorers.scorer import Sample, Score, Scorer
from ldp_calibration.resumable import appended, read_entries

SETTINGS = "scorer.json"
Report = Callable[[int, int, str], None]
_EMPTY = np.zeros((0, 0, 3), dtype=np.uint8)


#: Twins of a run by prompt and number; none for scorers that need none.
Twins = Mapping[tuple[int, int], Picture]
#: Place of a score: prompt, number, hash of the picture, hash of its twin.
Key = tuple[int, int, str, str]


@dataclass(frozen=True)
class ScorePlan:
    """Pictures to score, and those that are left.

    Attributes:
        pictures: pictures by policy; missing: those without a score.
    """

    pictures: Mapping[str, tuple[Picture, ...]]
    missing: Mapping[str, tuple[Picture, ...]]
    twins: Twins

    @property
    def left(self) -> int:
        return sum(map(len, self.missing.values()))

    @property
    def there(self) -> int:
        return sum(map(len, self.pictures.values())) - self.left


def scores_folder(run: Run, scorer: str) -> Path:
    return run.folder / SCORES / scorer


def scored_policies(run: Run, needs_twin: bool, labels: Sequence[str] = ()) -> list[RunPolicy]:
    """Policies that a scorer scores: those of the labels, or all; the unpruned one is its own twin."""
    policies = [run.settings.policy(label) for label in labels] or list(run.settings.policies)
    return [policy for policy in policies if not (needs_twin and policy.label == UNPRUNED)]


def check_scorer(run: Run, scorer: Scorer, replace: bool) -> None:
    """Raises ConfigError if the run holds scores of another version of the scorer, unless they are to be replaced."""
    folder = scores_folder(run, scorer.name)
    path = folder / SETTINGS
    if replace or not path.exists() or not any(file.stat().st_size for file in folder.glob("*.jsonl")):
        return
    known = scorer_settings(run, scorer.name)
    if known != scorer.settings:
        changed = [k for k in {**known, **scorer.settings} if known.get(k) != scorer.settings.get(k)]
        what = ", ".join(f"{key}: {known.get(key)} then, {scorer.settings.get(key)} now" for key in changed)
        raise ConfigError(
            f"the scores of {scorer.name} in {run.folder} are of another version ({what})",
            hint="score with that version, or add --overwrite to score all pictures anew",
        )


def is_of_another_version(run: Run, scorer: Scorer) -> bool:
    """True if the run holds scores of another version of the scorer, or such that their version cannot be read."""
    try:
        return scorer_settings(run, scorer.name) != scorer.settings
    except ConfigError:
        return False
    except IntegrityError:
        return True


def scorer_settings(run: Run, name: str) -> dict[str, Any]:
    """Settings that the scores of a run were made with.

    Raises:
        ConfigError: there are none.
        IntegrityError: they cannot be read.
    """
    path = scores_folder(run, name) / SETTINGS
    if not path.is_file():
        raise ConfigError(
            f"the run has no scores of {name}", hint=f"ldp-export evaluate score {run.folder} --scorer {name}"
        )
    try:
        settings = read_json(path)
        if not isinstance(settings, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", hint="score again with --overwrite") from error
    return settings


def plan_scores(
    run: Run,
    scorer: Scorer,
    labels: Sequence[str] = (),
    replace: bool = False,
    prompts: Sequence[int] | None = None,
) -> ScorePlan:
    """Looks at every picture, and says which have no score yet.

    Args:
        prompts: numbers of the prompts to score, in order; None: all.

    Raises:
        IntegrityError: pictures are missing or damaged; the message lists them.
        ConfigError: the scores are of another version of the scorer, or it cannot judge the prompts.
    """
    check_scorer(run, scorer, replace)
    for prompt in run.prompts:
        scorer.check(prompt)
    twins = twins_of(run, scorer.kind.needs_twin, prompts)
    policies = scored_policies(run, scorer.kind.needs_twin, labels)
    drawn, pictures = all_pictures(run, policies, prompts), dict[str, tuple[Picture, ...]]()
    missing = dict[str, tuple[Picture, ...]]()
    for policy in policies:
        pictures[policy.label] = tuple(p for p in drawn if p.policy == policy)
        known = {} if replace else known_scores(run, scorer.name, scorer.fingerprint, policy)
        missing[policy.label] = tuple(p for p in pictures[policy.label] if _key(p, twins) not in known)
    return ScorePlan(pictures, missing, twins)


def twins_of(run: Run, needs_twin: bool, prompts: Sequence[int] | None = None) -> Twins:
    """Unpruned pictures, for scorers that need them. Raises IntegrityError if some are missing or damaged."""
    if not needs_twin:
        return {}
    unpruned = all_pictures(run, [run.settings.policy(UNPRUNED)], prompts)
    return {(p.record.prompt, p.record.image): p for p in unpruned}


def _key(picture: Picture, twins: Twins) -> Key:
    record = picture.record
    twin = twins.get((record.prompt, record.image))
    return record.prompt, record.image, record.sha256, "" if twin is None else twin.record.sha256


def known_scores(run: Run, scorer: str, fingerprint: str, policy: RunPolicy) -> dict[Key, Score]:
    """Scores of a policy by an unchanged scorer."""
    found = dict[Key, Score]()
    for entry in read_entries(_file(run, scorer, policy)):
        if entry.get("scorer") == fingerprint:
            key = (entry.get("prompt"), entry.get("image"), entry.get("picture"), entry.get("twin"))
            score, facts = entry.get("score"), entry.get("facts", {})
            is_score = isinstance(score, int | float) and isinstance(facts, dict)
            if is_score and [type(part) for part in key] == [int, int, str, str]:
                found[key] = Score(float(score), facts)  # pyright: ignore[reportArgumentType]
    return found


def _file(run: Run, scorer: str, policy: RunPolicy) -> Path:
    return scores_folder(run, scorer) / f"{policy.folder}.jsonl"


def score(
    run: Run,
    scorer: Scorer,
    labels: Sequence[str] = (),
    *,
    replace: bool = False,
    prompts: Sequence[int] | None = None,
    report: Report = lambda done, total, detail: None,
) -> ScorePlan:
    """Scores the pictures that have no score yet. Returns what was missing.

    Args:
        replace: score all pictures anew, whatever scores there are.
        prompts: numbers of the prompts to score, in order; None: all. Scores of the others stay.

    Raises:
        IntegrityError: pictures are missing or damaged; nothing was scored.
        ConfigError: the scores are of another version of the scorer, or another process scores.
    """
    with run.exclusive(f"score-{scorer.name}", "scoring by this scorer"):
        found = plan_scores(run, scorer, labels, replace, prompts)
        done, folder = 0, scores_folder(run, scorer.name)
        with full_disk_is_typed(run.folder):
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
            settings = json.dumps(scorer.settings, indent=1).encode()
            if replace:
                _remove_scores(run, scorer, settings, labels)
            write_durably(folder / SETTINGS, settings)
            for policy in scored_policies(run, scorer.kind.needs_twin, labels):
                with appended(_file(run, scorer.name, policy)) as add:
                    for pictures in batches(found.missing[policy.label], scorer.batch):
                        report(done, found.left, f"{scorer.name}: {pictures[0].record.text}")
                        scores = score_pictures(scorer, pictures, found.twins, run)
                        for picture, one in zip(pictures, scores, strict=True):
                            add(_entry(scorer, _key(picture, found.twins), one))
                        done += len(pictures)
                _sort(run, scorer, policy, found, prompts)
        report(done, found.left, "")
        return found


def _remove_scores(run: Run, scorer: Scorer, settings: bytes, labels: Sequence[str]) -> None:
    """Deletes the scores that are to be replaced: of some policies, or of all where the version is another."""
    path = scores_folder(run, scorer.name) / SETTINGS
    is_same = path.is_file() and path.read_bytes() == settings
    for policy in scored_policies(run, scorer.kind.needs_twin, labels if is_same else ()):
        _file(run, scorer.name, policy).unlink(missing_ok=True)


def batches(pictures: Sequence[Picture], size: int) -> Iterator[Sequence[Picture]]:
    """Pictures in parts of a size; the last one may be smaller."""
    return (pictures[begin : begin + size] for begin in range(0, len(pictures), size))


def score_pictures(scorer: Scorer, pictures: Sequence[Picture], twins: Twins, run: Run) -> list[Score]:
    """Scores of pictures, whose files are looked at once more.

    Raises:
        IntegrityError: a score is not finite.
    """
    scores = scorer.score([_sample(scorer, picture, twins, run) for picture in pictures])
    for picture, one in zip(pictures, scores, strict=True):
        if not isfinite(one.value):
            raise IntegrityError(
                f"{scorer.name} gives {picture.path} the score {one.value}",
                hint="look at the weights and the precision: --precision float32 has the widest range",
            )
    return scores


def _sample(scorer: Scorer, picture: Picture, twins: Twins, run: Run) -> Sample:
    record = picture.record
    twin = twins.get((record.prompt, record.image))
    image = pixels(content(picture), scorer.jpeg)
    other = _EMPTY if twin is None else pixels(content(twin), scorer.jpeg)
    return Sample(image, other, run.prompts[record.prompt], picture.policy.label, record.image)


def _entry(scorer: Scorer, key: Key, found: Score) -> dict[str, Any]:
    prompt, image, picture, twin = key
    return {
        "prompt": prompt,
        "image": image,
        "picture": picture,
        "twin": twin,
        "scorer": scorer.fingerprint,
        "score": round(found.value, 6),
        **({"facts": dict(found.facts)} if found.facts else {}),
    }


def _sort(run: Run, scorer: Scorer, policy: RunPolicy, found: ScorePlan, prompts: Sequence[int] | None) -> None:
    """Writes the scores of a policy in the order of its pictures, however often they were interrupted.

    Scores of pictures that the run no longer has go; those of prompts that were not looked at stay.
    """
    known = known_scores(run, scorer.name, scorer.fingerprint, policy)
    looked_at = set(range(len(run.prompts)) if prompts is None else prompts)
    others = [] if prompts is None else [key for key in known if key[0] not in looked_at]
    keys = sorted(others + [_key(picture, found.twins) for picture in found.pictures[policy.label]])
    lines = [f"{json.dumps(_entry(scorer, key, known[key]))}\n" for key in keys]
    path, content = _file(run, scorer.name, policy), "".join(lines).encode()
    if path.read_bytes() != content:
        write_durably(path, content)


def read_scores(
    run: Run,
    scorer: str,
    fingerprint: str,
    policy: RunPolicy,
    twins: Twins,
    prompts: Sequence[int] | None = None,
) -> np.ndarray:
    """Scores of a policy [prompts, images].

    Args:
        prompts: numbers of prompts, in order; None: all of the run.

    Raises:
        IntegrityError: pictures are missing or damaged.
        ConfigError: some have no score.
    """
    found = scored_pictures(run, scorer, fingerprint, policy, twins, prompts)
    return np.array([one.value for _, one in found]).reshape(-1, run.settings.images)


def scored_pictures(
    run: Run,
    scorer: str,
    fingerprint: str,
    policy: RunPolicy,
    twins: Twins,
    prompts: Sequence[int] | None = None,
) -> list[tuple[Picture, Score]]:
    """Pictures of a policy with their scores, by prompt and number; arguments and errors are those of `read_scores`."""
    known = known_scores(run, scorer, fingerprint, policy)
    pictures = all_pictures(run, [policy], prompts)
    found = [(picture, known[key]) for picture in pictures if (key := _key(picture, twins)) in known]
    if lacking := len(pictures) - len(found):
        raise ConfigError(
            f"{lacking} of {len(pictures)} pictures of {policy.label} have no score of {scorer}",
            hint=f"ldp-export evaluate score {run.folder} --scorer {scorer}",
        )
    return found
