import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ldp_runtime.errors import NonFiniteError
from ldp_runtime.numerics import FiniteWatch, all_finite


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


def test_large_doubles_are_finite() -> None:
    assert all_finite(torch.tensor([1e300], dtype=torch.float64))


def test_several_tensors_are_finite_together() -> None:
    fine, broken = torch.ones(3), torch.tensor([1.0, float("nan")])
    assert all_finite(fine, torch.empty(0), fine)
    assert all_finite()
    assert not all_finite(fine, broken)
    assert not all_finite(fine.to(torch.bfloat16), torch.tensor(float("inf")))


class Remote(torch.Tensor):
    """A tensor that says it lies on a GPU."""

    is_cuda = True  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]


def remote(*values: float) -> torch.Tensor:
    return torch.tensor(values).as_subclass(Remote)


class TestFiniteWatch:
    def test_on_a_cpu_it_says_so_at_once(self) -> None:
        watch = FiniteWatch()
        watch.see(torch.ones(3), "fine", "")
        with pytest.raises(NonFiniteError, match="scale 2"):
            watch.see(torch.tensor([float("inf")]), "NaN at scale 2", "verify")
        watch.check()

    def test_a_gpu_is_asked_at_the_end_and_the_first_is_named(self) -> None:
        watch = FiniteWatch()
        for scale, value in enumerate((1.0, float("nan"), float("inf"))):
            watch.see(remote(0.0, value), f"NaN at scale {scale}", "verify")
        with pytest.raises(NonFiniteError, match="scale 1") as raised:
            watch.check()
        assert raised.value.hint == "verify"
        watch.check()  # each output is complained of once

    def test_finite_outputs_pass(self) -> None:
        watch = FiniteWatch()
        watch.see(remote(1.0, 2.0), "fine", "")
        watch.check()
