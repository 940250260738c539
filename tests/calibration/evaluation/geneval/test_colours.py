"""Colours of objects against the original's: cut out, preprocessed, compared with sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from helpers.evaluation_goldens import VECTORS, colour_network, masks, read
from ldp_calibration.evaluation.geneval.colours import ColourClassifier, CutOptions, cut_out
from ldp_calibration.evaluation.geneval.verdict import judge
from ldp_calibration.evaluation.networks.inputs import clip_input
from PIL import Image, ImageOps

FOLDER = VECTORS / "geneval_color"
CASES: list[dict[str, Any]] = read(FOLDER / "cases.json")["cases"]


@pytest.mark.parametrize("case", CASES, ids=[f"{case['image'][7:12]}-{case['variant']}" for case in CASES])
def test_colours_are_those_of_the_original(case: dict[str, Any]) -> None:
    key, given = case["image"][7:12], case["options"]
    options = CutOptions(given.get("bgcolor", "#999"), given.get("crop", "1") == "1")
    classifier, network = ColourClassifier(colour_network(), options), colour_network()
    image = ImageOps.exif_transpose(Image.open(FOLDER / case["image"])).convert("RGB")
    boxes = np.array(case["boxes"], np.float32)
    with np.load(FOLDER / "arrays.npz") as file:
        found = {name.removeprefix(f"{key}_"): file[name] for name in file if name.startswith(f"{key}_")}
    inside = masks(found["masks"], found["mask_shape"]) if case["has_masks"] else [None] * len(boxes)
    seen = list[str]()

    def colours(name: str, numbers: Sequence[int]) -> list[str]:
        cuts = [cut_out(image, boxes[i], inside[i], options) for i in numbers]
        for k, cut in enumerate(cuts):
            np.testing.assert_array_equal(np.asarray(cut), found[f"crop_{k}"])
        inputs = torch.stack([clip_input(cut, network.side) for cut in cuts])
        np.testing.assert_array_equal(inputs.numpy(), found["preprocessed"])
        np.testing.assert_allclose(classifier.vectors(name).numpy(), found["classifier"], rtol=0, atol=2e-7)
        np.testing.assert_allclose(classifier.logits(name, inputs).numpy(), found["logits"], rtol=0, atol=2e-5)
        seen.extend(classifier.colours(image, name, [boxes[i] for i in numbers], [inside[i] for i in numbers]))
        return seen

    verdict = judge(case["metadata"], {case["metadata"]["include"][0]["class"]: boxes}, colours)
    assert (verdict.correct, verdict.reason, seen) == (case["correct"], case["reason"], case["colors"])


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 0.1), (torch.bfloat16, 0.8)])
def test_half_precision_is_near(dtype: torch.dtype, bound: float) -> None:
    """Bounds for logits, which are a hundred cosines; a colour changes only where two logits are that near."""
    classifier = ColourClassifier(colour_network(dtype=dtype))
    differences = list[float]()
    with np.load(FOLDER / "arrays.npz") as file:
        for case in CASES[::6]:
            key, name = case["image"][7:12], case["metadata"]["include"][0]["class"]
            logits = classifier.logits(name, torch.from_numpy(file[f"{key}_preprocessed"])).numpy()
            expected = file[f"{key}_logits"]
            differences.append(float(np.abs(logits - expected).max()))
            lead = np.diff(np.sort(expected, axis=1)[:, -2:], axis=1)[:, 0]
            clear = lead > 2 * bound
            np.testing.assert_array_equal(logits.argmax(1)[clear], expected.argmax(1)[clear])
    assert 0 < max(differences) < bound
