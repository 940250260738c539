"""Report of a GPU's owner: every step is a row whatever happens, nothing private is in it, and it ends in time."""

from __future__ import annotations

import json
import socket
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from click.testing import CliRunner
from ldp_runtime.errors import ConfigError

from ldp_export.cli import main
from ldp_export.gpu_report import run, steps
from ldp_export.gpu_report.child import Ended, run_child
from ldp_export.gpu_report.outcome import row_of
from ldp_export.gpu_report.page import page
from ldp_export.gpu_report.private import Private
from ldp_export.gpu_report.report import JSON, PAGE, Drawn, GpuReport, Machine, Row, Verified, read_report
from ldp_export.gpu_report.run import write_report
from ldp_export.gpu_report.steps import BACKENDS, EMBEDDED, OWN, SLICE, VERB, VERDICTS, Shape, Step

TINY = Shape(
    "tiny",
    ("--model", "infinity-2b", "--random-weights", "--depth", "1", "--width", "128", "--size", "0.06M"),
    ("--repeats", "1", "--warmup", "1"),
    is_random=True,
)
#: A machine that has everything, as its step would print it.
ABLE = {
    "machine": [{"name": "GPU", "value": "a stand-in", "found": True}],
    "packages": {},
    "build": [{"what": build, "works": True, "reason": "", "fix": ""} for build, _ in VERDICTS.values()],
    "run": [{"what": runs, "works": True, "reason": "", "fix": ""} for _, runs in VERDICTS.values()],
}
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def planned(monkeypatch: pytest.MonkeyPatch, *given: Step) -> None:
    monkeypatch.setattr(run, "steps", lambda *_: iter(given))


def step(title: str, program: str, *arguments: str, kind: Any = "build", **more: Any) -> Step:
    return Step(title, kind, program, arguments, **more)


def rows(report: GpuReport) -> dict[str, Row]:
    return {row.title: row for row in report.rows}


class TestEnds:
    """Programs that end as libraries do."""

    def test_each_is_a_row_and_none_the_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ends = {
            "crash": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "abort": "import os, sys; print('the library says why', file=sys.stderr, flush=True); os.abort()",
            "raise": "raise RuntimeError('no such kernel')",
            "garbage": "print('{'); print('[3]'); print('hello')",
            "silence": "pass",
            "typed": 'print(\'{"error": {"message": "too little memory", "hint": "use less"}}\'); raise SystemExit(5)',
            "wrong": 'print(\'{"bundle": "b", "state": 3}\')',
            "fine": 'print(\'noise\\n{"bundle": "b", "state": "verified", "checks": 7, "bytes": 1048576}\')',
        }
        planned(monkeypatch, *(step(title, program) for title, program in ends.items()))
        report = write_report(tmp_path / "report")
        found = rows(report)
        assert list(found) == list(ends)
        assert {title: row.state for title, row in found.items() if row.state != "failed"} == {"fine": "done"}
        assert "SIGSEGV" in found["crash"].error
        assert "SIGABRT" in found["abort"].error
        assert "the library says why" in found["abort"].error
        assert "no such kernel" in found["raise"].error
        assert "cannot be read" in found["garbage"].error
        assert "cannot be read" in found["silence"].error
        assert (found["typed"].error, found["typed"].hint) == ("too little memory", "use less")
        assert "cannot be read" in found["wrong"].error
        assert report.complete
        assert sorted(path.name for path in (tmp_path / "report").iterdir()) == sorted((JSON, PAGE))
        assert read_report(tmp_path / "report" / JSON) == report

    def test_what_hangs_is_ended_with_all_that_it_started(self, tmp_path: Path) -> None:
        program = (
            "import pathlib, subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; "
            "time.sleep(1000)']); pathlib.Path(sys.argv[1]).write_text(str(p.pid)); time.sleep(1000)"
        )
        said, seconds = tmp_path / "pid", 2.0
        while True:  # however slow the machine is, it was begun before it was ended
            ended = run_child(program, [str(said)], seconds)
            if said.exists():
                break
            seconds *= 2
        assert ended.status is None
        assert "it was ended after" in ended.how
        child = int(said.read_text())
        assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE

    def test_steps_that_build_on_what_failed_are_left_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        planned(
            monkeypatch,
            step("first", "raise SystemExit(3)"),
            step("second", "raise SystemExit(0)", needs="first"),
            step("third", "raise SystemExit(0)", needs="second"),
        )
        found = rows(write_report(tmp_path / "report"))
        assert [row.state for row in found.values()] == ["failed", "left out", "left out"]
        assert found["third"].error == "'second' is not done"

    def test_the_time_ends(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        planned(monkeypatch, step("one", "raise SystemExit(0)"), step("two", "raise SystemExit(0)"))
        report = write_report(tmp_path / "report", minutes=0.01)
        assert [row.state for row in report.rows] == ["left out"] * 2
        assert "minutes were over" in report.rows[0].error

    def test_what_was_done_is_there_if_it_is_stopped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def stop(number: int, count: int, begun: Step, row: Row | None) -> None:
            if number == 1:
                raise KeyboardInterrupt

        planned(monkeypatch, step("one", "raise SystemExit(3)"), step("two", "raise SystemExit(0)"))
        with pytest.raises(KeyboardInterrupt):
            write_report(tmp_path / "report", stop)
        left = read_report(tmp_path / "report" / JSON)
        assert (left.complete, [row.title for row in left.rows]) == (False, ["one"])
        assert "Not finished" in (tmp_path / "report" / PAGE).read_text()
        assert len(list((tmp_path / "report").iterdir())) == 2


class TestMachines:
    @WITHOUT_GPU
    def test_without_a_gpu_every_step_of_one_is_refused_in_words(self, tmp_path: Path) -> None:
        report = write_report(tmp_path / "report", shapes=(TINY, SLICE))
        first, *others = report.rows
        assert isinstance(first.figures, Machine)
        assert {row.state for row in others} == {"refused"}
        assert all(row.error and row.hint for row in others)
        assert len(others) == 2 * 4 * len(BACKENDS)

    def test_a_library_that_crashes_when_it_is_loaded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A stand-in for TensorRT that ends its process; the machine could not be asked, and the rest goes on."""
        (tmp_path / "library").mkdir()
        (tmp_path / "library" / "tensorrt.py").write_text("import os\nos.abort()\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "library"))
        machine, *_ = steps.steps(tmp_path, "cuda")
        planned(
            monkeypatch, machine, step("after", 'print(\'{"bundle": "b", "state": "x", "checks": 0, "bytes": 0}\')')
        )
        found = rows(write_report(tmp_path / "report"))
        assert found["the machine"].state == "failed"
        assert "SIGABRT" in found["the machine"].error
        assert found["after"].state == "done"

    @WITHOUT_GPU
    def test_a_machine_that_says_yes_and_cannot(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Verdicts of a stand-in; the real build refuses, in words that a row keeps."""
        every = list(steps.steps(tmp_path / "work", "cuda", (TINY,)))
        able = step("the machine", f"print({json.dumps(ABLE)!r})", kind="machine")
        planned(monkeypatch, able, *(s for s in every if s.backend == "tensorrt"))
        report = write_report(tmp_path / "report")
        assert [row.state for row in report.rows] == ["done", "failed", "left out", "left out", "left out"]
        assert "this machine has none" in report.rows[1].error
        assert report.rows[1].hint

    def test_the_settings_of_a_user_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LDP_BUILD_MODEL", "infinity-2b")
        assert run_child("import os; print([n for n in os.environ if n.startswith('LDP_')])", [], 600).out == "[]\n"

    @pytest.mark.slow
    def test_end_to_end_on_a_processor(self, tmp_path: Path) -> None:
        """The same steps with engines of the processor: built, verified, drawn with and timed."""
        report = write_report(tmp_path / "report", device="cpu", shapes=(TINY,), minutes=1000)
        tried = [row for row in report.rows if row.backend in ("onnxruntime", "torch")]
        assert [row.state for row in tried] == ["done"] * 8, [row.error for row in tried]
        assert {row.state for row in report.rows if row not in tried} == {"done", "refused"}
        for row in tried:
            if isinstance(row.figures, Drawn):
                assert [picture.policy for picture in row.figures.pictures] == ["none", "ld"]
                assert row.figures.predicted_bytes > 0
                assert row.figures.used_bytes > 0

    @WITHOUT_GPU
    @pytest.mark.slow
    def test_the_command(self, tmp_path: Path) -> None:
        """All of it, as a GPU's owner calls it; here ONNX Runtime draws on the processor, and the rest is refused."""
        result = CliRunner().invoke(main, ["doctor", "--gpu-report", str(tmp_path / "report")])
        assert result.exit_code == 0, result.output
        found = read_report(tmp_path / "report" / JSON)
        done = [row for row in found.rows if row.state == "done"]
        assert [row.kind for row in done] == ["machine", "build", "draw"]
        assert isinstance(done[2].figures, Drawn)
        assert all(picture.png for picture in done[2].figures.pictures)
        assert {row.state for row in found.rows} == {"done", "refused"}


def test_a_second_report_replaces_no_first_one(tmp_path: Path) -> None:
    (tmp_path / JSON).write_text("mine")
    for command in (["doctor", "--gpu-report", str(tmp_path)], ["doctor", "--gpu-report", str(tmp_path / JSON)]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == ConfigError.exit_code
    assert (tmp_path / JSON).read_text() == "mine"


def test_the_plan() -> None:
    """Every backend has all its steps for both models, each on what it needs; the embedded model comes first."""
    every = list(steps.steps(Path("/work"), "cuda"))
    titles = [s.title for s in every]
    assert len(set(titles)) == len(titles)
    for shape in (EMBEDDED, SLICE):
        for backend in BACKENDS:
            kinds = [s.kind for s in every if s.shape == shape and s.backend == backend and s.device != "cpu"]
            assert kinds == ["build", "verify", "draw", "bench"]
    assert all(s.needs is None or titles.index(s.needs) < i for i, s in enumerate(every))
    shapes = [s.shape for s in every if s.shape is not None]
    assert shapes == sorted(shapes, key=lambda shape: shape.is_random)
    assert {s.program for s in every} == {VERB, OWN}


def test_a_verification_that_fails_keeps_its_figures() -> None:
    checks = [
        {"name": f"blocks, scale {i}", "passed": i > 0, "measured": 1.0 / i if i else float("nan"), "limit": 2.0}
        for i in range(3)
    ]
    error = {"error": {"message": "1 of 3 checks failed", "hint": "look"}}
    out = "\n".join(json.dumps(entry) for entry in ({"checks": checks}, error))
    made = row_of(step("v", VERB, kind="verify"), Ended(4, out, "", 1.0))
    assert (made.state, made.error) == ("failed", "1 of 3 checks failed")
    assert isinstance(made.figures, Verified)
    assert (made.figures.checks, made.figures.failed, made.figures.largest_share) == (3, 1, None)
    assert made.figures.failures[0].measured is None
    json.loads(GpuReport(created="", version="", device="cuda", minutes=1, complete=True, rows=(made,)).text())


class TestPrivacy:
    HOME, USER, HOST = "/home/Jane van der Planted", "janeplanted", "planted-host"

    @pytest.fixture(autouse=True)
    def _planted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("LOGNAME", "USER", "USERNAME"):
            monkeypatch.setenv(name, self.USER)
        monkeypatch.setenv("HOME", self.HOME)
        monkeypatch.setattr(socket, "gethostname", lambda: f"{self.HOST}.example.org")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (f"cannot read {HOME}/secret project/x.onnx", "cannot read <path> project/x.onnx"),
            ("No such file: '/srv/models/secret/x'", "No such file: '<path>'"),
            ("~/secret/key.pem and ../secret/x", "<path> and <path>"),
            (r"C:\Users\jane\secret.txt is missing", "<path> is missing"),
            (r"\\server\share\secret.txt is missing", "<path> is missing"),
            (f"mail JanePlanted or root@{HOST}.example.org", "mail <name> or root@<name>"),
            (f'File "{HOME}/a.py", line 3', 'File "<path>", line 3'),
            ("see https://pytorch.org/get-started, 3/4 of it", "see https://pytorch.org/get-started, 3/4 of it"),
            ("pip install 'ldp-export[cuda]'", "pip install 'ldp-export[cuda]'"),
        ],
    )
    def test_texts(self, text: str, expected: str) -> None:
        assert Private().out_of(text) == expected

    def test_a_report_holds_nothing_of_them(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Planted in errors, hints, last words, versions and facts of the machine, as libraries print them."""
        words = f"{self.USER} on {self.HOST} has {self.HOME}/private/notes.txt and {tmp_path}/work in {Path.cwd()}"
        machine = ABLE | {"packages": {"torch": words}, "machine": [{"name": "GPU", "value": words, "found": True}]}
        planned(
            monkeypatch,
            step("the machine", f"print({json.dumps(machine)!r})", kind="machine"),
            step("typed", f"print({json.dumps({'error': {'message': words, 'hint': words}})!r}); raise SystemExit(2)"),
            step("last words", f"raise SystemExit({words!r})"),
        )
        folder = tmp_path / "report"
        report = write_report(folder)
        assert [row.state for row in report.rows] == ["done", "failed", "failed"]
        for name in (JSON, PAGE):
            text = (folder / name).read_text().lower()
            for word in (self.USER, self.HOST, "planted", "private", "notes.txt", str(tmp_path), str(Path.cwd())):
                assert word.lower() not in text, (name, word)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    row = Row(title=hostile, kind="build", backend="torch", state="failed", error=hostile, hint=hostile)
    parsed = _Tags()
    text = page(GpuReport(created="now", version="1", device="cuda", minutes=1, complete=True, rows=(row,)))
    parsed.feed(text)
    assert not {tag for tag, _ in parsed.tags} & {"script", "img", "link", "iframe", "object"}
    assert not [attrs for _, attrs in parsed.tags if {"src", "href", "onerror"} & attrs.keys()]
    assert "&lt;script&gt;" in text
    policies = [attrs["content"] for tag, attrs in parsed.tags if tag == "meta" and "http-equiv" in attrs]
    assert policies
    assert str(policies[0]).startswith("default-src 'none'")


@pytest.mark.parametrize("change", [{"format": "ldp-export/gpu-report/9"}, {"rows": [{"title": "x"}]}, {"more": 1}])
def test_a_report_of_another_schema_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    whole = GpuReport(created="now", version="1", device="cuda", minutes=1, complete=True, rows=())
    (tmp_path / "r.json").write_text(json.dumps(json.loads(whole.text()) | change))
    with pytest.raises(ConfigError, match="is no report of"):
        read_report(tmp_path / "r.json")
