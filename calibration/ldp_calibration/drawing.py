"""Matplotlib, set up for all charts and pictures."""

from __future__ import annotations

from typing import Any

from ldp_runtime.errors import ConfigError
from ldp_runtime.system.installation import install


def pyplot() -> Any:
    """Matplotlib's pyplot, without a screen. Raises ConfigError if Matplotlib is not installed."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ConfigError("drawing needs matplotlib", hint=install("eval")) from error
    return plt
