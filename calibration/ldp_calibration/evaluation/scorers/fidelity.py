"""Scorers of likeness to the unpruned twin: PSNR, SSIM, LPIPS."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
from ldp_runtime.errors import ConfigError

from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt
from ldp_calibration.evaluation.scorers.opening import Opened, Wish
from ldp_calibration.evaluation.scorers.scorer import installed_version, one_by_one

#: Most numbers of a picture that one thread compares best.
_SMALL = 3 * 512 * 512


def _unit(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) / np.float32(255)


def open_psnr(_: Wish) -> Opened:
    from ldp_calibration.fidelity import PSNR_CAP, psnr_db

    return Opened(one_by_one(lambda image, twin, _: psnr_db(_unit(image), _unit(twin))), {"cap_db": PSNR_CAP})


def open_ssim(_: Wish) -> Opened:
    from ldp_calibration.fidelity import ssim

    installed = installed_version("torchmetrics")
    if tuple(map(int, re.findall(r"\d+", installed)[:2])) < (1, 5):
        raise ConfigError(
            f"torchmetrics {installed} cuts the border off in SSIM", hint="pip install 'torchmetrics>=1.5'"
        )

    def score(image: np.ndarray, twin: np.ndarray, _: EvaluationPrompt) -> float:
        with _one_thread(image.size <= _SMALL):
            return ssim(_unit(image), _unit(twin))

    return Opened(one_by_one(score), {"torchmetrics": installed})


@contextmanager
def _one_thread(wanted: bool) -> Generator[None]:
    """Keeps PyTorch to one thread: of a small picture each gets so little that waiting for the others costs more."""
    import torch

    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def open_lpips(wish: Wish) -> Opened:
    from ldp_calibration.fidelity import lpips
    from ldp_calibration.perceptual import VGG_WEIGHTS, load_distance

    if wish.weights is None:
        raise ConfigError("lpips needs the weights of a network", hint=f"--weights FOLDER, which holds {VGG_WEIGHTS}")
    vgg = wish.weights / VGG_WEIGHTS
    load_distance(vgg)  # refuses here what is missing
    settings = {"network": VGG_WEIGHTS, "version": "0.1"}
    return Opened(one_by_one(lambda image, twin, _: lpips(_unit(image), _unit(twin), vgg)), settings)
