"""Fréchet distance of two sets of pictures, by the features of a network that the user gives.

Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium". It grows
with fewer pictures: only sets of equal numbers compare.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ldp_runtime.errors import ConfigError, IntegrityError
from ldp_runtime.system.installation import install

from ldp_calibration.evaluation.folders import pictures_of, read_picture

#: Features [F] of a picture [H, W, 3] uint8.
Features = Callable[[np.ndarray], np.ndarray]


def frechet_distance(features: np.ndarray, reference: np.ndarray) -> float:
    """Distance of two sets of features [n, F], taken for normal distributions; covariances divide by n - 1.

    Raises:
        ConfigError: a set has fewer than two pictures, or features of another width.
    """
    for found in (features, reference):
        if found.ndim != 2 or len(found) < 2 or found.shape[1] != features.shape[1]:
            raise ConfigError(
                f"features of the shapes {features.shape} and {reference.shape} have no distance",
                hint="give two pictures or more on both sides, and one network for both",
            )
    a, b = (np.asarray(x, np.float64) for x in (features, reference))
    mean = np.square(a.mean(0) - b.mean(0)).sum()
    first, second = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    common = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    return float(max(0.0, mean + np.trace(first) + np.trace(second) - 2 * common))


def folder_features(folder: Path, features: Features) -> np.ndarray:
    """Features [n, F] of all pictures of a folder, by path.

    Raises:
        ConfigError: there are no pictures. IntegrityError: one cannot be read, or has features that are not finite.
    """
    found = list[np.ndarray]()
    for name in sorted(pictures_of(folder)):
        one = np.asarray(features(read_picture(folder / name, None)), np.float64).reshape(-1)
        if not np.isfinite(one).all():
            raise IntegrityError(f"the features of {folder / name} are not finite", hint="look at the network")
        found.append(one)
    return np.stack(found)


def onnx_features(network: Path) -> Features:
    """Features by an ONNX network of pictures [1, 3, H, W] uint8, whose resizing is part of it; on the CPU.

    Raises:
        ConfigError: ONNX Runtime is not installed, or the network has other inputs.
        IntegrityError: the network cannot be read.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError("onnxruntime is not installed", hint=install("cpu")) from error
    if not network.is_file():
        raise ConfigError(f"there is no network {network}", hint="name an ONNX file")
    try:
        session: Any = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common type
        raise IntegrityError(f"{network} is no ONNX network: {error}", hint="export it anew") from error
    given = session.get_inputs()
    if len(given) != 1 or given[0].type != "tensor(uint8)" or len(given[0].shape) != 4:
        found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in given)
        raise ConfigError(
            f"{network} takes {found}", hint="it must take one tensor [1, 3, H, W] of bytes, and resize it by itself"
        )
    return lambda image: session.run(None, {given[0].name: image.transpose(2, 0, 1)[None]})[0]
