"""Entry of Infinity in the manifest: a text-to-image model that draws bits, in all aspect ratios of its size."""

from __future__ import annotations

from typing import ClassVar, Literal

from ldp_runtime.architecture.base import BaseEntry
from ldp_runtime.schedule import TEMPLATES, ScaleSchedule
from ldp_runtime.token_layout import LatentLayout


class InfinityEntry(BaseEntry):
    """A text-to-image model that draws bits, in all aspect ratios of its size."""

    family: Literal["infinity"] = "infinity"
    size: str
    bits: int
    text_channels: int
    levels: int
    patch: int
    classes: ClassVar[int] = 0
    pooled_channels: ClassVar[int] = 0
    more_smooth: ClassVar[bool] = False

    @property
    def layout(self) -> LatentLayout:
        return LatentLayout(self.latent_channels, self.patch)

    @property
    def pixels_per_token(self) -> int:
        return self.vae_stride * self.patch

    @property
    def token(self) -> str:
        return f"{self.bits} bits a token"

    @property
    def logits(self) -> int:
        return 2 * self.bits

    @property
    def aspect_ratios(self) -> tuple[float, ...]:
        return tuple(TEMPLATES)

    def schedule(self, aspect_ratio: float = 1.0) -> ScaleSchedule:
        return ScaleSchedule.of_size(self.size, aspect_ratio)
