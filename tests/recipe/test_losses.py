"""The DPO loss: its value where a naive formula fails, its slope against autodiff; names that are not known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from margincast.errors import InputError
from margincast.recipe.losses import get_loss
from tests.recipes import sigmoid


@given(st.floats(-500, 500))
def test_the_value_is_dpos_logsigmoid(r: float) -> None:
    margin = torch.tensor([r], dtype=torch.float64)
    expected = -torch.nn.functional.logsigmoid(margin)
    assert float(sigmoid.value(margin)) == pytest.approx(float(expected), rel=1e-12, abs=1e-300)


@given(st.floats(-500, 500))
def test_the_slope_is_the_values_derivative(r: float) -> None:
    margin = torch.tensor(r, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(sigmoid.value(margin), margin)
    assert float(sigmoid.slope(margin.detach())) == pytest.approx(float(expected), rel=1e-12, abs=1e-17)


def test_known_values_at_zero_and_far_out() -> None:
    far = torch.tensor([0.0, 1e4, -1e4], dtype=torch.float64)
    assert sigmoid.value(far).tolist() == [pytest.approx(math.log(2.0), rel=1e-15), 0.0, 1e4]
    assert sigmoid.slope(far).tolist() == [-0.5, 0.0, -1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_dtype_are_kept(dtype: torch.dtype) -> None:
    margins = torch.zeros(2, 3, 1, dtype=dtype)
    for function in (sigmoid.value, sigmoid.slope):
        assert (function(margins).shape, function(margins).dtype) == (margins.shape, dtype)


def test_names() -> None:
    assert get_loss("sigmoid") is sigmoid
    with pytest.raises(
        InputError, match=r"loss_type 'dpo' is not known; did you mean cdpo. use one of: cdpo"
    ) as caught:
        get_loss("dpo")
    assert "\n" not in str(caught.value)
