"""No command imports from the folder that it happens to run in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldp_export import import_path
from ldp_export.bench.process import worker_command

#: Modules that some import of ours asks for, whether they are installed or not.
_NAMES = ("random", "json", "click", "torch", "numpy", "onnxruntime", "antigravity_of_nobody", "sitecustomize", "yaml")


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    """A folder in which modules of common names leave a mark when they are imported."""
    for name in _NAMES:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'a').write({name!r})\n")
    return tmp_path


def run(command: list[str], folder: Path, stdin: str = "", **environment: str) -> str:
    made = subprocess.run(
        command, cwd=folder, input=stdin, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert not (folder / "mark").exists(), (folder / "mark").read_text()
    assert made.returncode == 0, made.stderr
    return made.stdout


class TestWorkingFolder:
    def test_workers(self, trapped: Path) -> None:
        """One that fails to load what it is asked for has imported all that a worker needs."""
        said = run(worker_command(), trapped, '{"probe": {"threads": 1, "device": "cpu"}}\n')
        assert "flops_per_s" in said

    @pytest.mark.parametrize("pythonpath", ["", ":", "."])
    def test_workers_of_a_careless_environment(
        self, trapped: Path, monkeypatch: pytest.MonkeyPatch, pythonpath: str
    ) -> None:
        monkeypatch.chdir(trapped)
        monkeypatch.setenv("PYTHONPATH", pythonpath)
        monkeypatch.syspath_prepend(str(trapped))
        monkeypatch.syspath_prepend("")
        given = import_path.safe_environment()
        made = subprocess.run(worker_command(), cwd=trapped, input="", env=given, capture_output=True, check=False)
        assert made.returncode == 0
        assert not (trapped / "mark").exists()

    def test_commands(self, trapped: Path) -> None:
        said = run([sys.executable, "-P", "-m", "ldp_export", "inspect", "--help"], trapped)
        assert "Usage" in said

    def test_the_module_as_a_command(self, trapped: Path) -> None:
        """`python -m` looks into the working folder first, for what it needs itself; the command does not."""
        (trapped / "sitecustomize.py").unlink()  # Python asks for that one before anything of ours is run
        assert "Usage" in run([sys.executable, "-m", "ldp_export", "--help"], trapped)


def test_the_folder_of_the_package_itself_stays_and_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path(import_path.__file__).resolve().parent.parent
    monkeypatch.setattr(sys, "path", ["", "/a", str(home), "/b"])
    monkeypatch.chdir(home)
    assert import_path.import_path() == ["/a", "/b", str(home)]
    monkeypatch.chdir(home.parent)
    assert import_path.import_path() == ["/a", str(home), "/b"]


def test_an_environment_keeps_what_leads_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(("/a", "", ".", str(tmp_path), "/b")))
    assert import_path.safe_environment()["PYTHONPATH"] == os.pathsep.join(("/a", "/b"))
