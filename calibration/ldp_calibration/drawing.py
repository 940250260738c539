"""Matplotlib, as all charts and pictures here use it."""

from __future__ import annotations

from typing import Any

from ldp_runtime.errors import ConfigError


def pyplot() -> Any:
    """Matplotlib without a screen. Raises ConfigError where it is not installed."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ConfigError("drawing needs matplotlib", hint="pip install 'ldp-export[eval]'") from error
    return plt
