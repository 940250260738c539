"""The text's keys and values as the blocks read them, and memory for them where CUDA graphs can find them again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


#: Texts are padded to a multiple of this where graphs are replayed: one graph then serves all texts of similar length.
_PADDED_TO = 64


#: Number of prompts whose masks are remembered: images of a batch alternate.
_PROMPTS = 32


class Text(NamedTuple):
    """Keys and values of each block [R, H, T, c], and the mask of their positions [R, T].

    The mask is True at positions that are text; None stands for all.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    mask: torch.Tensor | None

    @property
    def broadcast_mask(self) -> torch.Tensor | None:
        """Mask for attention: [R, 1, 1, T]."""
        return None if self.mask is None else self.mask[:, None, None, :]


class TextReader:
    """Takes the text from a call's inputs; finds out once a prompt, not once a call, if it needs a mask."""

    def __init__(self, first: int, last: int) -> None:
        self._blocks = range(first, last)
        self._known: OrderedDict[int, tuple[torch.Tensor, bool]] = OrderedDict()

    def read(self, inputs: Mapping[str, torch.Tensor]) -> Text:
        """Text of the inputs, without its mask."""
        keys, values = ([inputs[f"text_{kind}_{i}"] for i in self._blocks] for kind in "kv")
        return Text(keys, values, None)

    def masked(self, text: Text, mask: torch.Tensor) -> Text:
        """Text with the mask if rows have several lengths; without a mask, attention is a simpler kernel."""
        known = self._known.get(id(mask))
        if known is None or known[0] is not mask:  # asking a GPU makes the host wait for it
            known = self._known[id(mask)] = (mask, not bool(mask.all()))
            if len(self._known) > _PROMPTS:
                self._known.popitem(last=False)
        return text._replace(mask=mask if known[1] else None)

    def clear(self) -> None:
        self._known.clear()


class TextRoom:
    """Memory at fixed addresses for a padded and masked text, which is copied there unless it is there already.

    Args:
        longest: most positions of a text. Memory for them is allocated at once: a long text moves nothing.

    Attributes:
        moved: number of times that the addresses were given up, for more rows.
    """

    def __init__(self, longest: int) -> None:
        self._length = padded(longest)
        self._room: Text | None = None
        self._there: torch.Tensor | None = None
        self.moved = 0

    def place(self, text: Text, mask: torch.Tensor) -> Text:
        """Text [R, H, T, c] where graphs find it, with its mask [R, T], both padded."""
        import torch

        rows, length = mask.shape
        room = self._room
        if room is None or room.keys[0].shape[0] < rows:
            self.moved += room is not None
            room = self._room = _room(text, rows, self._length)
            self._there = None
        assert room.mask is not None
        if self._there is not text.keys[0]:
            self._there = text.keys[0]
            for places, given in ((room.keys, text.keys), (room.values, text.values)):
                torch._foreach_copy_(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
                    [place[:rows, :, :length] for place in places], given
                )
            room.mask[:rows, length:] = False
            room.mask[:rows, :length].copy_(mask)
        end = padded(length)
        keys, values = ([place[:rows, :, :end] for place in places] for places in (room.keys, room.values))
        return Text(keys, values, room.mask[:rows, :end])

    def clear(self) -> None:
        """Releases the memory."""
        self._room = self._there = None


def padded(length: int) -> int:
    """Positions that a text of this length takes after padding."""
    return -(-length // _PADDED_TO) * _PADDED_TO


def _room(text: Text, rows: int, length: int) -> Text:
    """Allocates zeros for a text: memory behind a text has no weight, but it must not hold NaN."""

    import torch

    def zeros(like: list[torch.Tensor]) -> list[torch.Tensor]:
        return [t.new_zeros(rows, t.shape[1], length, t.shape[3]) for t in like]

    mask = torch.zeros(rows, length, dtype=torch.bool, device=text.keys[0].device)
    return Text(zeros(text.keys), zeros(text.values), mask)
