"""Verdict of GenEval: the objects found in a picture are those that its prompt asks for, or why not.

Source: Ghosh et al., "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment", and its code, whose
words the reasons are. Numbers are float32, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: Colours that are told apart, in their order.
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
#: Relations, by axis and direction.
_RELATIONS = (("left of", "right of"), ("above", "below"))
#: Tag of prompts whose objects are counted.
_COUNTING = "counting"
#: Colours of objects of a class, by their numbers among that class's detections.
ColourFunction = Callable[[str, Sequence[int]], Sequence[str]]


@dataclass(frozen=True)
class VerdictOptions:
    """Options of the official script, with its defaults.

    Attributes:
        threshold, counting_threshold: score above which an object counts; the second for prompts that count.
        most_objects: of a class.
        most_overlap: of two boxes of a class; 1: any.
        position_threshold: share of the boxes' sizes by which objects must be apart.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    most_objects: int = 16
    most_overlap: float = 1.0
    position_threshold: float = 0.1


@dataclass(frozen=True)
class Verdict:
    """Verdict on a picture.

    Attributes:
        reason: what is wrong, a line a clause of the prompt; empty if it is correct.
        kept: numbers of the detections that count, by class, best first.
        colour_queries: objects whose colour was asked for, in order.
    """

    correct: bool
    reason: str
    kept: Mapping[str, tuple[int, ...]]
    colour_queries: tuple[tuple[str, tuple[int, ...]], ...] = ()


def judge(
    asked: Mapping[str, Any],
    boxes: Mapping[str, np.ndarray],
    colours_of: ColourFunction,
    options: VerdictOptions = VerdictOptions(),
) -> Verdict:
    """Judges a picture.

    Args:
        asked: clauses `include` and `exclude` of the prompt, and its `tag`.
        boxes: left, top, right, bottom, score of each detection [n, 5] by class.
        colours_of: tells the colours of objects.

    Raises:
        ValueError: a clause is none.
    """
    threshold = options.counting_threshold if asked.get("tag") == _COUNTING else options.threshold
    kept = {name: _kept(np.asarray(rows, np.float32), threshold, options) for name, rows in boxes.items()}
    kept = {name: numbers for name, numbers in kept.items() if numbers}
    clauses = _Clauses(boxes, kept, colours_of, options)
    for clause in asked.get("include", ()):
        clauses.include(clause)
    for clause in asked.get("exclude", ()):
        clauses.exclude(clause)
    return Verdict(not clauses.reasons, "\n".join(clauses.reasons), kept, tuple(clauses.queries))


def _kept(rows: np.ndarray, threshold: float, options: VerdictOptions) -> tuple[int, ...]:
    """Numbers of the detections of a class that count, best first; of equal scores the last one first."""
    if not len(rows):
        return ()
    order = np.argsort(rows[:, 4], kind="stable")[::-1]
    order = [int(i) for i in order if rows[i, 4] > np.float32(threshold)][: options.most_objects]
    if options.most_overlap >= 1:
        return tuple(order)
    free = list[int]()
    for i in order:
        if all(_overlap(rows[i], rows[j]) < options.most_overlap for j in free):
            free.append(i)
    return tuple(free)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes whose last pixels count."""
    common = _area(np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:4], b[2:4])]))
    union = _area(a) + _area(b) - common
    return float(common / union) if union else 0.0


def _area(box: np.ndarray) -> np.float32:
    sides = np.maximum(box[2:4] - box[:2] + 1, 0)
    return sides[0] * sides[1]


def relations(box: np.ndarray, target: np.ndarray, position_threshold: float) -> tuple[str, ...]:
    """Relations of a box to a target: none, one, or one of each axis."""
    corners = np.stack([box, target])[:, :4].reshape(2, 2, 2).astype(np.float32)  # object, corner, axis
    centres, sizes = corners.mean(axis=1), np.abs(corners[:, 1] - corners[:, 0])
    offset = centres[0] - centres[1]
    apart = np.maximum(np.abs(offset) - position_threshold * (sizes[0] + sizes[1]), 0) * np.sign(offset)
    if np.all(np.abs(apart) < 1e-3):
        return ()
    direction = apart / np.linalg.norm(offset)
    return tuple(names[int(value > 0)] for names, value in zip(_RELATIONS, direction, strict=True) if abs(value) > 0.5)


@dataclass
class _Clauses:
    """Clauses of a prompt, judged one after the other; `found` holds the objects of those that are met."""

    boxes: Mapping[str, np.ndarray]
    kept: Mapping[str, tuple[int, ...]]
    colours_of: ColourFunction
    options: VerdictOptions
    found: list[np.ndarray | None] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    queries: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    def include(self, clause: Mapping[str, Any]) -> None:
        name, count = clause["class"], clause["count"]
        numbers = self.kept.get(name, ())[:count]
        objects = np.asarray(self.boxes.get(name, np.zeros((0, 5))), np.float32)[list(numbers)]
        problem = ""
        if len(numbers) < count:
            problem = f"expected {name}>={count}, found {len(numbers)}"
        elif "color" in clause:
            problem = self._colour(name, count, clause["color"], numbers)
        if not problem and "position" in clause:
            problem = self._position(name, clause["position"], objects)
        if problem:
            self.reasons.append(problem)
        self.found.append(None if problem else objects)

    def _colour(self, name: str, count: int, colour: str, numbers: tuple[int, ...]) -> str:
        self.queries.append((name, numbers))
        seen = list(self.colours_of(name, numbers))
        if seen.count(colour) >= count:
            return ""
        others = ", ".join(f"{seen.count(one)} {one}" for one in COLOURS if one in seen)
        return f"expected {colour} {name}>={count}, found {seen.count(colour)} {colour}; and {others}"

    def _position(self, name: str, position: Sequence[Any], objects: np.ndarray) -> str:
        relation, index = position
        if not 0 <= index < len(self.found):
            raise ValueError(f"a clause of {name} stands {relation} clause {index}, which does not come before it")
        targets = self.found[index]
        if targets is None:
            return f"no target for {name} to be {relation}"
        for box in objects:
            for target in targets:
                true = relations(box, target, self.options.position_threshold)
                if relation not in true:
                    return f"expected {name} {relation} target, found {' and '.join(true)} target"
        return ""

    def exclude(self, clause: Mapping[str, Any]) -> None:
        name, count = clause["class"], clause["count"]
        found = len(self.kept.get(name, ()))
        if found >= count:
            self.reasons.append(f"expected {name}<{count}, found {found}")
