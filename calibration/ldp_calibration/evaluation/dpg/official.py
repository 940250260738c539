"""Score of DPG-Bench as its script computes it in one process, with everything that the script leaves out.

Source: Hu et al., "ELLA: Equip Diffusion Models with LLM for Enhanced Semantic Alignment", and its script. It skips the
file's first row, drops items that fail, and takes kinds from the last tile alone. Its figures are for comparison with
published ones; `all_tiles` counts everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ldp_runtime.errors import IntegrityError

from ldp_calibration.evaluation.dpg.questions import YES, Answers, Question

_HINT = "`all_tiles` scores such a file"
#: Words that the script's reader of tables takes for a missing value.
_MISSING = frozenset(
    ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA")
    + ("NULL", "NaN", "None", "n/a", "nan", "null")
)


class OfficialScriptError(IntegrityError):
    """A file of questions that the official script cannot read."""


@dataclass(frozen=True)
class OfficialScore:
    """Score of the official script.

    Attributes:
        score: 100 times the mean over items; NaN if every item failed.
        groups, kinds: scores of questions' groups ("entity") and kinds ("entity - whole").
        items: scores of the tiles of each item; failed: pictures that drop out, with the reason.
    """

    score: float
    groups: Mapping[str, float]
    kinds: Mapping[str, float]
    items: Mapping[str, tuple[float, ...]]
    failed: Mapping[str, str] = field(default_factory=dict)


def official_score(
    questions: Sequence[Question], pictures: Sequence[str], answers: Answers, tiles: int
) -> OfficialScore:
    """Score as the official script gives it.

    Args:
        questions: rows of the file, in its order.
        pictures: names of the pictures' files without their ending.
        tiles: tiles of each picture.

    Raises:
        OfficialScriptError: the script dies on this file of questions.
    """
    by_item = _by_item(questions)
    scores, failed = dict[str, tuple[float, ...]](), dict[str, str]()
    kinds, groups = dict[str, list[int]](), dict[str, list[int]]()
    for name in sorted(f"{picture}.png" for picture in pictures):
        picture = name.removesuffix(".png")
        asked = by_item.get(picture.split(".")[0])
        try:
            if asked is None:
                raise LookupError("'NoneType' object is not subscriptable")
            means = [_tile(asked, _raw(asked, picture, tile, answers)) for tile in range(tiles)]
        except LookupError as error:
            failed[picture] = str(error.args[0])
            continue
        scores[picture] = tuple(means)
        last = _raw(asked, picture, tiles - 1, answers)
        for number, question in asked.items():
            kinds.setdefault(question.kind, []).append(last[number])
            groups.setdefault(question.group, []).append(last[number])
    means = [_mean(tile_means) for tile_means in scores.values()]
    return OfficialScore(
        100 * _mean(means), {k: 100 * _mean(v) for k, v in groups.items()}, _scaled(kinds), scores, failed
    )


def _scaled(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: 100 * _mean(values) for name, values in found.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _by_item(questions: Sequence[Question]) -> dict[str, dict[int, Question]]:
    """Questions by item and number as the script reads them.

    An item whose rows lie in two blocks keeps the last; ids that are all numbers match no file.
    """
    if all(_is_number(question.dependency) for question in questions):
        raise OfficialScriptError(
            "no dependency of the file names two questions, and the script dies on numbers", hint=_HINT
        )
    if all(_is_number(question.item) for question in questions):
        return {}
    return _last_blocks(questions)


def _last_blocks(questions: Sequence[Question]) -> dict[str, dict[int, Question]]:
    """Questions that the script keeps, by item and number."""
    found, last = dict[str, dict[int, Question]](), dict[str, int]()
    for question in questions:
        if question.row == 0:
            continue
        if question.row != last.get(question.item, -1) + 1:
            found[question.item] = {}
        found[question.item][question.number] = question
        last[question.item] = question.row
    return found


def passed_over(questions: Sequence[Question]) -> frozenset[int]:
    """Rows that the script never asks: the first, those of earlier blocks, and those whose number comes again."""
    kept = {question.row for asked in _last_blocks(questions).values() for question in asked.values()}
    return frozenset(question.row for question in questions) - kept


def _is_number(text: str) -> bool:
    """True for a cell that lets the script's reader of tables take its column for numbers."""
    if text in _MISSING:
        return True
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _raw(asked: Mapping[int, Question], picture: str, tile: int, answers: Answers) -> dict[int, int]:
    """Ones for questions whose answer is yes, by number. Raises LookupError for one that was not asked."""
    found = dict[int, int]()
    for number, question in asked.items():
        key = (picture, tile, question.text)
        if key not in answers:
            raise LookupError(f"no answer to {question.text!r} about tile {tile}")
        found[number] = int(answers[key] == YES)
    return found


def _tile(asked: Mapping[int, Question], raw: Mapping[int, int]) -> float:
    """Mean over questions, after those with a parent at zero are zeroed, in the order of the file."""
    scores = dict(raw)
    for number, question in asked.items():
        if any(scores[parent] == 0 for parent in question.parents):
            scores[number] = 0
    return _mean(list(scores.values()))
