"""Element sizes of a checkpoint's tensors, from the headers of its files."""

from __future__ import annotations

import json
import math
from pathlib import Path


def halved_bytes(path: Path) -> int:
    """Bytes of the tensors of fewer than four bytes an element in a checkpoint; most files are in float32.

    Headers of safetensors are read as they are; any other file is mapped by PyTorch.
    """
    if not path.exists():
        return 0
    sizes = _safetensors_sizes(path)
    if sizes is None:
        from ldp_export.checkpoints.files.tensors import read_state

        tensors = read_state(path).values()
        sizes = [(tensor.numel() * tensor.itemsize, tensor.itemsize) for tensor in tensors]
    return sum(size for size, element in sizes if element < 4)


def _safetensors_sizes(path: Path) -> list[tuple[int, int]] | None:
    """Bytes of each tensor, and of its elements, by the headers of safetensors; None for other files."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    sizes: list[tuple[int, int]] = []
    for file in files:
        if file.suffix != ".safetensors":
            return None
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        for entry in entries:
            start, end = entry["data_offsets"]
            sizes.append((end - start, (end - start) // max(1, math.prod(entry["shape"]))))
    return sizes
