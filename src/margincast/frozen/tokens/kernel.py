"""How alike are the gradients of two pairs' sequence margins? The kernel of the linearised dynamics of many tokens.

M_i = sum_p s(p) (e_y(p) - S(p)) g(p)^T is V x d for each pair. Their products need none of them:

    <M_i, M_j> = sum_{p in i, q in j} s(p) s(q) (e_y(p) - S(p)).(e_y(q) - S(q)) g(p).g(q)

in blocks of positions, for O(P Q (V + d)). Holding the kernel at W0 linearises the dynamics; `pairspace` runs them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from margincast.features.positions import TokenFeatures
from margincast.frozen.engine.pairspace import PairSpace
from margincast.frozen.engine.step import simulate
from margincast.frozen.tokens.decomposition import distributions
from margincast.recipe.batches import Batch
from margincast.recipe.losses import Loss, refuse_averaged
from margincast.recipe.optimizer import Optimizer


@torch.no_grad()
def sequence_kernel(a: TokenFeatures, b: TokenFeatures, unembedding: Tensor, bias: Tensor | None = None) -> Tensor:
    """<M_i, M_j> for pairs i of `a` and j of `b` at W = `unembedding`, (a.pairs, b.pairs), exact."""
    kernel = a.hidden.new_zeros(a.pairs, b.pairs)
    for rows, left in distributions(a, unembedding, bias):
        for columns, right in distributions(b, unembedding, bias):
            residuals = left @ right.T
            residuals -= left[:, b.target[columns]]
            residuals -= right[:, a.target[rows]].T
            residuals += a.target[rows, None] == b.target[columns]
            residuals *= a.hidden[rows] @ b.hidden[columns].T
            residuals *= a.sign[rows, None] * b.sign[columns]
            by_pair = residuals.new_zeros(len(residuals), b.pairs).index_add_(1, b.pair[columns], residuals)
            kernel.index_add_(0, a.pair[rows], by_pair)
    return kernel


def linearised_margins(
    train: Tensor,
    heldout: Tensor,
    optimizer: Optimizer,
    batches: Iterable[Batch],
    loss: Loss,
    beta: float,
    start: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Margins after every step if gradients of sequence margins stayed what they are at W0: (steps, pairs) each.

    train: (N, N) `sequence_kernel` of the training pairs;  heldout: (M, N), held-out against training pairs
    start: (N,) and (M,) margins before training, of a model with a trained adapter; None: 0

    Exact in the limit of small changes of W only, and without weight decay. Raises `InputError` for a loss that divides
    by the length of the response.
    """
    refuse_averaged(loss, False, "the kernel of sequence margins")
    first = (None, None) if start is None else start
    space = PairSpace(train, beta, first[0])
    states = torch.stack(list(simulate(space, optimizer, batches, unembedding=space.zeros(), loss=loss)))
    moved = beta * states @ train.T, beta * states @ heldout.T
    return moved if start is None else (moved[0] + start[0], moved[1] + start[1])
