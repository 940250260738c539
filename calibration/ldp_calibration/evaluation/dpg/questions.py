"""Questions of DPG-Bench, in the order of its file, and answers to them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt

#: Answers of the VQA by item, tile and question.
Answers = Mapping[tuple[str, int, str], str]
#: Columns of an official file.
_COLUMNS = ("item_id", "text", "keywords", "proposition_id", "dependency", "category_broad", "category_detailed") + (
    "tuple",
    "question_natural_language",
)
#: The answer that counts.
YES = "yes"


@dataclass(frozen=True)
class Question:
    """A row of the file.

    Attributes:
        item: id of the picture's prompt; number: of the question in it; parents: numbers of those it depends on.
        kind: "entity - whole" and the like; text: as the VQA is asked.
        dependency: the parents as they stand in the file; row: its place in the file, from 0.
    """

    item: str
    number: int
    parents: tuple[int, ...]
    dependency: str
    kind: str
    text: str
    row: int

    @property
    def group(self) -> str:
        """Kind up to its first dash."""
        return self.kind.split("-")[0].strip()


def read_questions(content: bytes) -> list[Question]:
    """Questions of an official file. Raises ValueError for another format."""
    table = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    names = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")
    return [_question(row, *(_cell(line, name) for name in names)) for row, line in enumerate(table)]


def _cell(line: Mapping[str, str | None], name: str) -> str:
    value = line.get(name)
    if value is None:
        raise ValueError(f"a row has no {name}")
    return value


def questions_of(prompts: Sequence[EvaluationPrompt]) -> list[Question]:
    """Questions of a run's prompts, in the order of the file. Raises ValueError for prompts that have none."""
    found = list[Question]()
    for prompt in prompts:
        try:
            item = str(prompt.facts["item_id"])
            for entry in prompt.facts["questions"]:
                cells = (str(entry[name]) for name in ("id", "dependency", "tuple", "question"))
                found.append(_question(int(entry["row"]), item, *cells))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the prompt {prompt.text[:80]!r} has no questions of DPG-Bench") from error
    return sorted(found, key=lambda question: question.row)


def _question(row: int, item: str, number: str, dependency: str, kind: str, text: str) -> Question:
    parents = tuple(parent for part in dependency.split(",") if (parent := int(part)) != 0)
    return Question(item, int(number), parents, dependency, kind.split("(")[0].strip(), text, row)


def asking_all(prompts: Sequence[EvaluationPrompt]) -> bytes:
    """A file of questions for the official script that makes it ask every question of these prompts.

    Of the official file it never asks the first row, nor rows whose number comes again; and it leaves items that fail.
    Here rows are numbered anew, depend on nothing, and the first stands there twice. What it then prints is no score.
    """
    stream = io.StringIO(newline="")
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(_COLUMNS)
    texts = {str(prompt.facts["item_id"]): prompt.text for prompt in prompts}
    places = {item: place for place, item in enumerate(texts)}
    rows, counts = list[tuple[str, ...]](), dict[str, int]()
    for question in sorted(questions_of(prompts), key=lambda one: places[one.item]):
        counts[question.item] = counts.get(question.item, 0) + 1
        kind = f"{question.kind} ({counts[question.item]})"
        cells = (str(counts[question.item]), "0,0", question.group, question.kind, kind, question.text)
        rows.append((question.item, texts[question.item], "", *cells))
    table.writerows([*rows[:1], *rows])
    return stream.getvalue().encode()
