"""Leave-one-out margins in closed form are those of really leaving each pair out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from margincast.diagnose.kernel import KernelSettings, PairPoints, pair_kernel, preference_sharing
from margincast.diagnose.leave_one_out import spectrum, spectrum_of
from margincast.diagnose.treatment import treatment
from tests.tolerances import TOLERANCE, error

FORMULA = TOLERANCE[torch.float64].formula


def points(pairs: int, seed: int, tokens: int = 2, concepts: int = 3) -> PairPoints:
    generator = torch.Generator().manual_seed(seed)
    treated = torch.nn.functional.normalize(torch.randn(pairs, 5, generator=generator))
    chosen = torch.randint(tokens, (pairs,), generator=generator)
    step = torch.randint(1, tokens, (pairs,), generator=generator)
    concept = torch.randint(concepts, (pairs,), generator=generator)
    return PairPoints(treated, chosen, (chosen + step) % tokens, concept)


@settings(max_examples=25, deadline=None)
@given(
    pairs=st.integers(3, 14),
    seed=st.integers(0, 999),
    ridge=st.floats(0.01, 10),
    tokens=st.integers(2, 5),
    width=st.sampled_from([None, 0.7, 1.4]),
    bond=st.sampled_from([0.0, 2.0]),
)
def test_left_out_margins_are_those_of_fits_without_the_pair(
    pairs: int, seed: int, ridge: float, tokens: int, width: float | None, bond: float
) -> None:
    some = points(pairs, seed, tokens)
    kernel = pair_kernel(some, some, KernelSettings(width, bond))
    targets = torch.rand(pairs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    expected = []
    for out in range(pairs):
        rest = [k for k in range(pairs) if k != out]
        fit = torch.linalg.solve(kernel[rest][:, rest] + ridge * torch.eye(pairs - 1).double(), targets[rest])
        expected.append(kernel[out, rest] @ fit)
    found = spectrum_of(kernel).left_out(targets, ridge)
    assert (found - torch.stack(expected)).abs().max() < 1e-9  # H_ii near 1 divides rounding by ridge


def test_the_kernel_is_a_plain_loop_over_pairs() -> None:
    some, used = points(9, 1, tokens=4), KernelSettings(width=0.8, bond=3.0)
    kernel = pair_kernel(some, some, used)
    one_hot = torch.eye(4).double()
    delta = one_hot[some.chosen] - one_hot[some.rejected]
    for i in range(9):
        for j in range(9):
            gap = (some.treated[i].double() - some.treated[j].double()).square().sum()
            near = torch.exp(-gap / (2 * 0.8**2)) + 0.01
            same = 1.0 if some.concept[i] == some.concept[j] else 0.0
            expected = delta[i] @ delta[j] / 2 * near * (1 + 3.0 * same) / 4.0
            assert float(kernel[i, j]) == pytest.approx(float(expected), abs=1e-7)
    assert torch.equal(preference_sharing(some, some), delta @ delta.T / 2)


def test_landmarks_give_back_a_kernel_of_low_rank() -> None:
    some = points(60, 2)
    linear = KernelSettings(width=None, bond=0.0)
    kernel = pair_kernel(some, some, linear)
    low = spectrum(some, linear, exact=50, landmarks=40)  # rank 6 with the offset
    assert error((low.vectors * low.energies) @ low.vectors.T, kernel) < 1e-8  # roots of energies of 1e-10
    there = low.energies > 0
    assert int(there.sum()) == 6
    assert error(low.vectors[:, there].T @ low.vectors[:, there], torch.eye(6).double()) < 1e-8


def test_the_flow_of_the_squared_loss_is_what_small_steps_of_descent_do() -> None:
    some = points(12, 3)
    kernel = pair_kernel(some, some, KernelSettings())
    margins, ones = torch.zeros(12).double(), torch.ones(12).double()
    steps = 20_000
    for _ in range(steps):
        margins = margins + (2.0 / steps) * (kernel @ (ones - margins))
    found = spectrum_of(kernel).along_flow(ones, 2.0)
    assert error(found, margins) < 1e-3  # the first order of steps of 1e-4


def test_treatment_takes_the_shared_component_away() -> None:
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(300, 6, generator=generator).double() * torch.tensor([9.0, 3, 1, 1, 0.5, 0.1]) + 50
    treated = treatment(hidden)(hidden).double()
    assert float(treated.mean(dim=0).norm()) < 0.1
    assert error(treated.norm(dim=1), torch.ones(300).double()) < TOLERANCE[torch.float32].formula
    covariance = torch.cov(hidden.T, correction=0)
    values, vectors = torch.linalg.eigh(covariance)
    shaped = (hidden - hidden.mean(dim=0)) @ vectors @ torch.diag((values + 1e-3 * values[-1]) ** -0.25) @ vectors.T
    assert error(treated, shaped / shaped.norm(dim=1, keepdim=True)) < TOLERANCE[torch.float32].formula
