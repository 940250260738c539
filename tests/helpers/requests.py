"""Checked requests of single images."""

from __future__ import annotations

from typing import Any

from ldp_runtime import Pipeline, Policy
from ldp_runtime.pipeline.request import ImageRequest, make_request
from ldp_runtime.pruning.parse import parse_policy

#: Arguments of a request that are left out.
_NONE = (
    "prompt",
    "class_labels",
    "prompt_embeds",
    "negative_prompt",
    "negative_prompt_embeds",
    "guidance_scale",
    "temperature",
    "top_k",
    "top_p",
    "seed",
    "aspect_ratio",
    "height",
    "width",
)


def image(pipe: Pipeline, *, policy: str | Policy = "none", **options: Any) -> ImageRequest:
    """One checked image; options as in `Pipeline.__call__`."""
    given: dict[str, Any] = {**dict.fromkeys(_NONE), "num_images_per_prompt": 1, "output_type": "pil"}
    given |= {"cfg_insertion_layer": (0,), "more_smooth": False}
    given["policy"] = parse_policy(policy) if isinstance(policy, str) else policy
    return make_request(pipe.manifest, **(given | options)).images[0]
