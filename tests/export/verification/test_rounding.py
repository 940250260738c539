"""What rounding does to a model is measured; what rounding cannot explain is refused."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.errors import VerificationError
from ldp_runtime.families.infinity import BitCodec
from ldp_runtime.numerics import scalar
from ldp_runtime.schedule import ScaleSchedule, rope_table
from ldp_runtime.token_layout import LatentLayout
from torch import nn
from torch.nn import functional as F

from ldp_export.reference import arithmetic
from ldp_export.reference.arithmetic import ComputedIn, Unfavourable
from ldp_export.verification.bounds import FACTOR, Outputs, limit, with_bounds
from ldp_export.verification.cases import ROUNDING_FILE, Case, ReferenceCases

X = torch.randn(3, 8, 96, generator=torch.Generator().manual_seed(0))
SCHEDULE = ScaleSchedule.of_grids([[1, 1], [1, 3]])


def test_float64_is_exact_and_the_unfavourable_order_is_not() -> None:
    """Every layer that engines add up in another order."""
    layers: list[Callable[[torch.Tensor], torch.Tensor]] = [
        nn.Linear(96, 64),
        lambda x: F.layer_norm(x + 30, (96,)),
        lambda x: F.rms_norm(x, (96,)),
        lambda x: F.normalize(x, dim=-1),
        lambda x: F.softmax(x, dim=-1),
        lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]),
        lambda x: F.gelu(x, approximate="tanh"),
        F.silu,
        lambda x: F.group_norm(x.view(3, 32, 6, 4) + 3, 32),
        lambda x: nn.Conv2d(32, 8, 3, padding=1)(x.view(3, 32, 6, 4)),
        lambda x: x.mean(-1, keepdim=True),
    ]
    for layer in layers:
        torch.manual_seed(1)
        with torch.no_grad():
            plain = layer(X)
            torch.manual_seed(1)
            with ComputedIn(torch.float64):
                exact = layer(X)
            torch.manual_seed(1)
            with Unfavourable():
                rough = layer(X)
        assert (exact.dtype, rough.dtype) == (torch.float64, torch.float32)
        torch.testing.assert_close(plain.double(), exact, atol=1e-4, rtol=1e-4)
        assert 0 < float((rough - exact).abs().max()) < 1e-3


@pytest.mark.parametrize("copies", [1, 9 * 32 * 6 * 2, 2**25])
def test_convolutions_in_pieces(monkeypatch: pytest.MonkeyPatch, copies: int) -> None:
    monkeypatch.setattr(arithmetic, "_COPIES", copies)
    layer, x = nn.Conv2d(32, 4, 3, padding=1).requires_grad_(False), X.view(1, 32, 12, 6)
    with ComputedIn(torch.float64):
        pieces = layer(x)
    torch.testing.assert_close(pieces, layer.double()(x.double()), atol=1e-12, rtol=0)


def test_scopes_leave_no_tensors_behind() -> None:
    """Tables and numbers that the runtime caches are float32 before, and after."""
    with ComputedIn(torch.float64):
        assert rope_table(SCHEDULE, 8)[1][0].dtype == torch.float64
        assert scalar(0.1).dtype == torch.float64
    assert rope_table(SCHEDULE, 8)[1][0].dtype == torch.float32
    assert scalar(0.1).dtype == torch.float32


def test_one_pass_variances_show_a_large_mean() -> None:
    """ONNX defines a variance as the mean square less the squared mean, which loses digits."""
    with ComputedIn(torch.float64):
        exact = F.layer_norm(X + 100, (96,))
    with Unfavourable():
        rough = F.layer_norm(X + 100, (96,))
    assert float((rough - exact).abs().max()) > 10 * float((F.layer_norm(X + 100, (96,)) - exact).abs().max())


def outputs(logits: Callable[[], list[torch.Tensor]]) -> Outputs:
    codec = BitCodec(LatentLayout(4, 1))
    return Outputs(lambda case: logits(), lambda latent: latent, None, codec, lambda case: SCHEDULE, 1.0)


def recorded(logits: list[torch.Tensor]) -> ReferenceCases:
    tensors = {f"run.logits_{k}": value for k, value in enumerate(logits)}
    return ReferenceCases((Case("run", 1.0, 3.0),), tensors)


WEIGHT = torch.randn(5, 96, generator=torch.Generator().manual_seed(2))


def product() -> list[torch.Tensor]:
    return [F.linear(X[:1, :1], WEIGHT), F.linear(X[:1, 1:4], WEIGHT)]


def test_recorded_runs_become_those_of_float64() -> None:
    bounded = with_bounds(recorded(product()), outputs(product))
    for k, exact in enumerate(product()):
        with ComputedIn(torch.float64):
            exact = product()[k]
        assert torch.equal(bounded.tensors[f"run.logits_{k}"], exact.float())
        assert 0 < bounded.rounding[f"logits_{k}"] < 1e-4


@pytest.mark.parametrize("error", [1e-3, 1.0, float("nan"), float("inf")])
def test_more_than_rounding_is_refused(error: float) -> None:
    """Else a wrong reference model would widen what its engines may err by."""
    with pytest.raises(VerificationError, match="rounding explains"):
        with_bounds(recorded([value + error for value in product()]), outputs(product))


def test_a_limit_is_some_units_in_the_last_place_at_least() -> None:
    assert limit(0.0, torch.tensor([-4.0, 1.0])) == FACTOR * 4 * torch.finfo(torch.float32).eps
    assert limit(1e-3, torch.tensor([-4.0, 1.0])) == FACTOR * 1e-3


def test_a_bundle_records_it(tiny_bundle: Bundle) -> None:
    rounding = json.loads((tiny_bundle.folder / "reference" / ROUNDING_FILE).read_text())
    assert set(rounding) == {*(f"logits_{k}" for k in range(7)), "latent", "image"}
    assert all(0 < value < 1e-4 for value in rounding.values())
