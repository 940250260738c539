"""Static 8-bit formats: factors that do not round, steps that two precisions share, and values that are not clipped."""

from __future__ import annotations

import pytest
import torch

from ldp_export.quantization.formats import FORMATS, SEVEN_BITS, Format, quantized_product, rounded_weight

ALL = [FORMATS["int8"], FORMATS["float8"], SEVEN_BITS]


def layer(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [N, K] and inputs [L, K] whose channels differ in width by a factor of hundreds."""
    generator = torch.Generator().manual_seed(seed)
    widths = torch.logspace(-1, 1.5, 24)
    return (
        torch.randn(10, 24, generator=generator) * 0.1,
        torch.randn(50, 24, generator=generator) * widths[torch.randperm(24, generator=generator)],
    )


@pytest.mark.parametrize("form", ALL)
def test_factors_are_powers_of_two_and_steps_are_bfloat16(form: Format) -> None:
    weight, x = layer()
    product = quantized_product(weight, x.abs().amax(dim=0), form)
    assert torch.equal(product.factor, torch.exp2(product.factor.log2().round()))
    assert len(product.factor.unique()) > 2
    for step in (torch.tensor(product.input_step), product.weight_step):
        assert torch.equal(step, step.bfloat16().float())
    assert product.weight_step.shape == (10 if form.by_channel else 1,)


@pytest.mark.parametrize("form", ALL)
def test_nothing_within_the_range_is_clipped(form: Format) -> None:
    """The widest input and weight are off by no more than rounding."""
    weight, x = layer()
    product = quantized_product(weight, x.abs().amax(dim=0), form)
    read, used = product.inputs(x) * product.factor, product.used(weight) / product.factor
    if form.dtype == torch.int8:
        assert ((read - x).abs() <= 0.5001 * product.input_step * product.factor).all()
        assert ((used - weight).abs() <= 0.5001 * product.weight_step[:, None] / product.factor).all()
        assert int(product.weight(weight).abs().max()) in (int(form.weights) - 1, int(form.weights))
    else:  # four significant bits
        least = 2**-9 * product.input_step * product.factor
        assert ((read - x).abs() <= (x.abs() / 16).maximum(least) * 1.0001).all()


def test_values_beyond_the_range_saturate() -> None:
    weight, x = layer()
    magnitudes = x.abs().amax(dim=0)
    for form in FORMATS.values():
        product = quantized_product(weight, magnitudes, form)
        assert product.inputs(100 * x).abs().max() <= (form.inputs + 1) * product.input_step


def test_factors_make_the_product_better_where_channels_are_wide() -> None:
    weight, x = layer()
    exact = x @ weight.T

    def error(smoothing: float) -> float:
        product = quantized_product(weight, x.abs().amax(dim=0), FORMATS["int8"], smoothing)
        return float((product.inputs(x) @ product.used(weight).T - exact).norm() / exact.norm())

    assert error(0.7) < 0.7 * error(0)


def test_weights_alone_have_no_factors() -> None:
    weight, _ = layer()
    product = rounded_weight(weight, FORMATS["int8"])
    assert torch.equal(product.factor, torch.ones(24))
    assert ((product.used(weight) - weight).abs() <= 0.5001 * product.weight_step[:, None]).all()


def test_a_layer_without_any_input_divides_by_no_zero() -> None:
    product = quantized_product(torch.zeros(3, 4), torch.zeros(4), FORMATS["int8"])
    assert product.inputs(torch.zeros(2, 4)).eq(0).all()
    assert product.weight(torch.zeros(3, 4)).eq(0).all()
