"""Files of a named model on the hub, as data: a repository, a path and a revision for each part."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal

PartName = Literal["transformer", "vae", "text_encoder", "text_encoder_2"]
#: Parts that read text, in the order in which their features are joined.
TEXT_ENCODERS: tuple[PartName, ...] = ("text_encoder", "text_encoder_2")
#: Names of weights in the layout of `transformers`: the index of shards, one file, or a shard.
INDEX_NAME, SINGLE_NAME = "model.safetensors.index.json", "model.safetensors"
_SHARD = re.compile(r"model-[0-9]+-of-[0-9]+\.safetensors")


@dataclass(frozen=True)
class HubPart:
    """Files of one part of a model.

    Attributes:
        repository, revision: a revision is a commit if one is known to hold the files, else the branch `main`.
        path: a file, or a folder of shards with its index. Empty: the repository holds the weights at its top, in the
            layout of `transformers`.
        beside: names of other files at the top of the repository that are read.
        folder: folder for its files within that of `fetch --local-dir`; empty for the folder itself.
        bytes: size of its weights' files if they hold more than the part; None: the size of the part's tensors.
        licence: licence that its repository states; empty: the model's.
    """

    name: PartName
    repository: str
    path: str = ""
    revision: str = "main"
    beside: tuple[str, ...] = ()
    folder: str = ""
    bytes: int | None = None
    licence: str = ""

    @property
    def is_file(self) -> bool:
        """True if the path has an ending, as files have; else it names a folder."""
        return bool(PurePosixPath(self.path).suffix)

    def within(self, name: str) -> str:
        """Path in the repository of a file of the part's folder."""
        return f"{self.path}/{name}" if self.path else name

    def chosen(self, listed: Iterable[str]) -> list[str]:
        """Paths of the part's files among those that its repository lists, in the list's order."""
        names = list(listed)
        if self.is_file:
            return [name for name in names if name == self.path or name in self.beside]
        sharded = INDEX_NAME in names
        return [name for name in names if name in self.beside or self._is_weight(name, sharded)]

    def required(self, listed: Iterable[str]) -> list[str]:
        """Paths without which the part cannot be read."""
        if self.is_file:
            return [self.path, *self.beside]
        sharded = self.path or INDEX_NAME in set(listed)
        return [*self.beside, self.within(INDEX_NAME if sharded else SINGLE_NAME)]

    def _is_weight(self, name: str, sharded: bool) -> bool:
        if self.path:  # a folder that holds nothing else
            return name.startswith(f"{self.path}/") and name.endswith((".safetensors", ".index.json"))
        return (name == INDEX_NAME or _SHARD.fullmatch(name) is not None) if sharded else name == SINGLE_NAME


@dataclass(frozen=True)
class HubFiles:
    """All parts of a model on the hub, the transformer first."""

    parts: tuple[HubPart, ...]

    @property
    def main(self) -> HubPart:
        """Transformer, whose repository is the model's."""
        return self.parts[0]

    @property
    def text_encoders(self) -> tuple[HubPart, ...]:
        return tuple(part for part in self.parts if part.name in TEXT_ENCODERS)

    @property
    def repositories(self) -> dict[str, str]:
        """Revision of each repository."""
        return {part.repository: part.revision for part in self.parts}

    def part(self, name: str) -> HubPart | None:
        """Part of that name; None if the hub holds none."""
        return next((part for part in self.parts if part.name == name), None)

    def at(self, revision: str) -> HubFiles:
        """The same files with the model's repository at another revision."""
        repository = self.main.repository
        parts = (replace(part, revision=revision) if part.repository == repository else part for part in self.parts)
        return HubFiles(tuple(parts))

    def without_text(self) -> HubFiles:
        """The transformer and the VAE alone."""
        return HubFiles(tuple(part for part in self.parts if part.name not in TEXT_ENCODERS))
