"""What the training scripts share: the data on disk, checkpoints, weight averages, curves and sample grids."""

import csv
import os
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ldp_calibration.shapes import Scene, sample_scene
from ldp_runtime.schedule import ScaleSchedule
from ldp_runtime.system.disk import written_whole
from ldp_runtime.token_layout import LatentLayout
from torch import nn

from ldp_export.checkpoints import infinity as checkpoints
from ldp_export.models.infinity_vae import InfinityVae
from ldp_export.models.sizes import InfinityVaeConfig

SIDE = 128
SCHEDULE = ScaleSchedule.of_size("0.06M")  # 1, 2, 4, 6, 8, 12, 16 squared: 521 tokens
# 48: group norms of 24 groups then hold two channels each; with one (at 24 or 32) the absolute colours are lost.
VAE_CONFIG = InfinityVaeConfig(bits=16, base_channels=48, channel_multipliers=(1, 1, 1, 2), res_blocks=1, stride=8)
LAYOUT = LatentLayout(channels=VAE_CONFIG.bits)
HELD_OUT = 1 << 30  # scene numbers from here on are never trained on


def default_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ldp-export" / "shapes"


def scene_at(number: int, seed: int = 0) -> Scene:
    """Scene `number` of an endless seeded sequence: the same however many of them are made."""
    return sample_scene(np.random.default_rng((seed, number)))


def to_pixels(images: np.ndarray, device: str | torch.device = "cpu") -> torch.Tensor:
    """uint8 [B, H, W, 3] to float [B, 3, H, W] in [-1, 1]."""
    # Contiguous: a permuted view counts as channels-last, and CPUs then take twice as long over the backward pass.
    return torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def to_images(pixels: torch.Tensor) -> np.ndarray:
    """Float [B, 3, H, W] in [-1, 1] to uint8 [B, H, W, 3]; truncated, as the runtime does."""
    scaled = (pixels.detach().float().clamp(-1, 1) + 1) * 127.5
    return scaled.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """[B, H, W, 3] to one picture of rows of `columns`; the last row is filled up with white."""
    missing = -len(images) % columns
    filled = np.concatenate([images, np.full((missing, *images.shape[1:]), 255, np.uint8)])
    rows = filled.reshape(-1, columns, *images.shape[1:])  # [rows, columns, H, W, 3]
    return rows.transpose(0, 2, 1, 3, 4).reshape(rows.shape[0] * images.shape[1], -1, 3)


def save_picture(path: Path, images: np.ndarray, columns: int) -> None:
    from PIL import Image

    Image.fromarray(image_grid(images, columns)).save(path)


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100, floor: float = 0.02) -> float:
    """Linear warm-up, then a cosine down to `floor` of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return cosine((step - warmup) / max(1, steps - warmup), peak, floor)


def cosine(done: float, peak: float, floor: float = 0.02) -> float:
    """From the peak to `floor` of it while `done` goes from 0 to 1."""
    return float(peak * (floor + (1 - floor) * 0.5 * (1 + np.cos(np.pi * min(1.0, done)))))


class Average:
    """Exponential moving average of a module's weights; young averages forget faster."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = deepcopy(module).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        theirs, means = module.state_dict(), self.module.state_dict()
        names = [name for name, mean in means.items() if mean.is_floating_point()]
        torch._foreach_lerp_([means[name] for name in names], [theirs[name] for name in names], 1 - decay)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Written beside and moved into place, so a killed run leaves the previous checkpoint whole."""
    with written_whole(path) as scratch:
        torch.save(dict(state), scratch)


def load_checkpoint(path: Path, device: str = "cpu") -> dict[str, Any] | None:
    return torch.load(path, map_location=device, weights_only=True) if path.exists() else None


def load_infinity_vae(path: Path, device: str = "cpu") -> InfinityVae:
    """The averaged weights of a VAE checkpoint written by train_vae, or an exported VAE (safetensors)."""
    if path.suffix == ".safetensors":
        return checkpoints.load_infinity_vae(path).to(device)
    state = load_checkpoint(path, device)
    if state is None:
        raise FileNotFoundError(f"no VAE checkpoint at {path}: run train_vae first")
    vae = InfinityVae(VAE_CONFIG)
    vae.load_state_dict(state["average"])
    return vae.to(device).eval().requires_grad_(False)


class Curve:
    """A CSV of numbers by step, and its plot."""

    def __init__(self, path: Path, fresh: bool) -> None:
        self.path = path
        if fresh:
            path.unlink(missing_ok=True)

    def add(self, row: Mapping[str, float]) -> None:
        exists = self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if not exists:
                writer.writeheader()
            writer.writerow({name: f"{value:.6g}" for name, value in row.items()})

    def plot(self, columns: Iterable[str]) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        with self.path.open() as file:
            rows = list(csv.DictReader(file))
        columns = list(columns)
        figure, axes = plt.subplots(1, len(columns), figsize=(5 * len(columns), 3.5), squeeze=False)
        for axis, column in zip(axes[0], columns, strict=True):
            axis.plot([float(row["step"]) for row in rows], [float(row[column]) for row in rows])
            axis.set(xlabel="step", title=column)
        figure.tight_layout()
        figure.savefig(self.path.with_suffix(".png"), dpi=90)
        plt.close(figure)
