"""Answers of the official VQA, from the detail files that its script writes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ldp_runtime.errors import ConfigError
from ldp_runtime.system.small_files import read_small

from ldp_calibration.evaluation.dpg.questions import Question

#: Most bytes of a file of answers: 1065 items, 4 tiles, some 13 questions each.
_MOST_BYTES = 256 * 2**20
#: Picture's file, corners of the tile, and the question with its answer.
_LINE = re.compile(r"(?P<file>.*?), \((?P<box>\d+, \d+, \d+, \d+)\), (?P<rest>.*)")


def read_answers(path: Path, questions: Sequence[Question]) -> tuple[dict[tuple[str, int, str], str], str]:
    """Answers of a detail file, and its SHA-256.

    Raises:
        ConfigError: the file cannot be read, a line of it is none, or it answers a question twice, and differently.
    """
    try:
        content = read_small(path, _MOST_BYTES)
        lines = content.decode().splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read the answers {path}: {error}", hint="name a detail file of the official script"
        ) from error
    texts = _texts(questions)
    found = dict[tuple[str, int, str], str]()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            key, answer = parsed(line, texts)
            if found.setdefault(key, answer) != answer:
                raise ValueError("the question was answered before, and differently")
        except ValueError as error:
            raise ConfigError(
                f"{path}, line {number}: {error}",
                hint="a line is: picture, (left, top, right, bottom), question, answer; of the exported pictures",
            ) from error
    return found, hashlib.sha256(content).hexdigest()


def _texts(questions: Sequence[Question]) -> dict[str, list[str]]:
    """Questions of each item, the longest first: one may begin as another does."""
    found = dict[str, list[str]]()
    for question in questions:
        found.setdefault(question.item, []).append(question.text)
    return {item: sorted(texts, key=len, reverse=True) for item, texts in found.items()}


def parsed(line: str, texts: Mapping[str, Sequence[str]]) -> tuple[tuple[str, int, str], str]:
    """Item, tile and question of a line, and its answer.

    Args:
        texts: questions by item, which tell where a question ends: both may hold commas.

    Raises:
        ValueError: it is none of an item's questions.
    """
    found = _LINE.fullmatch(line)
    if not found:
        raise ValueError(f"{line[:80]!r} is no answer")
    item = Path(found["file"].replace("\\", "/")).name.removesuffix(".png")
    left, top, right, bottom = map(int, found["box"].split(", "))
    if right <= left or bottom <= top:
        raise ValueError(f"({found['box']}) is no tile")
    tile = (left > 0) + 2 * (top > 0)
    for text in texts.get(item.split(".")[0], texts.get(item, ())):
        if found["rest"].startswith(f"{text}, "):
            return (item, tile, text), found["rest"][len(text) + 2 :]
    raise ValueError(f"{item} has no question {found['rest'][:80]!r}")

