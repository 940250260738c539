"""Entry of HART in the manifest: text stands before the grids, and the last one gets a residual."""

from __future__ import annotations

from typing import ClassVar, Literal

from ldp_runtime.architecture.base import BaseEntry
from ldp_runtime.errors import ConfigError
from ldp_runtime.schedule import ScaleSchedule
from ldp_runtime.token_layout import LatentLayout


class HartEntry(BaseEntry):
    """A text-to-image model that draws indices into a codebook, behind the rows of its text.

    Attributes:
        codes: number of entries of the codebook.
        grids: side of each scale's square token grid.
        phi_share: see `CodebookCodec`.
        text_channels: channels of the text features, the position of each row included.
        text_rows: rows of every text; padding is read like tokens.
        residual_steps: steps in which the residual of the last scale is denoised.
        first_late, late_top_k: from this scale on, draws are from no more codes than these.
        more_smooth: True if requests that do not say mix codes.
    """

    family: Literal["hart"] = "hart"
    codes: int
    grids: tuple[int, ...]
    phi_share: float
    text_channels: int
    text_rows: int
    residual_steps: int
    first_late: int
    late_top_k: int
    more_smooth: bool
    classes: ClassVar[int] = 0
    pooled_channels: ClassVar[int] = 0
    crosses_text: ClassVar[bool] = False
    mixes_codes: ClassVar[bool] = True
    ffn_matrices: ClassVar[int] = 3
    position_channels: ClassVar[int] = 1
    adds_residual: ClassVar[bool] = True

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
    def fixed_text_tokens(self) -> int:
        return self.text_rows

    @property
    def prefix_tokens(self) -> int:
        return self.text_rows - 1

    @property
    def more_variates(self) -> int:
        return self.codes + self.residual_steps * self.latent_channels

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
