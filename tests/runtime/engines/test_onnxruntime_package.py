"""The engine's package: its telemetry, and what is left of it when one of its two packages was removed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.errors import IncompatibleBundleError

from ldp_export.cli import main

_GENERATE = "from ldp_export.cli import main; main()"


def run(bundle: Bundle, home: Path, **environment: str) -> None:
    """Draws an image in a process whose home folder is `home`."""
    plain = {key: value for key, value in os.environ.items() if key not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    subprocess.run(
        [sys.executable, "-c", _GENERATE, "generate", str(bundle.root), "a red circle", "--output", "x.png"],
        env=plain | {"HOME": str(home)} | environment,
        cwd=home.parent,
        capture_output=True,
        check=True,
    )


def test_nothing_is_written_into_the_home_folder(small_bundle: Bundle, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    run(small_bundle, home)
    assert [path.name for path in home.rglob("*")] == []


@pytest.mark.parametrize("given", [None, "0", "1"])
def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    from ldp_runtime.engines.onnxruntime import import_onnxruntime
    from ldp_runtime.system.telemetry import TELEMETRY_OFF

    monkeypatch.setenv(TELEMETRY_OFF, given or "")
    if given is None:
        monkeypatch.delenv(TELEMETRY_OFF)
    import_onnxruntime()
    assert os.environ[TELEMETRY_OFF] == (given or "1")


class TestBroken:
    @pytest.fixture(params=["empty", "raises", "lacks a library"])
    def broken(self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A package as removing one of the two leaves it: a folder without its files, or with some."""
        package = tmp_path / "site/onnxruntime"
        package.mkdir(parents=True)
        texts = {
            "empty": "",
            "raises": "from onnxruntime.capi._pybind_state import InferenceSession",
            "lacks a library": "raise OSError('libonnxruntime.so.1: cannot open shared object file')",
        }
        (package / "__init__.py").write_text(texts[request.param])
        for name in [name for name in sys.modules if name.partition(".")[0] == "onnxruntime"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(str(package.parent))

    @pytest.mark.usefixtures("broken")
    def test_generate_build_and_doctor_say_so(self, small_bundle: Bundle, tmp_path: Path) -> None:
        for arguments in (
            ["generate", str(small_bundle.root), "a red circle", "--output", str(tmp_path / "x.png")],
            ["build", "--output", str(tmp_path / "bundle")],
        ):
            result = CliRunner().invoke(main, arguments)
            assert result.exit_code == IncompatibleBundleError.exit_code, result.output
            assert "onnxruntime is broken" in result.output
            assert "reinstall one of the two" in result.output
        assert not (tmp_path / "bundle").exists()
        assert "onnxruntime is broken" in CliRunner().invoke(main, ["doctor", "--json"]).output
