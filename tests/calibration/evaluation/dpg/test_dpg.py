"""DPG-Bench's two counts: the official one against the original, with all that it leaves out; and everything's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers.evaluation_goldens import VECTORS, read
from ldp_calibration.evaluation.benchmarks import dpg
from ldp_calibration.evaluation.dpg.all_tiles import all_tiles
from ldp_calibration.evaluation.dpg.answers import answers_of, read_detail
from ldp_calibration.evaluation.dpg.official import OfficialScriptError, official_score
from ldp_calibration.evaluation.dpg.questions import Answers, Question, questions_of, read_questions
from ldp_runtime.errors import ConfigError, IntegrityError

CASES = sorted((VECTORS / "dpg").iterdir())


def given(folder: Path) -> tuple[dict[str, Any], list[Question], Answers]:
    expected = read(folder / "expected.json")
    keys = {key: key.split("|", 2) for key in expected["answers"]}
    answers = {(item, int(tile), text): expected["answers"][key] for key, (item, tile, text) in keys.items()}
    return expected, read_questions((folder / "questions.csv").read_bytes()), answers


def same(found: Mapping[str, float], expected: Mapping[str, float]) -> bool:
    return found.keys() == expected.keys() and all(math.isclose(found[k], expected[k]) for k in found)


@pytest.mark.parametrize("folder", CASES, ids=[path.name for path in CASES])
def test_the_official_count_is_that_of_the_original(folder: Path) -> None:
    expected, questions, answers = given(folder)
    parsed = expected["parsed"]
    if expected["error"]:
        with pytest.raises(OfficialScriptError, match="the script dies"):
            official_score(questions, expected["images"], answers, expected["pic_num"])
        return
    found = official_score(questions, expected["images"], answers, expected["pic_num"])
    assert found.score == pytest.approx(parsed["score"], nan_ok=True)
    assert same(found.groups, parsed["L1"])
    assert same(found.kinds, parsed["L2"])
    assert {item: list(tiles) for item, tiles in found.items.items()} == {
        item: one["tiles"] for item, one in parsed["items"].items()
    }
    assert sorted(f"Failed filename: {name}.png {why}" for name, why in found.failed.items()) == sorted(
        parsed["failed"]
    )


@pytest.mark.parametrize("folder", [f for f in CASES if read(f / "expected.json")["detail_txt"]], ids=lambda f: f.name)
def test_detail_files_of_the_original_are_read(folder: Path, tmp_path: Path) -> None:
    expected, questions, answers = given(folder)
    (tmp_path / "detail.txt").write_text(expected["detail_txt"])
    lines, _ = read_detail(tmp_path / "detail.txt")
    count = 0
    for item, tile in lines:
        asked = [question for question in questions if question.item == item]
        for text, answer in answers_of(lines, item, tile, asked).items():
            assert answers[item, tile, text] == answer
            count += 1
    assert count == len(set(expected["detail_txt"].splitlines()))


def question(number: int, *parents: int, item: str = "a", kind: str = "entity - whole") -> Question:
    return Question(item, number, parents, ",".join(map(str, parents or (0,))), kind, f"is {number}?")


def answered(questions: list[Question], no: set[tuple[int, int]], tiles: int) -> Answers:
    """Answers: yes but for some (number, tile)."""
    return {(q.item, t, q.text): "no" if (q.number, t) in no else "yes" for q in questions for t in range(tiles)}


def test_everything_counts_with_parents_first() -> None:
    chain = [question(3, 2), question(2, 1, kind="attribute - color"), question(1)]  # children stand before parents
    found = all_tiles(chain, answered(chain, {(1, 1)}, 2), 2)
    assert found.tiles == {"a": (1.0, 0.0)}
    assert found.score == 50
    assert found.groups == {"entity": 50, "attribute": 50}
    official = official_score([*chain, question(1, 2, 3, item="b")], ["a"], answered(chain, {(1, 1)}, 2), 2)
    assert official.score == 50
    assert official.groups == {"attribute": 100, "entity": 0}  # of the last tile alone, and before zeroing


def test_one_no_among_parents_is_enough() -> None:
    asked = [question(1), question(2), question(3, 1, 2)]
    assert all_tiles(asked, answered(asked, {(2, 0)}, 1), 1).tiles == {"a": (1 / 3,)}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([question(1, 7)], "depend on 7, which are not there"),
        ([question(1, 2), question(2, 1)], "depend on each other"),
        ([question(1), question(1)], "has two questions 1"),
    ],
)
def test_broken_questions_are_errors(asked: list[Question], said: str) -> None:
    with pytest.raises(IntegrityError, match=said):
        all_tiles(asked, answered(asked, set(), 1), 1)


def test_missing_answers_are_errors() -> None:
    asked = [question(1), question(2)]
    answers = dict(answered(asked, set(), 2))
    del answers["a", 1, "is 2?"]
    with pytest.raises(ConfigError, match=r"1 of 4 answers are missing: a, tile 1: is 2\?"):
        all_tiles(asked, answers, 2)


def test_questions_and_answers_with_commas() -> None:
    asked = [Question("a", 1, (), "0", "k", "Is it red"), Question("a", 2, (), "0", "k", "Is it red, or blue")]
    lines = {("a", 0): ["Is it red, yes, it is", "Is it red, or blue, no"]}
    assert answers_of(lines, "a", 0, asked) == {"Is it red": "yes, it is", "Is it red, or blue": "no"}


def test_questions_of_a_run_keep_the_order_of_the_file() -> None:
    for folder in CASES:
        content = (folder / "questions.csv").read_bytes()
        rows = read_questions(content)
        assert questions_of(dpg.read({"dpg_bench.csv": content})) == rows


@pytest.mark.parametrize(
    "content",
    [
        b"item_id,text\na,b\n",
        b"\xff\xfe",
        b"item_id,proposition_id,dependency,tuple,question_natural_language\na,x,0,t,q",
    ],
)
def test_files_of_another_format(content: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_questions(content)
