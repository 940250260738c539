"""Fields of a request to Triton: the server's own, as input tensors or as parameters of the request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ldp_runtime.bundle.manifest import Manifest

from ldp_serving.front.body import BadRequest, GenerationBody, parse_body

#: Triton's types of the inputs, by the names of the server's fields. Each is one value, and may be left out.
INPUTS = {
    "prompt": "TYPE_STRING",
    "negative_prompt": "TYPE_STRING",
    "class_label": "TYPE_INT64",
    "n": "TYPE_INT32",
    "seed": "TYPE_UINT64",
    "size": "TYPE_STRING",
    "aspect_ratio": "TYPE_FP64",
    "nearest_size": "TYPE_BOOL",
    "policy": "TYPE_STRING",
    "guidance_scale": "TYPE_FP64",
    "temperature": "TYPE_FP64",
    "output_format": "TYPE_STRING",
    "output_compression": "TYPE_INT32",
    "response_format": "TYPE_STRING",
    "partial_images": "TYPE_INT32",
    "deadline_ms": "TYPE_INT64",
    "return_trace": "TYPE_BOOL",
    "stream_scales": "TYPE_BOOL",
}
#: Outputs of each response: a JSON object that tells of it, and the picture's file; without a picture that is empty.
OUTPUTS = {"event": "TYPE_STRING", "image": "TYPE_STRING"}

#: Fields of the server that Triton itself decides.
_TRITONS = ("model", "stream")


def inputs_of(manifest: Manifest) -> dict[str, str]:
    """Inputs of one bundle: those of texts, or of classes, that its model does not read are left out."""
    unread = ("class_label",) if manifest.model.reads_text else ("prompt", "negative_prompt")
    return {name: kind for name, kind in INPUTS.items() if name not in unread}


def to_value(name: str, tensor: Any) -> Any:
    """Value of an input tensor, a NumPy array of one element.

    Raises:
        BadRequest: a text is not in UTF-8.
    """
    value = tensor.reshape(-1)[0]
    if not isinstance(value, bytes):
        return value.item() if hasattr(value, "item") else value
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise BadRequest(f"invalid '{name}': the text is not in UTF-8", name) from None


def to_body(tensors: Mapping[str, Any], parameters: Mapping[str, Any]) -> GenerationBody:
    """Fields of a request, checked as the server checks them.

    Args:
        tensors: input tensors, NumPy arrays of one element.
        parameters: parameters of the request.

    Raises:
        BadRequest: a field is unknown, given twice, or has a value that cannot be served.
    """
    for name in parameters:
        if name in _TRITONS:
            raise BadRequest(f"'{name}' is not a parameter here: Triton decides it", name, "unknown_parameter")
        if name in tensors:
            raise BadRequest(f"'{name}' is given as a tensor and as a parameter: give it once", name)
    values = {name: to_value(name, tensor) for name, tensor in tensors.items()}
    return parse_body(json.dumps({"prompt": "", **values, **parameters, "stream": True}).encode())
