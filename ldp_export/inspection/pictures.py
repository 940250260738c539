"""Pictures on disk: written beside their place and renamed, with the text that says how they were drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldp_runtime.system.disk import written_result

from ldp_export import __version__

if TYPE_CHECKING:
    from ldp_runtime.bundle.manifest import Manifest
    from ldp_runtime.pipeline.trace import Trace
    from PIL.Image import Image

_FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}


def drawn_from(manifest: Manifest, condition: str | int, trace: Trace) -> dict[str, str]:
    """Texts that a PNG carries: its prompt (or class), seed, policy, model and versions."""
    kind = "prompt" if isinstance(condition, str) else "class"
    return {
        kind: str(condition),
        "seed": str(trace.seed),
        "policy": trace.policy,
        "model": manifest.model.name,
        "bundle": manifest.version,
        "version": f"ldp-export {__version__}",
    }


def save_picture(image: Image, path: Path, texts: Mapping[str, str] | None = None) -> None:
    """Writes a picture whole or not at all, in the format of the path's ending, without loss where it can be.

    Args:
        texts: text chunks of a PNG; other formats carry none.
    """
    kind = _FORMATS.get(path.suffix.lower(), "PNG")
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    if kind == "PNG" and texts:
        options["pnginfo"] = png_texts(texts)
    with written_result(path) as scratch:
        image.save(scratch, format=kind, **options)


def png_texts(texts: Mapping[str, str]) -> Any:
    """Text chunks for `Image.save(pnginfo=...)`; a zero byte, which would end a text, is shown as unreadable."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for key, text in texts.items():
        chunks.add_text(key, text.replace("\0", "\N{REPLACEMENT CHARACTER}"))
    return chunks
