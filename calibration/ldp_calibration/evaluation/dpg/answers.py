"""Answers of the official VQA, from the detail files that its script writes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ldp_runtime.errors import ConfigError
from ldp_runtime.system.small_files import read_small, text_lines

from ldp_calibration.evaluation.dpg.questions import Question

#: Most bytes of a file of answers: 1065 items, 4 tiles, some 13 questions each.
_MOST_BYTES = 256 * 2**20
#: Picture's file, corners of the tile, and the question with its answer.
_LINE = re.compile(r"(?P<file>.*?), \((?P<box>\d+, \d+, \d+, \d+)\), (?P<rest>.*)")
_HINT = "a line is: picture, (left, top, right, bottom), question, answer; of the exported pictures"
#: Questions with their answers by item and tile, as they stand in a file.
Lines = Mapping[tuple[str, int], Sequence[str]]


def read_detail(path: Path) -> tuple[Lines, str]:
    """Lines of a detail file, and its SHA-256.

    Raises:
        ConfigError: the file cannot be read, or a line of it is none.
    """
    try:
        content = read_small(path, _MOST_BYTES)
        lines = text_lines(content)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read the answers {path}: {error}", hint="name a detail file of the official script"
        ) from error
    found = dict[tuple[str, int], list[str]]()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            place, rest = parsed(line)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: {error}", hint=_HINT) from error
        found.setdefault(place, []).append(rest)
    if not found:
        raise ConfigError(f"{path} holds no answers", hint=_HINT)
    return found, hashlib.sha256(content).hexdigest()


def parsed(line: str) -> tuple[tuple[str, int], str]:
    """Picture and tile of a line, and its question with the answer. Raises ValueError if it is none."""
    found = _LINE.fullmatch(line)
    if not found:
        raise ValueError(f"{line[:80]!r} is no answer")
    left, top, right, bottom = map(int, found["box"].split(", "))
    if right <= left or bottom <= top:
        raise ValueError(f"({found['box']}) is no tile")
    item = Path(found["file"].replace("\\", "/")).name.removesuffix(".png")
    return (item, (left > 0) + 2 * (top > 0)), found["rest"]


def answers_of(lines: Lines, item: str, tile: int, questions: Sequence[Question]) -> dict[str, str]:
    """Answers to the questions about a tile; both may hold commas, and one question may begin as another does.

    Raises:
        ConfigError: a line answers none of the questions, or one that was answered before, and differently.
    """
    texts = sorted((question.text for question in questions), key=len, reverse=True)
    found = dict[str, str]()
    for line in lines.get((item, tile), ()):
        text = next((text for text in texts if line.startswith(f"{text}, ")), None)
        if text is None:
            raise ConfigError(f"{item} has no question {line[:80]!r}", hint=_HINT)
        answer = line[len(text) + 2 :]
        if found.setdefault(text, answer) != answer:
            raise ConfigError(f"{item}, tile {tile} is answered twice, and differently: {text}", hint=_HINT)
    return found
