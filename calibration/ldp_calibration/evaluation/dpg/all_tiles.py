"""Score of DPG-Bench over every row, tile and item, with parents before their questions, and failures as errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from ldp_runtime.errors import ConfigError, IntegrityError

from ldp_calibration.evaluation.dpg.questions import YES, Answers, Question

#: Most missing answers that a message names.
_NAMED = 5


@dataclass(frozen=True)
class FullScore:
    """Score over everything.

    Attributes:
        score: 100 times the mean over items; tiles: means over questions of an item's tiles.
        groups, kinds: 100 times the mean over questions and tiles, of groups ("entity") and kinds ("entity - whole").
    """

    score: float
    tiles: Mapping[str, tuple[float, ...]]
    groups: Mapping[str, float]
    kinds: Mapping[str, float]


def tile_score(questions: Sequence[Question], answers: Answers, tile: int) -> float:
    """Share of an item's questions that a tile answers well; raises as `all_tiles`."""
    of_tile = {(item, 0, text): answer for (item, other, text), answer in answers.items() if other == tile}
    return all_tiles(questions, of_tile, 1).score / 100


def all_tiles(questions: Sequence[Question], answers: Answers, tiles: int) -> FullScore:
    """Score over every question of every tile.

    Raises:
        ConfigError: answers are missing; the message lists some.
        IntegrityError: questions of an item share a number, or depend on one that is not there, or on themselves.
    """
    by_item = dict[str, dict[int, Question]]()
    for question in questions:
        _add(by_item.setdefault(question.item, {}), question)
    _check_answers(questions, answers, tiles)
    kinds, groups = dict[str, list[int]](), dict[str, list[int]]()
    means = dict[str, tuple[float, ...]]()
    for item, asked in by_item.items():
        order, found = _order(item, asked), list[float]()
        for tile in range(tiles):
            scores = _scores(item, asked, order, tile, answers)
            found.append(sum(scores.values()) / len(scores))
            for number, question in asked.items():
                kinds.setdefault(question.kind, []).append(scores[number])
                groups.setdefault(question.group, []).append(scores[number])
        means[item] = tuple(found)
    total = sum(sum(found) / tiles for found in means.values()) / len(means)
    return FullScore(100 * total, means, _percent(groups), _percent(kinds))


def _percent(found: Mapping[str, Sequence[int]]) -> dict[str, float]:
    return {name: 100 * sum(values) / len(values) for name, values in found.items()}


def _add(asked: dict[int, Question], question: Question) -> None:
    if question.number in asked:
        raise IntegrityError(
            f"{question.item} has two questions {question.number}", hint="fetch the file of questions anew"
        )
    asked[question.number] = question


def _check_answers(questions: Sequence[Question], answers: Answers, tiles: int) -> None:
    keys = [(q.item, tile, q.text) for q in questions for tile in range(tiles)]
    missing = [key for key in keys if key not in answers]
    if missing:
        named = "; ".join(f"{item}, tile {tile}: {text}" for item, tile, text in missing[:_NAMED])
        raise ConfigError(
            f"{len(missing)} of {len(keys)} answers are missing: {named}",
            hint="run the official script over all exported pictures, and give all of its detail files",
        )


def _order(item: str, asked: Mapping[int, Question]) -> list[int]:
    """Numbers of an item's questions, parents first."""
    absent = sorted({parent for question in asked.values() for parent in question.parents} - asked.keys())
    try:
        if absent:
            raise ValueError(f"depend on {', '.join(map(str, absent))}, which are not there")
        return list(TopologicalSorter({n: question.parents for n, question in asked.items()}).static_order())
    except CycleError as error:
        why = f"depend on each other: {' on '.join(map(str, error.args[1]))}"
    except ValueError as error:
        why = str(error)
    raise IntegrityError(f"questions of {item} {why}", hint="fetch the file of questions anew")


def _scores(
    item: str, asked: Mapping[int, Question], order: Sequence[int], tile: int, answers: Answers
) -> dict[int, int]:
    scores = dict[int, int]()
    for number in order:
        question = asked[number]
        has_parents = all(scores[parent] for parent in question.parents)
        scores[number] = int(has_parents and answers[item, tile, question.text] == YES)
    return scores
