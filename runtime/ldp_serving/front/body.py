"""Body of `POST /v1/images/generations`: OpenAI's fields and ours, checked strictly; nothing is clamped.

Field names, types and values are those that the published `openai` Python client sends.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, ValidationError

#: Longest prompt in characters, as OpenAI has it.
MOST_CHARACTERS = 32_000

_Id = Annotated[str, StringConstraints(max_length=512)]
_Text = Annotated[str, StringConstraints(max_length=MOST_CHARACTERS)]


class BadRequest(Exception):
    """A request that cannot be served as it is.

    Attributes:
        param: name of the field that is wrong, if it is one.
        code: stable name for programs.
        status: HTTP status.
    """

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value", status: int = 400) -> None:
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status


class GenerationBody(BaseModel):
    """Fields of a request for images.

    Accepted and ignored, since the model has no such setting: `quality`, `style`, `moderation`, `complexity`, `user`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompt: _Text
    model: _Id | None = None
    n: int | None = Field(default=None, ge=1)
    size: Annotated[str, StringConstraints(max_length=16)] | None = None
    output_format: str | None = None
    output_compression: int | None = Field(default=None, ge=0, le=100)
    response_format: str | None = None
    background: str | None = None
    stream: bool | None = None
    partial_images: int | None = Field(default=None, ge=0, le=3)
    quality: Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"] | None = None
    style: Literal["vivid", "natural"] | None = None
    moderation: Literal["low", "auto"] | None = None
    complexity: Literal["low", "medium", "high"] | None = None
    user: _Id | None = None
    safety_identifier: _Id | None = None
    # Of the formats gif and svg, which are not drawn; only null is accepted.
    frame_count: None = None
    frame_duration_ms: None = None
    svg: None = None
    # Ours.
    seed: int | None = Field(default=None, ge=0, lt=2**64)
    policy: _Id | None = None
    guidance_scale: FiniteFloat | None = None
    temperature: FiniteFloat | None = Field(default=None, gt=0)
    negative_prompt: _Text | None = None
    class_label: int | None = Field(default=None, ge=0)
    aspect_ratio: FiniteFloat | None = Field(default=None, gt=0)
    nearest_size: bool = False
    deadline_ms: int | None = Field(default=None, ge=1, le=86_400_000)
    return_trace: bool = False
    stream_scales: bool = False

    @property
    def count(self) -> int:
        """Number of pictures."""
        return self.n or 1

    @property
    def format(self) -> str:
        """Format of the files: png, jpeg or webp."""
        return self.output_format or "png"

    @property
    def identifier(self) -> str | None:
        """Identifier of the end user, as OpenAI resolves it."""
        return self.safety_identifier or self.user or None


def parse_body(raw: bytes) -> GenerationBody:
    """Fields of a request's body.

    Raises:
        BadRequest: the body is not JSON, or a field is unknown, missing, or has a value that cannot be served.
    """
    try:
        body = GenerationBody.model_validate_json(raw)
    except ValidationError as error:
        raise _explained(error.errors(include_url=False, include_context=False)[0]) from None
    _check_values(body)
    return body


def _explained(first: Any) -> BadRequest:
    kind, message = first["type"], first["msg"]
    param = str(first["loc"][0]) if first["loc"] else None
    if kind == "json_invalid":
        return BadRequest("the body is not valid JSON", code="invalid_json")
    if param is None:
        return BadRequest("the body must be a JSON object", code="invalid_json")
    if kind == "extra_forbidden":
        return BadRequest(f"unknown parameter: '{param[:100]}'", param[:100], "unknown_parameter")
    if kind == "missing":
        return BadRequest(f"missing required parameter: '{param}'", param, "missing_required_parameter")
    if kind == "none_required":
        return BadRequest(f"'{param}' belongs to formats that are not drawn here", param)
    if kind == "string_too_long":
        return BadRequest(f"invalid '{param}': {message.lower()}", param, "string_above_max_length")
    return BadRequest(f"invalid '{param}': {message.lower()}", param)


def _check_values(body: GenerationBody) -> None:
    """Refuses what the API knows and this server does not do, and says why."""
    if body.output_format not in (None, "png", "jpeg", "webp"):
        raise BadRequest("invalid 'output_format': one of png, jpeg, webp is drawn", "output_format")
    if body.format == "png" and body.output_compression not in (None, 100):
        raise BadRequest("'output_compression' is for jpeg and webp; png loses nothing", "output_compression")
    if body.response_format == "url":
        raise BadRequest("'url' is not offered: pictures are not kept; ask for 'b64_json'", "response_format")
    if body.response_format not in (None, "b64_json"):
        raise BadRequest("invalid 'response_format': only 'b64_json' is offered", "response_format")
    if body.background == "transparent":
        raise BadRequest("the model draws no transparency; ask for 'opaque' or 'auto'", "background")
    if body.background not in (None, "auto", "opaque"):
        raise BadRequest("invalid 'background': one of auto, opaque", "background")
    if not body.stream:
        for name in ("partial_images", "stream_scales"):
            if getattr(body, name):
                raise BadRequest(f"'{name}' needs 'stream': true", name)
