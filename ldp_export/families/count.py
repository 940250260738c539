"""Counts the weights of the named models from their modules: `python -m ldp_export.families.count`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from ldp_export.checkpoints.original import original_state
from ldp_export.checkpoints.sources import EMBEDDED, Sources
from ldp_export.families.base import Family
from ldp_export.families.choose import choose_family
from ldp_export.models.choose import count_parameters
from ldp_export.models.counts import COUNTS_FILE, Counts, GraphCount, Weights
from ldp_export.models.registry import MODELS, NamedModel


def count_model(spec: NamedModel) -> Counts:
    """Counts of a model, from its modules on the meta device."""
    encoder = EMBEDDED / spec.name.replace("-", "_") / "text_encoder" if spec.embedded else None
    family = choose_family(spec, Sources(EMBEDDED, EMBEDDED, encoder))
    one = replace(spec.transformer, depth=1, **({"chunks": 1} if hasattr(spec.transformer, "chunks") else {}))
    two = replace(one, depth=2)
    sizes = [sum(4 * t.numel() for t in original_state(part).values()) for part in (spec.transformer, spec.vae)]
    graphs = {"blocks": _chunked(family, "blocks"), "decoder": GraphCount(first=_weights(family, "decoder"))}
    graphs["prompt"] = (
        _chunked(family, "prompt")
        if len(family.graph_names(1)) > spec.transformer.depth + 2 + (encoder is not None)
        else GraphCount(first=_weights(family, "prompt"))
    )
    if encoder is not None:
        graphs["text_encoder"] = GraphCount(first=_weights(family, "text_encoder"))
    return Counts(
        transformer=count_parameters(spec.transformer),
        vae=count_parameters(spec.vae),
        block=count_parameters(two) - count_parameters(one),
        transformer_bytes=sizes[0],
        vae_bytes=sizes[1],
        graphs=graphs,
    )


def _weights(family: Family, graph: str) -> Weights:
    """Weights of one graph, from its bytes in two precisions: 4 a and 2 (a - f) + 4 f."""
    whole, half = (family.graph(graph, precision).weight_bytes() for precision in ("float32", "bfloat16"))
    return Weights(whole // 4, (2 * half - whole) // 4)


def _chunked(family: Family, kind: str) -> GraphCount:
    names: Sequence[str] = [name for name in family.graph_names(1) if name.startswith(f"{kind}_")]
    first, middle, last = (_weights(family, names[i]) for i in (0, 1, -1))
    return GraphCount(middle, first - middle, last - middle)


def main() -> None:
    """Writes the counts of all models of the registry."""
    content = {name: count_model(spec).to_json() for name, spec in MODELS.items()}
    COUNTS_FILE.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
