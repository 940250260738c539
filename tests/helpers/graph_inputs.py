"""Random inputs of a graph at given sizes."""

from __future__ import annotations

import torch

from ldp_export.graphs.signature import Axis, GraphSignature


def random_inputs(signature: GraphSignature, sizes: dict[Axis, int]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = {}
    for spec in signature.inputs:
        shape = spec.at(sizes)
        drawn = torch.randn(shape, generator=generator)
        inputs[spec.name] = (drawn < 1.5) if spec.dtype == "bool" else drawn
        if spec.dtype == "bool":
            inputs[spec.name][:, 0] = True  # no row is without text
    return inputs
