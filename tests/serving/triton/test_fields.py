"""Requests to Triton: input tensors and parameters become the server's own fields, and are checked as those are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ldp_runtime.bundle.files import Bundle
from ldp_serving.front.body import BadRequest, GenerationBody, parse_body
from ldp_serving.triton.fields import INPUTS, inputs_of, to_body


def text(value: str) -> np.ndarray:
    return np.array([value.encode()], np.object_)


def test_tensors_and_parameters_are_the_fields_of_the_server() -> None:
    tensors = {"prompt": text("ein Käfer"), "seed": np.array([2**64 - 1], np.uint64), "guidance_scale": np.array([3.1])}
    tensors |= {"return_trace": np.array([True]), "partial_images": np.array([2], np.int32)}
    body = to_body(tensors, {"policy": "none", "quality": "high"})
    assert body == parse_body(
        '{"prompt":"ein Käfer","seed":18446744073709551615,"guidance_scale":3.1,"return_trace":true,'
        '"partial_images":2,"policy":"none","quality":"high","stream":true}'.encode()
    )


def test_every_input_is_a_field_of_the_server() -> None:
    assert INPUTS.keys() <= GenerationBody.model_fields.keys()


@pytest.mark.parametrize(
    ("tensors", "parameters", "param", "code"),
    [
        ({"prompt": text("x")}, {"prompt": "y"}, "prompt", "invalid_value"),
        ({"prompt": text("x")}, {"steps": 9}, "steps", "unknown_parameter"),
        ({"prompt": text("x")}, {"stream": False}, "stream", "unknown_parameter"),
        ({"prompt": text("x")}, {"model": "other"}, "model", "unknown_parameter"),
        ({"prompt": text("x")}, {"seed": "7"}, "seed", "invalid_value"),
        ({"prompt": text("x"), "n": np.array([0], np.int32)}, {}, "n", "invalid_value"),
        ({"prompt": text("x"), "temperature": np.array([np.nan])}, {}, "temperature", "invalid_value"),
        ({"prompt": np.array([b"\xff"], np.object_)}, {}, "prompt", "invalid_value"),
        ({"prompt": text("x"), "output_format": text("gif")}, {}, "output_format", "invalid_value"),
    ],
)
def test_wrong_fields_are_named(tensors: dict, parameters: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(BadRequest) as caught:
        to_body(tensors, parameters)
    assert (caught.value.param, caught.value.code) == (param, code)


def test_inputs_are_those_that_the_model_reads(small_bundle: Bundle) -> None:
    inputs = inputs_of(small_bundle.manifest)
    assert "prompt" in inputs
    assert "class_label" not in inputs
