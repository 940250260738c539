"""Inputs of networks: sizes, resizing of bytes, and what stands around a picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ldp_calibration.evaluation.networks.inputs import clip_input, detector_input, detector_size, padded_input
from ldp_calibration.evaluation.networks.resize import linear_resize
from PIL import Image


def test_sizes_of_the_detector() -> None:
    assert detector_size(1024, 1024) == (800, 800)
    assert detector_size(1024, 512) == (1333, 667)
    assert detector_size(512, 768) == (800, 1200)


def test_rounding_of_resized_bytes() -> None:
    """Bytes by OpenCV 5.0.0 for the same arrays."""
    row = np.arange(0, 250, 50, dtype=np.uint8)[None, :, None].repeat(3, 2)
    assert linear_resize(row, 8, 1)[0, :, 0].tolist() == [0, 22, 53, 84, 116, 147, 178, 200]
    steps = np.array([7, 200, 33], np.uint8)[:, None, None].repeat(3, 2)
    assert linear_resize(steps, 1, 7)[:, 0, 0].tolist() == [7, 34, 117, 200, 128, 57, 33]
    flat = np.full((4, 4, 3), 77, np.uint8)
    assert (linear_resize(flat, 9, 9) == 77).all()


def test_padding_of_the_detector_is_grey_before_it_is_normalised() -> None:
    pixels = detector_input(np.zeros((512, 1024, 3), np.uint8))
    assert pixels.shape == (3, 672, 1344)
    grey = (128 - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor([58.395, 57.12, 57.375])
    torch.testing.assert_close(pixels[:, 671, 1343], grey)


def test_the_longest_side_fits_or_the_centre_is_cut() -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 20:] = 255
    padded = padded_input(image, 56)
    assert padded.shape == (3, 56, 56)
    assert torch.equal(padded[:, 0, 0], padded[:, 55, 55])  # nothing above and below
    cut = clip_input(Image.fromarray(image), 56)
    assert cut[0, 0, 0] < cut[0, 0, 55]


@pytest.mark.parametrize("antialias", [True, False])
def test_antialiasing_matters_when_shrinking(antialias: bool) -> None:
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    spread = padded_input(image, 56, antialias).std()
    assert (spread < 0.5) == antialias
