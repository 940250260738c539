"""What a step of the transformer trains on: which scenes, in which words, with which bits flipped.

A step's content depends on the seed and the step alone, so batches can be made by worker processes beside the device,
and a resumed run draws what an unbroken one would.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import SCHEDULE, scene_at
from ldp_calibration.shapes import Scene, caption
from tags import tags_of
from text import TRAIN_TOKENS, tokenize
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Dataset

NEAR = 5.0  # how much a token at a shape or its edge counts, where one of the background counts 1


@dataclass
class Batch:
    """One step's content; `coarse` batches reach only the first scales.

    Attributes:
        ids, mask: captions [B, T].
        dropped: captions to be replaced by the unconditional rows [B].
        latents: what is to be drawn, float16 [B, bits, h, w].
        flip: share of wrong bits of each image and scale [B, scales].
        near: tokens at shapes and their edges [B, total].
        tags: row, position, colour and relation of each noun [N, 4].
    """

    ids: torch.Tensor
    mask: torch.Tensor
    dropped: torch.Tensor
    latents: torch.Tensor
    flip: torch.Tensor
    near: torch.Tensor
    tags: torch.Tensor
    coarse: bool

    def pin_memory(self) -> "Batch":
        return Batch(*(t.pin_memory() if isinstance(t, torch.Tensor) else t for t in self._values()))

    def to(self, device: str) -> "Batch":
        return Batch(*(t.to(device, non_blocking=True) if isinstance(t, torch.Tensor) else t for t in self._values()))

    def _values(self) -> list:
        return [getattr(self, field.name) for field in fields(self)]


class Batches(Dataset[Batch]):
    """Batch `step` of a run. The scenes of `latents.npy` are kept in memory; it may still be growing.

    `options` are those of `train_transformer`.
    """

    def __init__(self, options: argparse.Namespace, tokenizer: Tokenizer) -> None:
        self.options, self.tokenizer = options, tokenizer
        self.latents = np.load(options.data / "latents.npy", mmap_mode="r")
        with ProcessPoolExecutor(max(1, options.workers)) as pool:
            at = partial(_scene, seed=options.seed)
            self.scenes, near = zip(*pool.map(at, range(len(self.latents)), chunksize=500), strict=True)
        self.near = np.stack(near)  # [scenes, total]
        self.differ = np.array([len({shape.kind for shape in scene.shapes}) > 1 for scene in self.scenes])

    def __len__(self) -> int:
        return self.options.steps

    def __getitem__(self, step: int) -> Batch:
        options, rng = self.options, np.random.default_rng((self.options.seed, 4, step))
        generator = torch.Generator().manual_seed((options.seed << 32) + step)
        coarse = bool(rng.random() < options.coarse_share)
        numbers = self._choose(rng, options.coarse_batch if coarse else options.batch)
        texts = [caption(self.scenes[number], rng, options.coloured) for number in numbers]
        ids, mask = tokenize(self.tokenizer, texts, TRAIN_TOKENS)
        rows = len(numbers)
        # A quarter stays clean; elsewhere each scale has its own share of flipped bits.
        flip = torch.rand(rows, len(SCHEDULE), generator=generator) * options.flip
        flip *= torch.rand(rows, 1, generator=generator) > 0.25
        return Batch(
            ids,
            mask,
            dropped=torch.rand(rows, generator=generator) < 0.1,
            latents=torch.from_numpy(self.latents[numbers]),
            flip=flip,
            near=torch.from_numpy(self.near[numbers]),
            tags=tags_of(self.tokenizer, texts),
            coarse=coarse,
        )

    def _choose(self, rng: np.random.Generator, size: int) -> list[int]:
        """Numbers of scenes in rising order; at least `--pairs` of them show different shapes, the hardest to learn."""
        count = ready(self.options.data, len(self.latents))
        numbers = rng.integers(count, size=size)
        wanted = rng.random(size) < self.options.pairs
        while len(again := np.flatnonzero(wanted & ~self.differ[numbers])):
            numbers[again] = rng.integers(count, size=len(again))
        return sorted(numbers.tolist())


def batches_from(source: Batches, first: int) -> DataLoader[Batch]:
    """The batches from step `first` on, made ahead by `--workers` processes."""
    workers = source.options.workers
    return DataLoader(
        source,
        batch_size=None,
        sampler=range(first, len(source)),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=source.options.device != "cpu",
    )


def ready(data: Path, count: int) -> int:
    """How many scenes have been encoded so far."""
    file = data / "encoded.txt"
    return min(count, int(file.read_text() or 0)) if file.exists() else count


def _scene(number: int, seed: int) -> tuple[Scene, np.ndarray]:
    scene = scene_at(number, seed)
    return scene, near_shapes(scene)


def near_shapes(scene: Scene) -> np.ndarray:
    """Which tokens of all scales lie at shapes or their edges, bool [total]; the others are mostly noise."""
    found = []
    for rows, columns in SCHEDULE.grids:
        y, x = (np.arange(rows) + 0.5)[:, None] / rows, (np.arange(columns) + 0.5)[None, :] / columns
        gaps = [np.hypot(x - shape.x, y - shape.y) - 1.1 * shape.radius for shape in scene.shapes]
        found.append((np.min(gaps, axis=0) < 0.7 / rows).ravel())
    return np.concatenate(found)
