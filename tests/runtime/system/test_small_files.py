"""Small files that others wrote: bounded, plain, and never a surprise."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from ldp_runtime.system.small_files import (
    MOST_BYTES,
    MOST_LEVELS,
    is_plain_file,
    json_text,
    parse_json,
    read_json,
    read_small,
    stays_inside,
    text_lines,
)


@pytest.mark.parametrize(
    "text",
    ["[" * 1000, "[" * 10**6, '{"a":' * 5000, "[" * (MOST_LEVELS + 2) + "]" * (MOST_LEVELS + 2)],
    ids=["lists", "many", "objects", "closed"],
)
def test_nesting_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


@pytest.mark.parametrize(
    "text",
    ["NaN", "[Infinity]", "-Infinity", "1e999", "1" * 5000, '{"a": 1, "a": 2}', "", "nul", "\ud800", b"\xff\xfe1"],
)
def test_what_is_no_plain_value_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


def test_plain_values_are_read(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True, "é"], "b": {"c": {}}}
    (tmp_path / "x.json").write_text(json.dumps(value))
    (tmp_path / "link").symlink_to("x.json")
    assert read_json(tmp_path / "link") == value
    deep = "[" * (MOST_LEVELS - 1) + "]" * (MOST_LEVELS - 1)
    assert parse_json(deep)


def test_numbers_that_json_lacks_are_written_as_null() -> None:
    value = {"a": float("inf"), "b": [float("nan"), (1.5, -float("inf"))], "c": 2, "d": True}
    assert parse_json(json_text(value)) == {"a": None, "b": [None, [1.5, None]], "c": 2, "d": True}


def test_lines_end_as_lines_of_files_do() -> None:
    assert text_lines("a\u2028b\x85\x0cc\r\n\nd".encode()) == ["a\u2028b\x85\x0cc", "", "d"]
    assert text_lines(b"a\n") == ["a"]
    assert text_lines(b"") == []
    with pytest.raises(ValueError, match="utf-8"):
        text_lines(b"\xff")


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(200 * MOST_BYTES)  # a hole: takes no room
    with pytest.raises(ValueError, match="more than"):
        read_json(tmp_path / "large")


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket"))
        for name in ("pipe", "folder", "zero", "loop", "socket", "absent"):
            assert not is_plain_file(tmp_path / name)
            with pytest.raises((ValueError, OSError)):
                read_json(tmp_path / name)


@pytest.mark.parametrize(
    "name",
    [
     "/a", "../a", "a/..", "a/../b", ".", "./a", "a/./b", "", "a//b", "a/", "a\\b", "\\\\host\\a", "C:/a", "c:a",
     "a\0b", "a\nb", "a\x85b", "\ud800", "x" * 256, "é" * 128, " /a", "... /a", "...", None, 7, ["a"], b"a"],
)  # fmt: skip
def test_names_that_lead_elsewhere(name: object) -> None:
    assert not stays_inside(name)


@pytest.mark.parametrize(
    "name", ["a", "a/b.json", ".hidden", "..a", "a..", "a b/ü.txt", "x" * 255, "model-1.safetensors"]
)
def test_names_that_stay(name: str) -> None:
    assert stays_inside(name)


def test_a_folder_is_called_a_folder(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ValueError, match="it is a folder, not a file"):
        read_small(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
