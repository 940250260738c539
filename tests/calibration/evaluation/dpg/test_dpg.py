"""DPG-Bench's two counts: the official one against the original, with all that it leaves out; and everything's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers.evaluation_goldens import VECTORS, read
from ldp_calibration.evaluation.benchmarks import dpg
from ldp_calibration.evaluation.dpg.all_tiles import all_tiles, tile_score
from ldp_calibration.evaluation.dpg.answers import answers_of, read_detail
from ldp_calibration.evaluation.dpg.official import OfficialScriptError, official_score, passed_over
from ldp_calibration.evaluation.dpg.questions import Answers, Question, asking_all, questions_of, read_questions
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


def question(number: int, *parents: int, item: str = "a", kind: str = "entity - whole", row: int = -1) -> Question:
    """A question; its row is that of its number unless it is given."""
    row = number if row < 0 else row
    return Question(item, number, parents, ",".join(map(str, parents or (0,))), kind, f"is {number}?", row)


def answered(questions: list[Question], no: set[tuple[int, int]], tiles: int) -> Answers:
    """Answers: yes but for some (number, tile)."""
    return {(q.item, t, q.text): "no" if (q.number, t) in no else "yes" for q in questions for t in range(tiles)}


def test_everything_counts_with_parents_first() -> None:
    chain = [  # children stand before parents
        question(3, 2, row=0),
        question(2, 1, kind="attribute - color", row=1),
        question(1, row=2),
    ]
    found = all_tiles(chain, answered(chain, {(1, 1)}, 2), 2)
    assert found.tiles == {"a": (1.0, 0.0)}
    assert found.score == 50
    assert found.groups == {"entity": 50, "attribute": 50}
    official = official_score([*chain, question(1, 2, 3, item="b", row=3)], ["a"], answered(chain, {(1, 1)}, 2), 2)
    assert official.score == 50
    assert official.groups == {"attribute": 100, "entity": 0}  # of the last tile alone, and before zeroing


def test_one_no_among_parents_is_enough() -> None:
    asked = [question(1), question(2), question(3, 1, 2)]
    assert all_tiles(asked, answered(asked, {(2, 0)}, 1), 1).tiles == {"a": (1 / 3,)}


def test_a_circle_of_questions_is_an_error() -> None:
    asked = [question(1, 2), question(2, 1)]
    with pytest.raises(IntegrityError, match="depend on each other"):
        all_tiles(asked, answered(asked, set(), 1), 1)


def test_odd_rows_count_and_are_named() -> None:
    asked = [question(1, 7), question(2), question(2, row=3), question(3, 2, row=4)]
    answers = dict(answered(asked, set(), 1))
    found = all_tiles(asked, answers, 1)
    assert found.tiles == {"a": (1.0,)}
    assert found.oddities == ("a parent that is not there: row 2, a: 7",)
    answers["a", 0, "is 2?"] = "no"
    assert all_tiles(asked, answers, 1).tiles == {"a": (1 / 4,)}


def test_rows_that_the_official_script_never_asks_need_no_answer() -> None:
    asked = [question(1, row=0), question(2, 1, row=1), question(3, row=2), question(1, item="b", row=3)]
    answers = {key: value for key, value in answered(asked, {(3, 0)}, 1).items() if key[2] != "is 1?" or key[0] == "b"}
    found = all_tiles(asked, answers, 1)
    assert found.tiles == {"a": (1 / 2,), "b": (1.0,)}
    assert found.oddities == ("not asked: row 1, a: is 1?", "a parent that is not there: row 2, a: 1")
    assert tile_score(asked[:3], answers, 0) == 1 / 2
    blocks = [question(1, row=1), question(2, row=2), question(2, row=7)]
    assert passed_over(blocks) == {1, 2}
    only = [question(1, row=0), question(1, item="b", row=1)]
    with pytest.raises(ConfigError, match="1 of 2 answers are missing: a, tile 0") as raised:
        all_tiles(only, {("b", 0, "is 1?"): "yes"}, 1)
    assert "--csv questions.csv" in str(raised.value.hint)


@pytest.mark.parametrize("folder", CASES, ids=[path.name for path in CASES])
def test_the_exported_questions_ask_everything(folder: Path) -> None:
    prompts = dpg.read({"dpg_bench.csv": (folder / "questions.csv").read_bytes()})
    written = read_questions(asking_all(prompts))
    assert passed_over(written) == {0}
    assert written[0].text == written[1].text
    wanted = sorted((q.item, q.kind, q.text) for q in questions_of(prompts))
    assert sorted((q.item, q.kind, q.text) for q in written[1:]) == wanted
    answers = {(q.item, 0, q.text): "yes" for q in written}
    names = sorted({q.item for q in written if "." not in q.item})
    if not all(name.isdecimal() for name in names):
        assert official_score(written, names, answers, 1).failed == {}


def test_missing_answers_are_errors() -> None:
    asked = [question(1), question(2)]
    answers = dict(answered(asked, set(), 2))
    del answers["a", 1, "is 2?"]
    with pytest.raises(ConfigError, match=r"1 of 4 answers are missing: a, tile 1: is 2\?"):
        all_tiles(asked, answers, 2)


def test_questions_and_answers_with_commas() -> None:
    asked = [Question("a", 1, (), "0", "k", "Is it red", 1), Question("a", 2, (), "0", "k", "Is it red, or blue", 2)]
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
