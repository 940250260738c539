"""Fidelity of folders against the figures of the original script, of another implementation of LPIPS among them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.formula_vgg import formula_vgg
from helpers.tree import ROOT
from ldp_calibration.evaluation.folders import FolderFidelity, folder_fidelity
from ldp_calibration.perceptual import PerceptualDistance, load_heads
from ldp_runtime.errors import ConfigError, IntegrityError
from PIL import Image

GOLDEN = ROOT / "tests" / "golden" / "fidelity"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text())


@pytest.fixture(scope="module")
def distance() -> PerceptualDistance:
    return PerceptualDistance(formula_vgg(), load_heads())


@pytest.mark.parametrize("case", EXPECTED)
def test_figures_are_those_of_the_original(case: str, distance: PerceptualDistance) -> None:
    found = folder_fidelity(GOLDEN / case / "candidate", GOLDEN / case / "reference", distance)
    official = EXPECTED[case]["official"]
    assert found.psnr == pytest.approx(float(official["PSNR"]), rel=1e-5)
    assert found.dataset_psnr == pytest.approx(official["Dataset-level PSNR"], rel=1e-5)
    assert found.ssim == pytest.approx(official["SSIM"], abs=2e-5)
    assert found.lpips == pytest.approx(official["LPIPS"], rel=2e-4)
    assert set(found.pictures) == set(EXPECTED[case]["images"])
    for name, expected in EXPECTED[case]["images"].items():
        one = found.pictures[name]
        assert one.psnr == pytest.approx(float(expected["psnr"]), rel=1e-5)
        assert one.ssim == pytest.approx(expected["ssim"], abs=2e-5)
        assert one.lpips == pytest.approx(expected["lpips_formula_vgg"], rel=2e-4, abs=1e-7)
    assert found.equal == (case != "pairs")


def test_jpeg_files_are_other_figures(distance: PerceptualDistance) -> None:
    folders = (GOLDEN / "pairs" / "candidate", GOLDEN / "pairs" / "reference")
    plain, written = folder_fidelity(*folders), folder_fidelity(*folders, jpeg=95)
    assert isinstance(written, FolderFidelity)
    assert abs(plain.psnr - written.psnr) > 0.05
    assert plain.lpips is None


def test_equal_folders() -> None:
    folder = GOLDEN / "pairs" / "candidate"
    found = folder_fidelity(folder, folder)
    assert math.isinf(found.psnr)
    assert math.isinf(found.dataset_psnr)
    assert found.equal == len(found.pictures) == 8


def test_what_has_no_partner_is_named(tmp_path: Path) -> None:
    candidate, reference = tmp_path / "a", tmp_path / "b"
    for folder, source in ((candidate, "candidate"), (reference, "reference")):
        shutil.copytree(GOLDEN / "pairs" / source, folder)
    (candidate / "00001/samples/00000.png").unlink()
    with pytest.raises(ConfigError, match="1 pictures are in one of the two folders only: 00001/samples"):
        folder_fidelity(candidate, reference)
    with pytest.raises(ConfigError, match="no pictures"):
        folder_fidelity(tmp_path / "none", reference)


def test_damaged_and_other_sized_pictures_are_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / name / "x.png")
    Image.new("RGB", (32, 16)).save(tmp_path / "a" / "x.png")
    with pytest.raises(ConfigError, match=r"x\.png is 32x16"):
        folder_fidelity(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a" / "x.png").write_bytes(b"\x89PNG no")
    with pytest.raises(IntegrityError, match=r"x\.png cannot be read"):
        folder_fidelity(tmp_path / "a", tmp_path / "b")
