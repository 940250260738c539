"""Score of DPG-Bench over every row, tile and item, with parents before their questions, and failures as errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from ldp_runtime.errors import ConfigError, IntegrityError

from ldp_calibration.evaluation.dpg.official import passed_over
from ldp_calibration.evaluation.dpg.questions import YES, Answers, Question

#: Most missing answers that a message names.
_NAMED = 5


@dataclass(frozen=True)
class FullScore:
    """Score over everything.

    Attributes:
        score: 100 times the mean over items; tiles: means over questions of an item's tiles.
        groups, kinds: 100 times the mean over questions and tiles, of groups ("entity") and kinds ("entity - whole").
        oddities: what is odd about the file: rows that the official script did not ask, parents that are not there.
    """

    score: float
    tiles: Mapping[str, tuple[float, ...]]
    groups: Mapping[str, float]
    kinds: Mapping[str, float]
    oddities: tuple[str, ...] = ()


def tile_score(questions: Sequence[Question], answers: Answers, tile: int) -> float:
    """Share of an item's questions that a tile answers well; raises as `all_tiles`."""
    of_tile = {(item, 0, text): answer for (item, other, text), answer in answers.items() if other == tile}
    return all_tiles(questions, of_tile, 1).score / 100


def all_tiles(questions: Sequence[Question], answers: Answers, tiles: int) -> FullScore:
    """Score over every question of every tile.

    Rows that the official script passes over count if they were asked. A number that stands at several rows means all
    of them; a parent that is not there holds nothing back.

    Raises:
        ConfigError: answers are missing; the message lists some.
        IntegrityError: questions of an item depend on each other in a circle.
    """
    asked, oddities = _asked(questions, answers, tiles)
    by_item = dict[str, list[Question]]()
    for question in asked:
        by_item.setdefault(question.item, []).append(question)
    kinds, groups = dict[str, list[int]](), dict[str, list[int]]()
    means = dict[str, tuple[float, ...]]()
    for item, of_item in by_item.items():
        parents = _parents(of_item)
        oddities += _absent(of_item)
        order, found = _order(item, parents), list[float]()
        for tile in range(tiles):
            scores = _scores(of_item, parents, order, tile, answers)
            found.append(sum(scores.values()) / len(scores))
            for i, question in enumerate(of_item):
                kinds.setdefault(question.kind, []).append(scores[i])
                groups.setdefault(question.group, []).append(scores[i])
        means[item] = tuple(found)
    total = sum(sum(found) / tiles for found in means.values()) / len(means)
    return FullScore(100 * total, means, _percent(groups), _percent(kinds), tuple(oddities))


def _percent(found: Mapping[str, Sequence[int]]) -> dict[str, float]:
    return {name: 100 * sum(values) / len(values) for name, values in found.items()}


def _asked(questions: Sequence[Question], answers: Answers, tiles: int) -> tuple[list[Question], list[str]]:
    """Questions that count, and which rows were not asked, as the official script passes them over."""
    over = passed_over(questions)
    silent = {
        q.row
        for q in questions
        if q.row in over and not any((q.item, tile, q.text) in answers for tile in range(tiles))
    }
    kept = [q for q in questions if q.row not in silent]
    if {q.item for q in kept} != {q.item for q in questions}:
        kept = list(questions)  # an item of which nothing was asked has no score
    missing = [(q, tile) for q in kept for tile in range(tiles) if (q.item, tile, q.text) not in answers]
    if missing:
        named = "; ".join(f"{q.item}, tile {tile}: {q.text}" for q, tile in missing[:_NAMED])
        raise ConfigError(
            f"{len(missing)} of {len(kept) * tiles} answers are missing: {named}",
            hint="run the official script over all exported pictures, with --csv questions.csv, which the export wrote",
        )
    return kept, [f"not asked: row {q.row + 1}, {q.item}: {q.text}" for q in questions if q.row in silent]


def _parents(asked: Sequence[Question]) -> list[set[int]]:
    """Places of each question's parents in its item."""
    places = dict[int, set[int]]()
    for i, question in enumerate(asked):
        places.setdefault(question.number, set()).add(i)
    return [set[int]().union(*(places.get(number, set()) for number in question.parents)) for question in asked]


def _absent(asked: Sequence[Question]) -> list[str]:
    numbers = {question.number for question in asked}
    return [
        f"a parent that is not there: row {question.row + 1}, {question.item}: {number}"
        for question in asked
        for number in question.parents
        if number not in numbers
    ]


def _order(item: str, parents: Sequence[set[int]]) -> list[int]:
    """Places of an item's questions, parents first."""
    try:
        return list(TopologicalSorter(dict(enumerate(parents))).static_order())
    except CycleError as error:
        circle = ", ".join(str(place + 1) for place in error.args[1])
        raise IntegrityError(
            f"questions of {item} depend on each other: its rows {circle}",
            hint="mend the file of questions; the published one has none such that is known",
        ) from error


def _scores(
    asked: Sequence[Question], parents: Sequence[set[int]], order: Sequence[int], tile: int, answers: Answers
) -> dict[int, int]:
    scores = dict[int, int]()
    for i in order:
        has_parents = all(scores[parent] for parent in parents[i])
        scores[i] = int(has_parents and answers[asked[i].item, tile, asked[i].text] == YES)
    return scores
