"""Benchmark `dpg`: long prompts, each with questions about its picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt

_QUESTIONS = "dpg_bench.csv"
#: Pictures of a prompt, as the protocol has it: they are tiled into one file.
IMAGES = 4
#: Columns of the file that aggregation needs, by the names that questions have as facts of a prompt.
COLUMNS = {
    "id": "proposition_id",
    "dependency": "dependency",
    "tuple": "tuple",
    "question": "question_natural_language",
}


def read(files: Mapping[str, bytes]) -> list[EvaluationPrompt]:
    """Prompts in the order in which their first questions come, each with its questions.

    The official score depends on the order of the whole file's rows: a question knows its row. Raises ValueError for
    another format.
    """
    found = dict[str, EvaluationPrompt]()
    table = csv.DictReader(io.StringIO(files[_QUESTIONS].decode("utf-8-sig"), newline=""))
    for row, line in enumerate(table):
        facts = {"item_id": line["item_id"], "questions": []}
        prompt = found.setdefault(line["item_id"], EvaluationPrompt(line["text"], None, facts))
        prompt.facts["questions"].append({"row": row} | {name: line[column] for name, column in COLUMNS.items()})
    return list(found.values())
