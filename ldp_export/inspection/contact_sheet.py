"""Many drawn images on one sheet: a block per prompt, its images in a row under the prompt's words."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


#: Pixels between images, around blocks, of the height of letters, and of a line of text.
_GAP, _MARGIN, _TEXT, _LINE = 4, 16, 14, 18


_INK, _PAPER = (40, 40, 40), (255, 255, 255)


@dataclass(frozen=True)
class Panel:
    """One prompt and the images drawn for it."""

    title: str
    images: Sequence[Image]


def contact_sheet(blocks: Sequence[Panel], columns: int = 2, side: int = 128) -> Image:
    """Draws all blocks, `columns` side by side in reading order; images are shown `side` pixels high.

    Raises:
        ValueError: there is nothing to show, or a block has no image.
    """
    from PIL import Image

    if not blocks or not all(block.images for block in blocks):
        raise ValueError("a contact sheet needs at least one image for each prompt")
    columns = min(columns, len(blocks))
    strips = [_strip(block.images, side) for block in blocks]
    titles = [_wrap(block.title, strip.width) for block, strip in zip(blocks, strips, strict=True)]
    head, width = _LINE * max(len(lines) for lines in titles), max(strip.width for strip in strips)
    rows = -(-len(blocks) // columns)
    cell = (width + _MARGIN, head + side + _MARGIN)
    sheet = Image.new("RGB", (columns * cell[0] + _MARGIN, rows * cell[1] + _MARGIN), _PAPER)
    for i, (lines, strip) in enumerate(zip(titles, strips, strict=True)):
        left, top = _MARGIN + i % columns * cell[0], _MARGIN // 2 + i // columns * cell[1]
        _write(sheet, lines, left, top + head - _LINE * len(lines))
        sheet.paste(strip, (left, top + head))
    return sheet


def _strip(images: Sequence[Image], side: int) -> Image:
    """Images of any size in one row, all `side` pixels high."""
    from PIL import Image

    shown = [image.resize((max(1, round(image.width * side / image.height)), side)) for image in images]
    strip = Image.new("RGB", (sum(image.width + _GAP for image in shown) - _GAP, side), _PAPER)
    left = 0
    for image in shown:
        strip.paste(image, (left, 0))
        left += image.width + _GAP
    return strip


def _wrap(title: str, width: int) -> list[str]:
    """Wraps a title to at most three lines of about `width` pixels."""
    from PIL import ImageFont

    letters = int(width / ImageFont.load_default(_TEXT).getlength("n"))
    return textwrap.wrap(title, max(8, letters), max_lines=3, placeholder=" ...") or [""]


def _write(sheet: Image, lines: Sequence[str], left: int, top: int) -> None:
    from PIL import ImageDraw, ImageFont

    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
    for i, line in enumerate(lines):
        pen.text((left, top + i * _LINE), line, fill=_INK, font=font)
