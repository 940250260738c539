"""Entry of a model in the manifest, and the questions that every family answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from ldp_runtime.schedule import ScaleSchedule
from ldp_runtime.token_layout import LatentLayout


class BaseEntry(BaseModel, ABC):
    """Architecture of a model, as far as the runtime needs it.

    Each family adds its own fields. All of them have a tag `family`, and the `size` that names their schedule. They
    have `text_channels` (0 for models of classes) and `classes` (0 for models of texts). They have `pooled_channels` (0
    for models that read no pooled text) and `more_smooth` (True if requests that do not say have it).

    Attributes:
        reads_text: True if images are drawn from texts, False if they are drawn from class labels.
        crosses_text: True if blocks attend to the text apart from earlier tokens.
        mixes_codes: True if tokens may be drawn as mixtures of codes (`more_smooth`).
        ffn_matrices: matrix products of a feed-forward layer.
        position_channels: last channels of the text features, which hold the position of each row.
        adds_residual: True if a graph of its own adds to the codes of the last scale.
        learns_unconditional: True if the unconditional condition is part of the weights; else it is an empty text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    depth: int
    width: int
    heads: int
    ffn: int
    latent_channels: int
    vae_stride: int
    reads_text: ClassVar[bool] = True
    crosses_text: ClassVar[bool] = True
    mixes_codes: ClassVar[bool] = False
    ffn_matrices: ClassVar[int] = 2
    position_channels: ClassVar[int] = 0
    adds_residual: ClassVar[bool] = False
    learns_unconditional: ClassVar[bool] = True

    @property
    @abstractmethod
    def layout(self) -> LatentLayout:
        """Arrangement of tokens on the latent."""

    @property
    @abstractmethod
    def pixels_per_token(self) -> int:
        """Side of the square of pixels that a token of the last scale covers."""

    @property
    @abstractmethod
    def token(self) -> str:
        """Content of a token, in words."""

    @property
    @abstractmethod
    def logits(self) -> int:
        """Number of logits per token."""

    @property
    def fixed_text_tokens(self) -> int:
        """Rows of every text, if the model reads padding; 0: a text has as many rows as tokens."""
        return 0

    def given_features(self, tokens: int) -> tuple[int, int]:
        """Shape of the text features that a caller gives for a prompt of so many tokens."""
        channels: int = getattr(self, "text_channels", 0)
        return self.fixed_text_tokens or tokens, channels - self.position_channels

    @property
    def prefix_tokens(self) -> int:
        """Rows of the text that every layer attends to as to earlier tokens; 0 if text is read otherwise."""
        return 0

    @property
    def more_variates(self) -> int:
        """Variates of a token of the last scale, beside one for each logit."""
        return 0

    @property
    def guided_scales(self) -> int:
        """Number of first scales that a single number of guidance is for."""
        return len(self.schedule())

    @property
    def cached_layers(self) -> int:
        """Number of layers whose keys and values later scales read."""
        return self.depth

    @property
    @abstractmethod
    def aspect_ratios(self) -> tuple[float, ...]:
        """Aspect ratios (height / width) that the model draws."""

    @abstractmethod
    def schedule(self, aspect_ratio: float = 1.0) -> ScaleSchedule:
        """Scale schedule of images of an aspect ratio (height / width).

        Raises:
            ConfigError: the model draws no images of this shape.
        """
