"""Files of JSON lines: what a kill leaves of them takes no other entry with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from ldp_calibration.processes import in_processes
from ldp_calibration.resumable import appended, read_entries


def test_entries_after_a_half_written_line_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    assert not list(read_entries(path))
    with appended(path) as add:
        add({"a": 1})
    with path.open("ab") as file:
        file.write(b'{"b": "half \xc3')
    before = path.read_bytes()
    with appended(path):
        pass
    assert path.read_bytes() == before
    with appended(path) as add:
        add({"c": 3})
        add({"d": 4})
    assert list(read_entries(path)) == [{"a": 1}, {"c": 3}, {"d": 4}]
    with path.open("ab") as file:
        file.write(b"[1]\n17\n\xff\n\n")
    assert list(read_entries(path)) == [{"a": 1}, {"c": 3}, {"d": 4}]


def test_errors_of_processes_keep_their_type() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_processes(1, print, (), divmod, [(1, 0), (1, 1)]))
    assert list(in_processes(1, print, (), divmod, [])) == []
