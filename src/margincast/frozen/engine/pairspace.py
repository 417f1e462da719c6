"""When are coefficients of pairs, or a few directions, a smaller state than T x d? Fewer pairs than numbers in a row.

Every gradient is a combination of the pairs' delta_i g_i^T, so with an optimizer that only adds and scales gradients
(SGD, momentum) dW = sum_i a_i delta_i g_i^T at every step. Two other states then give the same numbers:

    pair    a, (pairs,), with margins beta * C a (Eq. 10): reads N x N numbers a step
    factor  G = F B^T with B orthonormal, (hidden, rank): token space with the features F, (pairs, rank), and dW B

Adam divides entry by entry and weight decay pulls W0 in, which no combination of pairs does: those need token space.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.engine.step import simulate
from margincast.recipe.batches import Batch
from margincast.recipe.losses import Loss
from margincast.recipe.optimizer import Optimizer

# How many products of a matrix product cost as much as reading one number from memory, measured on a 2-core x86
# machine: 60 billion products a second against 5 billion numbers.
PRODUCTS_PER_NUMBER = 12


@dataclass(frozen=True)
class PairSpace:
    """Pairs as seen by their coefficients a, (pairs,): kernel C, (pairs, pairs), of `TokenSpace.kernel`.

    start: (pairs,) as of `TokenSpace`
    """

    kernel: Tensor
    beta: float
    start: Tensor | None = None

    def __len__(self) -> int:
        return self.kernel.shape[0]

    def check(self) -> None:
        if not len(self):
            raise InputError("there is no pair to train on")
        if not bool(self.kernel.isfinite().all()):
            raise InputError("the kernel of the pairs is not finite: some feature is not; extract them in float32")

    def zeros(self) -> Tensor:
        return self.kernel.new_zeros(len(self))

    def margins(self, coefficients: Tensor) -> Tensor:
        """start + beta * C a, (pairs,)."""
        return self._margins(self.kernel, coefficients, slice(None))

    def gradient(self, state: Tensor, loss: Loss, batch: Batch) -> Tensor:
        """The coefficients of the gradient of sum_i weight_i f(r_i), (pairs,). (Eq. 8)"""
        whole = len(batch.rows) == len(self) and torch.equal(batch.rows, torch.arange(len(self)))
        margins = self.margins(state) if whole else self._margins(self.kernel[batch.rows], state, batch.rows)
        scaled = self.beta * batch.weights.to(state) * loss.slope(margins)
        return torch.zeros_like(state).index_add_(0, batch.rows.to(state.device), scaled)

    def _margins(self, kernel: Tensor, coefficients: Tensor, rows: Tensor | slice) -> Tensor:
        moved = self.beta * (kernel @ coefficients)
        return moved if self.start is None else self.start[rows].to(moved) + moved

    def norm(self, gradient: Tensor) -> Tensor:
        """|sum_i c_i delta_i g_i^T|, from c^T C c."""
        return (gradient @ self.kernel @ gradient).clamp(min=0.0).sqrt()


def pair_space(space: TokenSpace) -> PairSpace:
    """The N x N form of `space`; `space.pull(a)` is dW."""
    return PairSpace(space.kernel(space), space.beta, space.start)


def factor_space(space: TokenSpace) -> tuple[TokenSpace, Tensor]:
    """`space` with features F, (pairs, rank), and the basis B, (hidden, rank): a state S there is dW = S B^T.

    Directions whose singular value is below rounding of the largest are left out.
    """
    features = space.features.to(space.dtype)
    left, sizes, right = torch.linalg.svd(features, full_matrices=False)
    keep = sizes > sizes[:1] * max(features.shape) * torch.finfo(space.dtype).eps
    factor = (left * sizes)[:, keep].contiguous()
    return replace(space, features=factor), right[keep].T.contiguous()


def form_costs(pairs: int, hidden: int, tokens: int, steps: int, batch: int) -> dict[str, float]:
    """Numbers moved by a run of `steps` steps of `batch` pairs in each form, its preparation included.

    token: the batch's features once and the state, which the optimizer goes through about four times
    pair: N^2 d products for the kernel, then the batch's rows of it
    factor: about 4 N d r products for the factor, r = min(N, d), then as token with r for d
    """
    rank = min(pairs, hidden)
    return {
        "token": steps * (batch * hidden + 4.0 * tokens * hidden),
        "pair": pairs**2 * hidden / PRODUCTS_PER_NUMBER + steps * (batch * pairs + 4.0 * pairs),
        "factor": 4.0 * pairs * hidden * rank / PRODUCTS_PER_NUMBER + steps * (batch + 4.0 * tokens) * rank,
    }


def choose_form(space: TokenSpace, optimizer: Optimizer, steps: int, batch: int, loss: Loss) -> str:
    """The cheapest form that gives the same numbers: token, pair or factor.

    Features in 16 bits, and features on another device than the CPU, stay in token space.
    """
    # A loss without a reference needs W0's margins, which are no combination of pairs.
    combines = optimizer.linear and not optimizer.decay and not loss.reference_free
    if not combines or space.features.element_size() < 4 or space.features.device.type != "cpu":
        return "token"
    costs = form_costs(len(space), space.features.shape[1], space.tokens, steps, batch)
    return min(costs, key=lambda form: costs[form])


def simulate_in(
    form: str, space: TokenSpace, optimizer: Optimizer, batches: Iterable[Batch], *, unembedding: Tensor, **options: Any
) -> Iterator[Tensor]:
    """`simulate`, with its `options`, carried out in `form` (of `choose_form`); yields dW, (T, hidden)."""
    if form == "token":
        yield from simulate(space, optimizer, batches, unembedding=unembedding, **options)
        return
    space.check()
    if form == "pair":
        pairs = pair_space(space)
        for coefficients in simulate(pairs, optimizer, batches, unembedding=pairs.zeros(), **options):
            yield space.pull(coefficients)
        return
    factor, basis = factor_space(space)
    for state in simulate(factor, optimizer, batches, unembedding=factor.zeros(), **options):
        yield state @ basis.T
