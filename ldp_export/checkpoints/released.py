"""Sizes of the released files of a named model, without PyTorch where the registry has counted them."""

from __future__ import annotations

from ldp_export.models.registry import NamedModel


def released_bytes(spec: NamedModel) -> dict[str, int]:
    """Bytes of each released part, counted from the architecture's float32 tensors.

    `HubFiles.vae_bytes` replaces the count of the VAE where it is given.
    """
    sizes = _counted_bytes(spec)
    if spec.hub is not None and spec.hub.vae_bytes is not None:
        sizes["vae"] = spec.hub.vae_bytes
    return sizes if spec.text_encoder is None else sizes | {"text_encoder": 4 * spec.text_encoder.parameters}


def _counted_bytes(spec: NamedModel) -> dict[str, int]:
    if spec.counts is not None:
        return {"transformer": spec.counts.transformer_bytes, "vae": spec.counts.vae_bytes}
    from ldp_export.checkpoints.original import original_state

    parts = {"transformer": spec.transformer, "vae": spec.vae}
    return {part: sum(4 * t.numel() for t in original_state(config).values()) for part, config in parts.items()}
