"""Weights of the golden models, bit for bit, from the seed that they were drawn with.

The originals' small models have random weights: one normal draw a parameter, in the order of the model, scaled and
shifted. So a file of five megabytes is a seed, an order, and corrections in units of the last place, since the last
bits of PyTorch's draws differ between processors. A hash says that the weights are those of the original run.

    python tests/helpers/golden_weights.py FOLDER      writes every golden model's files below FOLDER
    python tests/helpers/golden_weights.py --pack FILE.safetensors --seed 32 --skip 0 --output FILE.npz
"""

from __future__ import annotations

import argparse
import atexit
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parents[1] / "golden"
#: Numbers of one step of PyTorch's normal draws on a CPU; shorter tensors are drawn one by one.
_STEP = 16
#: Relative errors of logarithm and of sine and cosine in float64, far above any library's: what they could round
#: otherwise in float32 is kept as it is, so that every machine unpacks the same bits.
_NUDGES = ((1e-14, 1e-14), (1e-14, -1e-14), (-1e-14, 1e-14), (-1e-14, -1e-14))

#: Correlation of draws with the tensor that was made of them; with others it is that of chance.
_RELATED = 0.8


class Stream:
    """Normal draws of PyTorch's CPU generator.

    Args:
        skip: 32-bit words of the generator that were used before.
    """

    def __init__(self, seed: int, skip: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        torch.rand(skip, generator=self.generator)

    def normal(self, count: int, nudges: tuple[float, float] = (0, 0)) -> np.ndarray:
        """The next `count` numbers as `torch.randn` draws them, up to the last place [count] float32."""
        if count < _STEP:
            return torch.randn(count, generator=self.generator).numpy()
        uniform = torch.rand(count, generator=self.generator).numpy()
        whole = count // _STEP * _STEP
        drawn = np.empty(count, np.float32)
        drawn[:whole] = _box_muller(uniform[:whole], nudges)
        if whole < count:  # the last step is drawn anew, over numbers of the one before
            drawn[-_STEP:] = _box_muller(torch.rand(_STEP, generator=self.generator).numpy(), nudges)
        return drawn


def _box_muller(uniform: np.ndarray, nudges: tuple[float, float]) -> np.ndarray:
    """Pairs at a distance of half a step: radius from the first, angle from the second; rounded as float32 rounds."""
    first, second = np.moveaxis(uniform.reshape(-1, 2, _STEP // 2), 1, 0)
    logarithm = np.log((1 - first).astype(np.float64)) * (1 + nudges[0])
    radius = np.sqrt(np.float32(-2) * logarithm.astype(np.float32))
    angle = (np.float32(2 * math.pi) * second).astype(np.float64)
    parts = [radius * (part * (1 + nudges[1])).astype(np.float32) for part in (np.cos(angle), np.sin(angle))]
    return np.stack(parts, 1).reshape(-1)


def scaled(drawn: np.ndarray, scale: float, divisor: float, offset: float) -> np.ndarray:
    """Draws times a scale (over the square root of the inputs, for matrices) plus an offset, in float32."""
    values = drawn * np.float32(scale)
    return (values if divisor == 1 else values / np.float32(divisor)) + np.float32(offset)


@cache
def golden_weights(case: str, name: str) -> dict[str, torch.Tensor]:
    """Tensors of one file of a golden model, such as ("infinity_2blike", "transformer")."""
    return unpacked(GOLDEN / case / f"{name}.npz")


def unpacked(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a packed file.

    Raises:
        ValueError: the draws are not those of the original run.
    """
    with np.load(path) as file:
        recipe: dict[str, Any] = json.loads(file["recipe"].tobytes())
        corrections, unsure, exact = (file[key] for key in ("corrections", "unsure", "exact"))
        tensors = {key.removeprefix("as is/"): torch.from_numpy(file[key]) for key in file if key.startswith("as is/")}
    stream, at = Stream(recipe["seed"], recipe["skip"]), 0
    bits = np.empty(len(corrections), np.int32)
    for key, shape, scale, divisor, offset in recipe["draws"]:
        count = math.prod(shape)
        drawn = stream.normal(count)
        if key is None:  # a tensor that is kept as it is
            continue
        end = at + count
        bits[at:end] = scaled(drawn, scale, divisor, offset).view(np.int32) - corrections[at:end]
        tensors[key] = torch.from_numpy(bits[at:end].view(np.float32)).view(*shape)
        at = end
    bits[unsure] = exact  # the tensors are views of these
    if hash_of(tensors) != recipe["sha256"]:
        raise ValueError(f"{path}: this PyTorch does not draw the golden weights; its CPU generator has changed")
    return tensors


def hash_of(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def packed_files() -> Iterator[tuple[str, str]]:
    """Case and name of each packed file."""
    for path in sorted(GOLDEN.glob("*/*.npz")):
        with np.load(path) as file:
            if "recipe" in file:
                yield path.parent.name, path.stem


@cache
def golden_folder(case: str) -> Path:
    """Folder of this process with the golden model's files, in the originals' layout."""
    folder = Path(tempfile.mkdtemp(prefix=f"golden-{case}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write(case, folder)
    return folder


def write(case: str, folder: Path) -> None:
    """Writes the files of one golden model."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (name for other, name in packed_files() if other == case):
        save_file(golden_weights(case, name), folder / f"{name}.safetensors")


def pack(source: Path, target: Path, seed: int, skip: int) -> None:
    """Packs a file whose tensors were drawn one after the other; what was not drawn is kept as it is."""
    tensors = load_file(source)
    stream, left = Stream(seed, skip), dict(tensors)
    draws: list[list[Any]] = []
    corrections: list[np.ndarray] = []
    unsure: list[np.ndarray] = []
    exact: list[np.ndarray] = []
    kept: dict[str, torch.Tensor] = {}
    while True:
        state = stream.generator.get_state()
        key, drawn = _next(stream, state, left)
        if key is None:
            small = [n for n in _sizes(left) if n < _STEP and _continues(stream, state, n, left)]
            if not small:
                break
            stream.generator.set_state(state)
            stream.normal(small[0])
            draws.append([None, [small[0]], 1, 1, 0])
            continue
        tensor = left.pop(key)
        try:
            rule, difference = _rule(drawn, tensor)
        except ValueError:  # drawn now, but by parts of different scales: kept, and the stream goes on behind it
            kept[key] = tensor
            draws.append([None, list(tensor.shape), 1, 1, 0])
            continue
        draws.append([key, list(tensor.shape), *rule])
        places = np.nonzero(_unsure(stream, state, drawn))[0]
        unsure.append(places + sum(map(len, corrections)))
        exact.append(tensor.flatten().numpy().view(np.int32)[places])
        corrections.append(difference)
    recipe = {"seed": seed, "skip": skip, "sha256": hash_of(tensors), "draws": draws}
    arrays = {f"as is/{key}": tensor.numpy() for key, tensor in (left | kept).items()}
    text = np.frombuffer(json.dumps(recipe).encode(), np.uint8)
    found = {"corrections": corrections, "unsure": unsure, "exact": exact}
    np.savez_compressed(target, recipe=text, **{key: np.concatenate(parts) for key, parts in found.items()}, **arrays)


def _sizes(left: dict[str, torch.Tensor]) -> list[int]:
    return sorted({tensor.numel() for tensor in left.values() if tensor.is_floating_point()}, reverse=True)


def _next(stream: Stream, state: torch.Tensor, left: dict[str, torch.Tensor]) -> tuple[str | None, np.ndarray]:
    """The tensor that was drawn next, and its draws; leaves the stream behind it."""
    for count in (n for n in _sizes(left) if n >= _STEP):
        stream.generator.set_state(state)
        drawn = stream.normal(count)
        for key, tensor in left.items():
            if tensor.numel() == count and tensor.is_floating_point():
                values = tensor.flatten().double().numpy()
                if values.std() > 0 and np.corrcoef(drawn, values)[0, 1] > _RELATED:
                    return key, drawn
    return None, np.empty(0)


def _unsure(stream: Stream, state: torch.Tensor, drawn: np.ndarray) -> np.ndarray:
    """True at draws that another library's logarithm or cosine may round otherwise [count]."""
    behind, unsure = stream.generator.get_state(), np.zeros(len(drawn), bool)
    for nudges in _NUDGES:
        stream.generator.set_state(state)
        unsure |= stream.normal(len(drawn), nudges) != drawn
    stream.generator.set_state(behind)
    return unsure


def _continues(stream: Stream, state: torch.Tensor, count: int, left: dict[str, torch.Tensor]) -> bool:
    """True if a known tensor follows after so few draws."""
    stream.generator.set_state(state)
    stream.normal(count)
    return _next(stream, stream.generator.get_state(), left)[0] is not None


def _rule(drawn: np.ndarray, tensor: torch.Tensor) -> tuple[tuple[float, float, float], np.ndarray]:
    """Scale, divisor and offset that explain a tensor, and what they miss in units of the last place."""
    values = tensor.flatten().numpy()
    scale, offset = np.polyfit(drawn.astype(np.float64), values.astype(np.float64), 1)
    inputs = math.sqrt(math.prod(tensor.shape[1:]))
    rules = [(round(scale, 3), 1.0, float(round(offset))), (round(scale * inputs, 3), inputs, float(round(offset)))]
    differences = [scaled(drawn, *rule).view(np.int32).astype(np.int64) - values.view(np.int32) for rule in rules]
    best = min(range(len(rules)), key=lambda i: float(np.abs(differences[i]).mean()))
    if np.abs(differences[best]).max() > 127:
        raise ValueError(f"no simple rule draws a tensor of shape {tuple(tensor.shape)}")
    return rules[best], differences[best].astype(np.int8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.pack is not None:
        pack(options.pack, options.output, options.seed, options.skip)
        return
    for case in dict.fromkeys(case for case, _ in packed_files()):
        write(case, options.folder / case)


if __name__ == "__main__":
    main()
