"""Sizes of the released files of a named model, without PyTorch where the registry has counted them."""

from __future__ import annotations

from ldp_export.models.registry import NamedModel


def released_bytes(spec: NamedModel) -> dict[str, int]:
    """Bytes of each released part, counted from the architecture's float32 tensors.

    `HubPart.bytes` replaces the count of a part where it is given.
    """
    sizes = _counted_bytes(spec)
    if spec.text_encoder is not None:
        sizes["text_encoder"] = 4 * spec.text_encoder.parameters
    parts = () if spec.hub is None else spec.hub.parts
    return sizes | {part.name: part.bytes for part in parts if part.bytes is not None}


def _counted_bytes(spec: NamedModel) -> dict[str, int]:
    if spec.counts is not None:
        return {"transformer": spec.counts.transformer_bytes, "vae": spec.counts.vae_bytes}
    from ldp_export.checkpoints.original import original_state

    parts = {"transformer": spec.transformer, "vae": spec.vae}
    return {part: sum(4 * t.numel() for t in original_state(config).values()) for part, config in parts.items()}
