"""Files of pictures: PNG, JPEG and WebP, marked as made by a model in their metadata (IPTC)."""

from __future__ import annotations

import io
from typing import Any

#: IPTC's digital source type of pictures that a trained model made, in an XMP packet.
_SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{_SOURCE}"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)


def encode(image: Any, kind: str, quality: int | None = None) -> bytes:
    """File of a PIL image.

    Args:
        kind: "png", "jpeg" or "webp".
        quality: 0 to 100 for jpeg and webp; None is 100.
    """
    buffer = io.BytesIO()
    if kind == "png":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", _XMP)
        image.save(buffer, "PNG", pnginfo=info, compress_level=4)
    else:
        level = 100 if quality is None else quality
        options = {"subsampling": 0} if kind == "jpeg" and level > 90 else {}
        image.save(buffer, kind.upper(), quality=level, xmp=_XMP.encode(), **options)
    return buffer.getvalue()
