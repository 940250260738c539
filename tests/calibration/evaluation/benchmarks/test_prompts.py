"""Prompts of benchmarks: the benchmark of shapes, and files of users that are almost right."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ldp_calibration.evaluation.benchmarks.choose import find_benchmark
from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt, lines_hash, read_prompts
from ldp_calibration.evaluation.benchmarks.shapes import claims_of, shapes
from ldp_calibration.shapes import CATEGORIES, holds, sample_prompt
from ldp_calibration.shapes.scenes import Shape
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.errors import ConfigError


def test_the_benchmark_of_shapes() -> None:
    benchmark = shapes()
    tags = Counter(prompt.tag for prompt in benchmark.prompts)
    assert len(benchmark.prompts) == len({prompt.text for prompt in benchmark.prompts}) == 500
    assert set(tags) == set(CATEGORIES)
    assert set(tags.values()) == {83, 84}
    assert lines_hash(benchmark.prompts) == lines_hash(shapes().prompts)
    assert len({prompt.tag for prompt in benchmark.prompts[:6]}) == len(CATEGORIES)  # also of the first few


def test_its_prompts_are_not_those_of_calibration() -> None:
    texts = {prompt.text for prompt in shapes().prompts}
    for seed in range(3):
        rng = np.random.default_rng((seed, 7))
        assert not texts & {sample_prompt(CATEGORIES[i % 6], rng).text for i in range(600)}


def test_its_prompts_say_what_they_claim() -> None:
    for prompt in shapes().prompts:
        claimed = claims_of(prompt)
        assert claimed.category == prompt.tag
        assert all(claim.kind in prompt.text and (claim.colour or "") in prompt.text for claim in claimed.claims)
        assert (claimed.count is not None) == (prompt.tag == "counting")
        assert (claimed.relation is not None) == (prompt.tag == "position")
        assert not holds(claimed, [])
    count = next(prompt for prompt in shapes().prompts if "there are two" in prompt.text)
    claim = claims_of(count).claims[0]
    shape = Shape(claim.kind, claim.colour or "", "small", 0.3, 0.3, 0.1)
    assert holds(claims_of(count), [shape, shape])
    assert not holds(claims_of(count), [shape])


def written(folder: Path, content: str | bytes, name: str = "p.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_prompts_of_files(tmp_path: Path) -> None:
    text = written(tmp_path, "a red circle\r\n  ein grüner Kreis \n\n\n")
    assert [prompt.text for prompt in read_prompts(text)] == ["a red circle", "ein grüner Kreis"]
    marked = written(tmp_path, b"\xef\xbb\xbfa red circle\n")
    assert read_prompts(marked) == [EvaluationPrompt("a red circle")]
    odd = written(tmp_path, "one\u2028line\nanother\tline")
    assert len(read_prompts(odd)) == 2
    lines = ['{"prompt": "a", "tag": "t", "claims": [["circle", null]]}', '{"prompt": "b"}']
    objects = read_prompts(written(tmp_path, "\n".join(lines), "p.jsonl"))
    assert objects == [EvaluationPrompt("a", "t", {"claims": [["circle", None]]}), EvaluationPrompt("b")]
    assert [json.loads(prompt.line)["prompt"] for prompt in objects] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        ("", "p.txt", "holds no prompt"),
        ("\n\n", "p.txt", "holds no prompt"),
        ("a\n\nb\n \nc", "p.txt", "has empty lines: 2, 4"),
        ("a\nb\na\nb\n", "p.txt", r"holds prompts twice: lines 3 \(as 1\), 4 \(as 2\)"),
        ("a\nrouge p\xe2le\n".encode("latin-1"), "p.txt", "is not UTF-8: line 2 holds the byte 0xe2"),
        ("a\nb\n".encode("utf-16"), "p.txt", "is not UTF-8"),
        ("a\nb\n".encode("utf-16-le"), "p.txt", "holds zero bytes"),
        ("x" * 40_000, "p.txt", "line 1: a prompt of 40000 characters"),
        ("a\rb\r", "p.txt", "line 1: a prompt with the control character 0x0d"),
        ("a\na\x0bb\n", "p.txt", "line 2: a prompt with the control character 0x0b"),
        ('{"prompt": "a\\u0000b"}', "p.jsonl", "line 1: a prompt with the control character 0x00"),
        ('{"prompt": "a"}\n\n{"prompt": "b"}', "p.jsonl", "has empty lines: 2"),
        ('{"prompt": "a"}\na red circle', "p.jsonl", "line 2"),
        ('{"text": "a"}', "p.jsonl", "line 1: its prompt is None"),
        ('["a"]', "p.jsonl", "line 1: it is no object"),
        ('{"prompt": "a", "tag": 3}', "p.jsonl", "its tag is 3"),
        ('{"prompt": " "}', "p.jsonl", "its prompt is"),
        ('{"prompt": "a\\ud800"}', "p.jsonl", "line 1"),
        ('{"prompt": "a", "prompt": "b"}', "p.jsonl", "names 'prompt' twice"),
    ],
)
def test_files_that_are_almost_right(tmp_path: Path, content: str | bytes, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        read_prompts(written(tmp_path, content, name))
    assert raised.value.hint


def test_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(ConfigError, match="cannot read the prompts file"):
            read_prompts(path)


def test_benchmarks_by_name(small_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown benchmark 'shpes'") as raised:
        find_benchmark("shpes", small_bundle.manifest)
    assert "did you mean 'shapes'" in str(raised.value.hint)
    with pytest.raises(ConfigError, match="the benchmark shapes is for infinity-shapes"):
        find_benchmark("shapes", small_bundle.manifest)
    found = find_benchmark(str(written(tmp_path, "a red circle\n")), small_bundle.manifest)
    assert (found.name, len(found.prompts), found.images) == ("p.txt", 1, 1)


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"claims": []},
        {"claims": [["circle"]]},
        {"claims": [["cube", "red"]]},
        {"claims": [["circle", "mauve"]]},
        {"claims": [["circle", "red"]], "count": "two"},
        {"claims": [["circle", "red"], ["star", None]], "relation": "beside"},
    ],
)
def test_prompts_without_claims_cannot_be_judged(facts: dict) -> None:
    with pytest.raises(ConfigError, match="does not say which shapes it claims"):
        claims_of(EvaluationPrompt("a red circle", None, facts))
