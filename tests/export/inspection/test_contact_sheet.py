"""The sheet of drawn images."""

import numpy as np
import pytest
from PIL import Image

from ldp_export.inspection.contact_sheet import Panel, contact_sheet

RED, BLUE = (200, 0, 0), (0, 0, 200)


def image(colour: tuple[int, int, int], width: int = 64, height: int = 64) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def share(sheet: Image.Image, colour: tuple[int, int, int]) -> int:
    """How many pixels have exactly this colour."""
    return int((np.asarray(sheet) == colour).all(-1).sum())


def test_all_images_are_shown_at_one_height_with_their_proportions() -> None:
    sheet = contact_sheet([Panel("two", [image(RED), image(RED)]), Panel("wide", [image(BLUE, 128, 64)])], side=32)
    assert share(sheet, RED) == 2 * 32 * 32
    assert share(sheet, BLUE) == 64 * 32


def test_long_words_do_not_cover_images() -> None:
    blocks = [Panel("a very long description " * 20, [image(RED)]), Panel("", [image(RED)])]
    assert share(contact_sheet(blocks, columns=1, side=64), RED) == 2 * 64 * 64


def test_an_empty_sheet_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([Panel("nothing", [])])
