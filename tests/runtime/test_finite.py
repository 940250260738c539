import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ldp_runtime.finite import all_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 500, 999])
def test_one_bad_value_is_found(dtype, bad, place):
    values = torch.linspace(-5, 5, 1000).to(dtype)
    assert all_finite(values.reshape(10, 100))
    values[place] = bad
    assert not all_finite(values.reshape(10, 100))


def test_an_empty_tensor_holds_none():
    assert all_finite(torch.empty(0, 3))


@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_agrees_with_the_mask_of_all_values(values):
    tensor = torch.tensor(values, dtype=torch.float32)
    assert all_finite(tensor) == bool(tensor.isfinite().all())
