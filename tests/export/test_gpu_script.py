"""`benchmarks/gpu.py`: to the end on a CPU with a tiny model, with the compiler; what makes no sense is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gpu_options
import gpu_results
import pytest
import torch

ROOT = Path(__file__).parents[2]
CPU = ["--device", "cpu", "--tiny"]
needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


@pytest.mark.slow
@needs_compiler
def test_tiny_model_to_the_end(tmp_path: Path) -> None:
    """In a process of its own: the script replaces an operator of the exported graph by what the compiler can fuse."""
    output = tmp_path / "gpu.json"
    arguments = [*CPU, "--batch", "1", "--repeats", "1", "--warmup", "0", "--output", str(output)]
    paths = [str(ROOT), str(ROOT / "runtime"), str(ROOT / "calibration")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([sys.executable, ROOT / "benchmarks" / "gpu.py", *arguments], check=True, env=environment)
    result = json.loads(output.read_text())
    by_name = {entry["candidate"]: entry for entry in result["results"]}
    full, pruned = by_name["compiled, unpruned"], by_name["compiled, LD, no scale skipped"]
    assert full["row_tokens"] == 2 * 521
    assert by_name["compiled, LD, last two skipped"]["row_tokens"] < pruned["row_tokens"] < full["row_tokens"]
    assert {"eager", "control: stop guidance"} <= {name.removeprefix("compiled, ") for name in by_name}
    assert "study" in result["keep_from"]
    assert "| tiny | 1 | eager |" in gpu_results.section(result)


@needs_compiler
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*CPU, "--repeats", "0"], "take at least 1"),
        ([*CPU, "--minutes", "0"], "more than 0"),
        (["--device", "cpu"], "goes with --tiny"),
        ([*CPU, "--stop-scale", "4"], "goes with --keep"),
        ([*CPU, "--keep", "2"], "in [0, 1]"),
        ([*CPU, "--keep", "0.5", "--stop-scale", "9"], "no scale 9"),
        ([*CPU, "--keep-from", "absent.json"], "is not a policy profile"),
        ([*CPU, "--output", "no-such-folder/gpu.json"], "there is no folder"),
    ],
)
def test_refused_before_any_work(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        gpu_options.parse(arguments, None)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_options.parse([], None)
    assert "no CUDA GPU" in capsys.readouterr().err


def test_cpu_without_a_compiler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu_options.shutil, "which", lambda _: None)
    with pytest.raises(SystemExit):
        gpu_options.parse(CPU, None)
    assert "needs a C++ compiler" in capsys.readouterr().err
