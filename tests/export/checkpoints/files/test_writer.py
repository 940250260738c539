"""Streamed safetensors: what is written is what the library reads, in bounded memory, whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ldp_runtime.errors import CheckpointError
from safetensors.torch import load_file, save_file

from ldp_export.checkpoints.files import writer
from ldp_export.checkpoints.files.tensors import read_state, save_state
from ldp_export.checkpoints.files.writer import TensorSource, write_tensors


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "odd": torch.randn(3, 5, generator=generator),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "wide": torch.randn(257, 64, generator=generator, dtype=torch.float64),
        "half": torch.randn(7, generator=generator).half(),
        "flags": torch.tensor([True, False, True]),
        "counts": torch.arange(11),
        "view": torch.randn(6, 10, generator=generator).t(),
    }


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float16])
def test_the_library_reads_what_was_written(tmp_path: Path, dtype: torch.dtype | None) -> None:
    save_state(state(), tmp_path / "a.safetensors", dtype)
    got = load_file(tmp_path / "a.safetensors")
    for name, tensor in state().items():
        expected = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        assert got[name].dtype == expected.dtype
        assert torch.equal(got[name], expected), name
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_places_are_where_the_bytes_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PIECE_BYTES", 64)  # every tensor in several pieces
    path = tmp_path / "a.safetensors"
    places = write_tensors([TensorSource.of(name, tensor) for name, tensor in state().items()], path)
    content = path.read_bytes()
    for name, tensor in state().items():
        place = places[name]
        assert content[place.offset : place.offset + place.length] == tensor.contiguous().numpy().tobytes()
        assert place.length == 0 or place.offset % tensor.element_size() == 0


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (float("nan"), torch.float32, "bad holds NaN or infinity"),
        (float("inf"), torch.bfloat16, "bad holds NaN or infinity"),
        (1e5, torch.float16, r"bad holds values up to 1e\+05, which float16 cannot hold"),
    ],
)
def test_values_that_cannot_be_stored(tmp_path: Path, value: float, dtype: torch.dtype, message: str) -> None:
    good, bad = torch.ones(4), torch.tensor([1.0, value])
    with pytest.raises(CheckpointError, match=message):
        save_state({"a": good, "bad": bad}, tmp_path / "a.safetensors", dtype)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_file_stays_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_state({"a": torch.ones(2)}, path)

    def fail() -> torch.Tensor:
        raise OSError("the source went away")

    with pytest.raises(OSError, match="went away"):
        write_tensors([TensorSource("a", (2,), torch.float32, fail)], path)
    assert torch.equal(load_file(path)["a"], torch.ones(2))
    assert list(tmp_path.iterdir()) == [path]


_MEASURE = """
import sys
from pathlib import Path
import torch
from ldp_export.checkpoints.files.tensors import read_state, save_state

def anonymous():
    line = next(l for l in open("/proc/self/status") if l.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

torch.ones(8).to(torch.bfloat16)
before, most = anonymous(), 0
def note(name):
    global most
    most = max(most, anonymous() - before)
save_state(read_state(Path(sys.argv[1])), Path(sys.argv[2]), torch.bfloat16, note)
note("")
print(most)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_memory_is_bounded_by_a_piece(tmp_path: Path, name: str) -> None:
    """384 MiB are converted to bfloat16 in less than 128 MiB of anonymous memory."""
    tensors = {f"x{i}": torch.full((2048, 2048), float(i)) for i in range(24)}
    save = save_file if name.endswith("safetensors") else torch.save
    save(tensors, tmp_path / name)
    code = f"import sys; sys.path[:0] = {sys.path!r}\n{_MEASURE}"
    command = [sys.executable, "-c", code, str(tmp_path / name), str(tmp_path / "b.safetensors")]
    most = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert most < 128 * 2**20
    assert torch.equal(
        read_state(tmp_path / "b.safetensors")["x7"], torch.full((2048, 2048), 7.0, dtype=torch.bfloat16)
    )
