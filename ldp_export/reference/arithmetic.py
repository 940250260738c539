"""Reference models computed in float64, and in float32 in the least favourable order that an engine may take.

The first is the truth that engines are compared with. The distance of the second from it says how much of a model's
result rounding alone decides. Both intercept PyTorch's calls, so one model serves for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ldp_runtime.numerics import scalar
from ldp_runtime.schedule import relative_rope_table, rope_table
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_CASTS = (torch.Tensor.float, torch.Tensor.double, torch.Tensor.half, torch.Tensor.bfloat16)

#: Positions of queries whose attention is computed at once, to bound the memory of the scores.
_QUERIES = 256

#: Numbers that a convolution's copies of its input may hold.
_COPIES = 2**25

#: Numbers of rows and of weights up to which a product adds one term after another; above, that would take too long.
_FEW_ROWS, _FEW_WEIGHTS = 64, 2**20


class ComputedIn(TorchFunctionMode):
    """Scope in which every call of PyTorch computes in one floating-point type, whatever the types of its inputs.

    Weights are converted for each call and dropped, so models may be views of files in any element type.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __enter__(self) -> ComputedIn:
        _forget()
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        _forget()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _CASTS:
            return args[0].to(self.dtype)
        if _keeps_types(func):
            return func(*args, **(kwargs or {}))
        converted = [self._converted(value) for value in args]
        return self._compute(func, *converted, **{name: self._converted(v) for name, v in (kwargs or {}).items()})

    def _compute(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return _FRUGAL.get(func, func)(*args, **kwargs)

    def _converted(self, value: Any) -> Any:
        """Tensors, and element types themselves, in the scope's type; everything else unchanged."""
        if isinstance(value, torch.Tensor):
            return value.to(self.dtype) if value.is_floating_point() else value
        if isinstance(value, torch.dtype):
            return self.dtype if value.is_floating_point else value
        if isinstance(value, tuple | list):
            return type(value)([self._converted(item) for item in value])
        return value


def _forget() -> None:
    """Clears the caches of tensors that a scope would fill with values of its type."""
    rope_table.cache_clear()
    relative_rope_table.cache_clear()
    scalar.cache_clear()


def _keeps_types(func: Callable[..., Any]) -> bool:
    """True for reads of attributes, and for calls that change a tensor in place."""
    name = getattr(func, "__name__", "")
    return name in ("__get__", "__set__") or (name.endswith("_") and not name.endswith("__"))


class Unfavourable(ComputedIn):
    """Scope in which float32 computations round as unfavourably as an engine may.

    Norms, softmax and means add left to right. Variances are the mean square less the squared mean, which is ONNX's own
    definition. Products add their halves, the last one first. GELU is computed as it is written, and its functions are
    right to 22 binary digits: ONNX Runtime's tanh is off by 2.6e-7.
    """

    def __init__(self) -> None:
        super().__init__(torch.float32)

    def _compute(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return _UNFAVOURABLE.get(func, func)(*args, **kwargs)


def _sum(x: torch.Tensor) -> torch.Tensor:
    """Float32 sum over the last axis, one value after another: [..., n] -> [..., 1]."""
    flat = x.contiguous().view(-1, x.shape[-1]).numpy()
    total = np.zeros(len(flat), np.float32)
    for at in range(0, flat.shape[1], 2**14):  # in pieces, because all running sums are kept
        piece = flat[:, at : at + 2**14].copy()
        piece[:, 0] += total
        total = np.add.accumulate(piece, axis=1)[:, -1]
    return torch.from_numpy(total.copy()).view(*x.shape[:-1], 1)


def _mean(x: torch.Tensor) -> torch.Tensor:
    return _sum(x) / x.shape[-1]


def _moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance over the last axis [..., 1]."""
    mean = _mean(x)
    return mean, (_mean(x * x) - mean * mean).clamp(min=0)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Matrix product [..., m, k] x [..., k, n] as the sum of its halves, the last one first."""
    half = a.shape[-1] // 2
    if half == 0:
        return a @ b
    return a[..., half:] @ b[..., half:, :] + a[..., :half] @ b[..., :half, :]


def _approximate(x: torch.Tensor) -> torch.Tensor:
    """Results of a function in [-1, 1], off by up to 2^-22."""
    return torch.round(x * 2**21) / 2**21


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Product with a matrix; for few rows, libraries have kernels that add one term after another."""
    if x.numel() > _FEW_ROWS * x.shape[-1] or weight.numel() > _FEW_WEIGHTS:
        out = _product(x, weight.T)
    else:
        out, terms = x.new_zeros(*x.shape[:-1], len(weight)), weight.T.contiguous()
        for i, term in enumerate(terms):
            out.addcmul_(x[..., i : i + 1], term)
    return out if bias is None else out + bias


def _layer_norm(
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    mean, variance = _moments(x)
    out = (x - mean) / (variance + eps).sqrt()
    return (out if weight is None else out * weight) + (0 if bias is None else bias)


def _group_norm(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    mean, variance = _moments(x.reshape(len(x), num_groups, -1))
    out = ((x.reshape(len(x), num_groups, -1) - mean) / (variance + eps).sqrt()).view_as(x)
    each = (1, -1, *(1,) * (x.dim() - 2))
    return (out if weight is None else out * weight.view(each)) + (0 if bias is None else bias.view(each))


def _rms_norm(
    x: torch.Tensor, normalized_shape: Sequence[int], weight: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor:
    out = x / (_mean(x * x) + (eps or 0.0)).sqrt()
    return out if weight is None else out * weight


def _normalize(x: torch.Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, **_: Any) -> torch.Tensor:
    return x / _sum(x * x).sqrt().clamp(min=eps)


def _softmax(x: torch.Tensor, dim: int = -1, **_: Any) -> torch.Tensor:
    weights = (x - x.amax(dim=-1, keepdim=True)).exp()
    return weights / _sum(weights)


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: torch.Tensor | None = None, **options: Any
) -> torch.Tensor:
    """PyTorch's attention, a few queries at a time."""
    return _in_strips(F.scaled_dot_product_attention, q, k, v, attn_mask, **options)


def _rough_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: torch.Tensor | None = None, **options: Any
) -> torch.Tensor:
    return _in_strips(_rough_strip, q, k, v, attn_mask, **options)


def _rough_strip(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
    **_: Any,
) -> torch.Tensor:
    scores = _product(q, k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    return _product(_softmax(scores), v)


def _in_strips(
    attention: Callable[..., torch.Tensor],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    **options: Any,
) -> torch.Tensor:
    """Attention of strips of the queries, so that the scores of one strip are in memory at a time."""
    strips = []
    for at in range(0, q.shape[-2], _QUERIES):
        of_strip = mask if mask is None or mask.shape[-2] == 1 else mask[..., at : at + _QUERIES, :]
        strips.append(attention(q[..., at : at + _QUERIES, :], k, v, of_strip, **options))
    return torch.cat(strips, dim=-2)


def _convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Sequence[int] | int = 1,
    padding: Sequence[int] | int = 0,
    *sizes: Any,
) -> torch.Tensor:
    """PyTorch's convolution, a few rows at a time: in float64 it copies its input once for every tap."""
    if tuple(weight.shape[2:]) != (3, 3) or stride not in (1, (1, 1)) or padding not in (1, (1, 1)):
        return F.conv2d(x, weight, bias, stride, padding, *sizes)
    rows = max(1, _COPIES // (9 * x.shape[1] * x.shape[3]))
    padded = F.pad(x, (1, 1, 1, 1))
    strips = [
        F.conv2d(padded[:, :, at : at + rows + 2], weight, bias, 1, 0, *sizes) for at in range(0, x.shape[2], rows)
    ]
    return torch.cat(strips, dim=2)


def _gelu(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    if approximate == "none":
        return 0.5 * x * (1 + _approximate(torch.erf(x * 0.5**0.5)))
    return 0.5 * x * (1 + _approximate(torch.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x * x * x))))


def _silu(x: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    return x * _approximate(torch.sigmoid(x))


def _rough_convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *sizes: Any, **named: Any
) -> torch.Tensor:
    half = x.shape[1] // 2
    out = F.conv2d(x[:, half:], weight[:, half:], None, *sizes, **named)
    if half:
        out = out + F.conv2d(x[:, :half], weight[:, :half], None, *sizes, **named)
    return out if bias is None else out + bias[None, :, None, None]


def _tensor_mean(x: torch.Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> torch.Tensor:
    if dim not in (-1, (-1,), [-1]):
        return x.mean() if dim is None else x.mean(dim, keepdim)
    return _mean(x) if keepdim else _mean(x)[..., 0]


#: Calls that are computed in pieces, to bound their memory.
_FRUGAL: dict[Callable[..., Any], Callable[..., Any]] = {
    F.scaled_dot_product_attention: _attention,
    F.conv2d: _convolution,
}

#: Calls whose sums an engine may take in another order.
_UNFAVOURABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    F.linear: _linear,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.rms_norm: _rms_norm,
    F.normalize: _normalize,
    F.softmax: _softmax,
    F.scaled_dot_product_attention: _rough_attention,
    F.gelu: _gelu,
    F.silu: _silu,
    F.conv2d: _rough_convolution,
    torch.matmul: _product,
    torch.Tensor.matmul: _product,
    torch.Tensor.mean: _tensor_mean,
}
