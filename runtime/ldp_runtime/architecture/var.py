"""Entry of VAR in the manifest: a class-conditional model that draws indices into a codebook."""

from __future__ import annotations

from typing import ClassVar, Literal

from ldp_runtime.architecture.base import BaseEntry
from ldp_runtime.errors import ConfigError
from ldp_runtime.schedule import ScaleSchedule
from ldp_runtime.token_layout import LatentLayout


class VarEntry(BaseEntry):
    """A class-conditional model that draws indices into a codebook, on the square grids it was trained on.

    Attributes:
        codes: number of entries of the codebook.
        classes: number of classes that can be drawn; the label `classes` is the unconditional one.
        grids: side of each scale's square token grid.
        phi_share: see `CodebookCodec`.
    """

    family: Literal["var"] = "var"
    codes: int
    classes: int
    grids: tuple[int, ...]
    phi_share: float
    text_channels: ClassVar[int] = 0
    pooled_channels: ClassVar[int] = 0
    more_smooth: ClassVar[bool] = False
    reads_text: ClassVar[bool] = False
    crosses_text: ClassVar[bool] = False
    mixes_codes: ClassVar[bool] = True

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
    def aspect_ratios(self) -> tuple[float, ...]:
        return (1.0,)

    def schedule(self, aspect_ratio: float = 1.0) -> ScaleSchedule:
        if aspect_ratio != 1:
            raise ConfigError(
                f"{self.name} draws square images only, not height / width = {aspect_ratio:g}",
                hint="its positions are learned for its own grids; leave the aspect ratio out",
            )
        return ScaleSchedule.of_squares(self.grids)
