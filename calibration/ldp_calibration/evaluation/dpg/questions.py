"""Questions of DPG-Bench, in the order of its file, and answers to them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt

#: Answers of the VQA by item, tile and question.
Answers = Mapping[tuple[str, int, str], str]
#: The answer that counts.
YES = "yes"


@dataclass(frozen=True)
class Question:
    """A row of the file.

    Attributes:
        item: id of the picture's prompt; number: of the question in it; parents: numbers of those it depends on.
        kind: "entity - whole" and the like; text: as the VQA is asked.
        dependency: the parents as they stand in the file.
    """

    item: str
    number: int
    parents: tuple[int, ...]
    dependency: str
    kind: str
    text: str

    @property
    def group(self) -> str:
        """Kind up to its first dash."""
        return self.kind.split("-")[0].strip()


def read_questions(content: bytes) -> list[Question]:
    """Questions of an official file. Raises ValueError for another format."""
    table = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    names = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")
    return [_question(*(_cell(line, name) for name in names)) for line in table]


def _cell(line: Mapping[str, str | None], name: str) -> str:
    value = line.get(name)
    if value is None:
        raise ValueError(f"a row has no {name}")
    return value


def questions_of(prompts: Sequence[EvaluationPrompt]) -> list[Question]:
    """Questions of a run's prompts, in the order of the file. Raises ValueError for prompts that have none."""
    rows = list[tuple[int, Question]]()
    for prompt in prompts:
        try:
            item = str(prompt.facts["item_id"])
            for entry in prompt.facts["questions"]:
                cells = (str(entry[name]) for name in ("id", "dependency", "tuple", "question"))
                rows.append((int(entry["row"]), _question(item, *cells)))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the prompt {prompt.text[:80]!r} has no questions of DPG-Bench") from error
    return [question for _, question in sorted(rows, key=lambda row: row[0])]


def _question(item: str, number: str, dependency: str, kind: str, text: str) -> Question:
    parents = tuple(parent for part in dependency.split(",") if (parent := int(part)) != 0)
    return Question(item, int(number), parents, dependency, kind.split("(")[0].strip(), text)
