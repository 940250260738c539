"""The text's keys and values as the blocks read them, and a place for them where CUDA graphs can find them again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

import torch

#: Texts are padded to a multiple of this where graphs are replayed: one graph serves all texts of about a length.
_PADDED_TO = 64


#: Prompts whose masks are remembered: images of a batch take turns.
_PROMPTS = 32


class Text(NamedTuple):
    """Keys and values of each block [R, H, T, c], and which of their positions are text [R, T]; None: all."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    mask: torch.Tensor | None

    @property
    def broadcast_mask(self) -> torch.Tensor | None:
        """For attention: [R, 1, 1, T]."""
        return None if self.mask is None else self.mask[:, None, None, :]


class TextReader:
    """Takes the text from a call's inputs; says once a prompt, not once a call, whether it needs a mask."""

    def __init__(self, first: int, last: int) -> None:
        self._blocks = range(first, last)
        self._known: OrderedDict[int, tuple[torch.Tensor, bool]] = OrderedDict()

    def read(self, inputs: Mapping[str, torch.Tensor]) -> Text:
        """As it is given, without its mask."""
        keys, values = ([inputs[f"text_{kind}_{i}"] for i in self._blocks] for kind in "kv")
        return Text(keys, values, None)

    def masked(self, text: Text, mask: torch.Tensor) -> Text:
        """With the mask where rows have several lengths; without, attention is a plainer kernel."""
        found = self._known.get(id(mask))
        if found is None or found[0] is not mask:  # asking a GPU makes the host wait for it
            found = self._known[id(mask)] = (mask, not bool(mask.all()))
            if len(self._known) > _PROMPTS:
                self._known.popitem(last=False)
        return text._replace(mask=mask if found[1] else None)

    def clear(self) -> None:
        self._known.clear()


class TextRoom:
    """Fixed addresses for a text, padded and masked; a text is copied when it is not the one that is there.

    Args:
        longest: most positions of a text. Room for them is made at once: a long text moves nothing.

    Attributes:
        moved: how often addresses were given up, for more rows.
    """

    def __init__(self, longest: int) -> None:
        self._length = padded(longest)
        self._room: Text | None = None
        self._there: torch.Tensor | None = None
        self.moved = 0

    def place(self, text: Text, mask: torch.Tensor) -> Text:
        """The text [R, H, T, c] where graphs find it, with its mask [R, T], both padded."""
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
        """Gives the memory back."""
        self._room = self._there = None


def padded(length: int) -> int:
    """Positions that a text of a length takes."""
    return -(-length // _PADDED_TO) * _PADDED_TO


def _room(text: Text, rows: int, length: int) -> Text:
    """Zeros: what lies behind a text has no weight, but memory may hold NaN."""

    def zeros(like: list[torch.Tensor]) -> list[torch.Tensor]:
        return [t.new_zeros(rows, t.shape[1], length, t.shape[3]) for t in like]

    mask = torch.zeros(rows, length, dtype=torch.bool, device=text.keys[0].device)
    return Text(zeros(text.keys), zeros(text.values), mask)
