"""GenEval's detector against the original: its input byte for byte, its logits, and the objects that it finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.evaluation_goldens import VECTORS, detector_size, masks, read
from ldp_calibration.evaluation.geneval.detections import detections
from ldp_calibration.evaluation.networks.inputs import detector_input
from ldp_calibration.evaluation.networks.mask2former import detect, load_detector
from PIL import Image
from safetensors.torch import load_file

FOLDER = VECTORS / "mask2former"
CASES: list[dict[str, Any]] = read(FOLDER / "cases.json")["cases"]


@pytest.fixture(scope="module")
def detector() -> Any:
    return load_detector(load_file(FOLDER / "weights.safetensors"), detector_size())


@pytest.mark.parametrize("number", range(len(CASES)))
def test_detections_are_those_of_the_original(detector: Any, number: int) -> None:
    case = CASES[number]
    with np.load(FOLDER / "arrays.npz") as file:
        expected = {name.removeprefix(f"{number}_"): file[name] for name in file if name.startswith(f"{number}_")}
    image = np.asarray(Image.open(FOLDER / case["image"]).convert("RGB"))
    pixels = detector_input(image)
    assert list(pixels.shape) == case["input_shape"][1:]
    np.testing.assert_allclose(pixels[:, ::16, ::16].numpy(), expected["input_sub"], rtol=0, atol=1e-6)
    class_logits, mask_logits = detect(detector, pixels[None])
    np.testing.assert_allclose(class_logits[0].numpy(), expected["class_logits"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(mask_logits[0, :, ::4, ::4].numpy(), expected["mask_logits_sub"], rtol=0, atol=2e-4)
    height, width = image.shape[:2]
    found = detections(class_logits[0], mask_logits[0], width, height)
    rows = np.array([[one.label, *one.box] for one in found])
    wanted, inside = np.array(case["detections"]), masks(expected["masks"], case["mask_shape"])
    order, other = _order(rows), _order(wanted)
    np.testing.assert_allclose(rows[order], wanted[other], rtol=0, atol=1e-5)
    for i, j in zip(order, other, strict=True):
        np.testing.assert_array_equal(found[i].mask, inside[j])
    least = float(np.median(rows[:, 5]))
    likely = detections(class_logits[0], mask_logits[0], width, height, least)
    assert {float(one.box[4]) for one in likely if one.box[4] > least} == {float(s) for s in rows[:, 5] if s > least}


def _order(rows: np.ndarray) -> np.ndarray:
    return np.lexsort((rows[:, 5], rows[:, 0]))


def test_an_empty_mask_has_an_empty_box() -> None:
    logits = torch.full((1, 81), -9.0)
    logits[0, 3] = 9
    (first, *_) = sorted(detections(logits, torch.full((1, 8, 8), -1.0), 800, 800), key=lambda one: one.label != 3)
    assert first.label == 3
    assert first.box.tolist() == [0, 0, 0, 0, 0]
