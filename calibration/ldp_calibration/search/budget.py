"""Budget of a calibration: the loss that a user accepts, or the speed that is asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ldp_runtime.errors import ConfigError

#: Measures of quality, with True where lower is better.
LOWER_IS_BETTER = {"psnr": False, "ssim": False, "lpips": True}
_READ = re.compile(r"\s*(?:(psnr|ssim|speedup)\s*>=|(lpips)\s*<=)\s*([0-9]+(?:\.[0-9]+)?)\s*")


@dataclass(frozen=True)
class Budget:
    """A least quality ("psnr", "ssim"), a greatest distance ("lpips"), or a least "speedup" in operations."""

    measure: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Parses "psnr>=30", "ssim>=0.9", "lpips<=0.1" or "speedup>=1.8". Raises ConfigError for anything else."""
        match = _READ.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"cannot read the budget {text!r}", hint="such as psnr>=30, ssim>=0.9, lpips<=0.1 or speedup>=1.8"
            )
        return cls(match[1] or match[2], float(match[3]))

    def __str__(self) -> str:
        return f"{self.measure}{'<=' if LOWER_IS_BETTER.get(self.measure) else '>='}{self.limit:g}"
