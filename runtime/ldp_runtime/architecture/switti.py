"""Entry of Switti in the manifest: a text-to-image model that draws indices into a codebook, on square grids."""

from __future__ import annotations

from typing import ClassVar, Literal

from ldp_runtime.architecture.base import BaseEntry
from ldp_runtime.errors import ConfigError
from ldp_runtime.schedule import ScaleSchedule
from ldp_runtime.token_layout import LatentLayout


class SwittiEntry(BaseEntry):
    """A text-to-image model that draws indices into a codebook; guidance ends before the last scales.

    Attributes:
        codes: number of entries of the codebook.
        grids: side of each scale's square token grid.
        phi_share: see `CodebookCodec`.
        text_channels: channels of the text features.
        pooled_channels: channels of the pooled text.
        keeps_past: True if scales see the keys and values of earlier ones.
        rope_theta, rope_size: see `relative_rope_table`.
        first_guided, first_unguided: window of scales that a single number of guidance is for.
        first_smooth: first scale at which `more_smooth` mixes codes.
        more_smooth: True if requests that do not say mix them.
    """

    family: Literal["switti"] = "switti"
    codes: int
    grids: tuple[int, ...]
    phi_share: float
    text_channels: int
    pooled_channels: int
    keeps_past: bool
    rope_theta: float
    rope_size: int
    first_guided: int
    first_unguided: int
    first_smooth: int
    more_smooth: bool
    classes: ClassVar[int] = 0
    mixes_codes: ClassVar[bool] = True
    learns_unconditional: ClassVar[bool] = False
    ffn_matrices: ClassVar[int] = 3

    @property
    def layout(self) -> LatentLayout:
        return LatentLayout(self.latent_channels)

    @property
    def size(self) -> str:
        """Name of the schedule: the side of the images in pixels."""
        return f"{self.grids[-1] * self.vae_stride}px"

    @property
    def pixels_per_token(self) -> int:
        return self.vae_stride

    @property
    def token(self) -> str:
        return f"1 of {self.codes} codes a token"

    @property
    def logits(self) -> int:
        return self.codes

    @property
    def guided_scales(self) -> int:
        return min(self.first_unguided, len(self.grids))

    @property
    def cached_layers(self) -> int:
        return self.depth if self.keeps_past else 0

    @property
    def aspect_ratios(self) -> tuple[float, ...]:
        return (1.0,)

    def schedule(self, aspect_ratio: float = 1.0) -> ScaleSchedule:
        if aspect_ratio != 1:
            raise ConfigError(
                f"{self.name} draws square images only, not height / width = {aspect_ratio:g}",
                hint="it was trained on its own grids; leave the aspect ratio out",
            )
        return ScaleSchedule.of_squares(self.grids)
