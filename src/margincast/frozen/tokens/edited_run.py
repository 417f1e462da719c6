"""What would margins of many tokens be after other data, if every pair were met where the run met it?

Adam divides a gradient by its own size, so that a step is nearly a sign: flat for a derivative, turned over by a pair
that is left out. So nothing is differentiated here. At the softmax and the margins that the run met, each edit k has
gradients of its own, and the optimizer makes steps of them as if they were all it ever saw:

    g_k(t) = sum_i c_ki(t) sum_p s_p (e_y(p) - S_t(p)) g(p)^T          c_ki of `weighed_pushes`, clipped by their length
    dW_k(t+1) = dW_k(t) + step(g_k(0), ..., g_k(t); W0 + dW_k(t))      m_j(k) = m_j + <dm_j/dW, dW_k - dW>

What is left out is how pairs answer to a W that differs by dW_k - dW. With log-partitions and margins as the run had
them, every row of W goes its own way: a first pass finds them, and a second one carries all edits through the run, some
rows at a time. Both take about three runs, and an update of W for every edit and step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from margincast.frozen.attribution.edits import Edit
from margincast.frozen.attribution.sensitivity import parts_of, weighed_pushes
from margincast.frozen.engine.step import clip_factor
from margincast.frozen.tokens.space import HeadSpace
from margincast.recipe.batches import Batch
from margincast.recipe.optimizer import Slots
from margincast.recipe.recipe import Recipe

# Numbers that a block of W's rows has, over all edits, pairs or targets: 8 MiB in float32, more is beyond the
# processor's caches. A block has at least `ROWS` rows all the same: products of fewer are thin.
BLOCK_NUMBERS, ROWS = 1 << 21, 32
GPU_NUMBERS = 1 << 27  # 512 MiB: a GPU has no use for small products


@dataclass(frozen=True)
class Met:
    """Pairs as the run met them at one of its states.

    places: (P,) which positions of their split, pair by pair, or all;  ends: one past the last of every pair
    partition: (P,) log of the sum of exp of the logits
    """

    places: Tensor | slice
    ends: tuple[int, ...]
    partition: Tensor


@dataclass(frozen=True)
class MetStep:
    """A step of the run. coefficients: (1 + K, pairs of the batch) what the gradient takes of every pair, clipped: that
    of the run, then those of the edits"""

    met: Met
    coefficients: Tensor
    rate: float


@torch.no_grad()
def edited_margins(
    train: HeadSpace, heldout: HeadSpace, recipe: Recipe, edits: Sequence[Edit]
) -> tuple[Tensor, Tensor]:
    """Held-out margins after the run, (M,), and how each edit changes them, (K, M), float64 both.

    recipe: `for_pairs`, of an optimizer that takes steps
    """
    steps, end = _met_by_run(train, recipe, edits)
    rewards = heldout.rewards(end)
    targets = torch.arange(heldout.features.pairs)
    met, _ = _met(heldout, end, recipe, Batch(targets, torch.ones(len(targets))))
    order, changed = _by_first_change(steps)
    changes = torch.zeros(len(edits), len(targets), dtype=torch.float64)
    for rows in _blocks(end, max(1 + len(edits), len(targets), _largest(steps))):
        moves, weight = _carried(train, recipe, steps, order, changed, rows)
        slopes = heldout.beta * _pulls(heldout, met, weight, rows)
        changes[order] += (moves.flatten(1) @ slopes.flatten(1).T).double().cpu()
    return (rewards[:, 0] - rewards[:, 1]).double().cpu(), changes


def _met_by_run(train: HeadSpace, recipe: Recipe, edits: Sequence[Edit]) -> tuple[list[MetStep], Tensor]:
    """The steps of the run, and dW after the last."""
    pairs, rule, start = train.features.pairs, recipe.rule, train.unembedding
    unedited = torch.ones(pairs, dtype=torch.float64), torch.zeros(pairs, dtype=torch.float64)
    parts = [unedited, *(parts_of(edit) for edit in edits)]
    state, slots, steps = train.zeros(), Slots(), list[MetStep]()
    for done, batch in enumerate(recipe.batches(pairs)):
        batch = _ascending(batch)
        met, margins = _met(train, state, recipe, batch)
        shares = batch.weights.to(margins)
        coefficients = train.beta * torch.stack(
            [
                weighed_pushes(
                    margins, shares, here.to(margins)[batch.rows], twins.to(margins)[batch.rows], recipe.loss
                )
                for here, twins in parts
            ]
        )
        gradient = torch.empty_like(state)
        products = state.new_zeros(len(batch.rows), len(batch.rows), dtype=torch.float64)
        for rows in _blocks(state, len(batch.rows)):
            pulls = _pulls(train, met, start[rows] + state[rows], rows).flatten(1)
            gradient[rows] = (coefficients[0] @ pulls).view_as(gradient[rows])
            products += (pulls @ pulls.T).double()
        if recipe.max_grad_norm:
            wide = coefficients.double()
            norms = ((wide @ products) * wide).sum(1).clamp_min(0.0).sqrt()
            clips = clip_factor(norms, recipe.max_grad_norm).to(coefficients)
            coefficients, gradient = coefficients * clips[:, None], gradient * clips[0]
        rate = rule.learning_rate * recipe.factor(done)
        state = state + rule.update(gradient, start + state, slots, done + 1, rate)
        steps.append(MetStep(met, coefficients, rate))
    return steps, state


def _carried(
    train: HeadSpace, recipe: Recipe, steps: Sequence[MetStep], order: Tensor, changed: Sequence[int], rows: slice
) -> tuple[Tensor, Tensor]:
    """dW_k - dW of every edit in `order`, (K, rows, hidden), and W after the run, (rows, hidden), of some rows of W."""
    weight = train.unembedding[rows]
    moves = weight.new_zeros(len(order), *weight.shape)
    slots = Slots()
    rank = torch.cat([torch.zeros(1, dtype=torch.long), 1 + order])
    known = 1
    for done, (step, count) in enumerate(zip(steps, changed, strict=True)):
        pulls = _pulls(train, step.met, weight, rows)
        gradients = torch.tensordot(step.coefficients[rank[: 1 + count]], pulls, 1)
        if 1 + count > known:  # an edit that has not changed anything yet remembers what the run does
            more = 1 + count - known
            slots = {name: torch.cat([slot, slot[:1].expand(more, -1, -1)]) for name, slot in slots.items()}
            known = 1 + count
        # Without decay no step asks where W is.
        weights = torch.cat([weight[None], weight + moves[:count]]) if recipe.rule.decay else weight
        change = recipe.rule.update(gradients, weights, slots, done + 1, step.rate)
        moves[:count] += change[1:] - change[:1]
        weight = weight + change[0]
    return moves, weight


def _pulls(space: HeadSpace, met: Met, weight: Tensor, rows: slice) -> Tensor:
    """sum_p s_p (e_y(p) - S(p)) g(p)^T of every pair, (pairs, rows, hidden): the `rows` of it where W has `weight`."""
    hidden, target = space.features.hidden[met.places], space.features.target[met.places] - rows.start
    residuals = hidden @ weight.T
    if space.bias is not None:
        residuals += space.bias[rows]
    residuals.sub_(met.partition[:, None]).exp_().neg_()
    here = ((target >= 0) & (target < len(weight))).nonzero()[:, 0]
    residuals[here, target[here]] += 1.0
    residuals *= space.features.sign[met.places, None]
    pulls = hidden.new_empty(len(met.ends), *weight.shape)
    for pair, (first, end) in enumerate(zip((0, *met.ends), met.ends, strict=False)):
        torch.mm(residuals[first:end].T, hidden[first:end], out=pulls[pair])
    return pulls


def _met(space: HeadSpace, state: Tensor, recipe: Recipe, batch: Batch) -> tuple[Met, Tensor]:
    """The pairs of `batch`, ascending, at W0 + `state`, and their margins."""
    once = replace(space, budgets=replace(space.budgets, softmax_keep=0))
    push, _ = once.push(state, recipe.loss, batch)
    logits = (push.weight[push.part.target] * push.part.hidden).sum(1)
    if space.bias is not None:
        logits += space.bias[push.part.target]
    everything = len(batch.rows) == space.features.pairs  # of which no block takes a copy
    places = slice(None) if everything else torch.isin(space.features.pair, batch.rows.to(state.device)).nonzero()[:, 0]
    ends = torch.bincount(push.part.pair, minlength=len(batch.rows)).cumsum(0)
    return Met(places, tuple(ends.tolist()), logits - push.logps), push.margins


def _ascending(batch: Batch) -> Batch:
    order = batch.rows.argsort()
    return Batch(batch.rows[order], batch.weights[order])


def _by_first_change(steps: Sequence[MetStep]) -> tuple[Tensor, list[int]]:
    """The edits by the step at which they first differ from the run, and how many do so at each step or before."""
    edits = len(steps[0].coefficients) - 1 if steps else 0
    first = torch.full((edits,), len(steps))
    for done, step in reversed(list(enumerate(steps))):
        first[(step.coefficients[1:] != step.coefficients[:1]).any(1).cpu()] = done
    return first.argsort(stable=True), [int((first <= done).sum()) for done in range(len(steps))]


def _largest(steps: Sequence[MetStep]) -> int:
    return max((len(step.met.ends) for step in steps), default=0)


def _blocks(state: Tensor, copies: int) -> Iterator[slice]:
    """Some rows of W, `state` is like it, at a time; copies: how often each is there."""
    numbers = BLOCK_NUMBERS if state.device.type == "cpu" else GPU_NUMBERS
    height = max(ROWS, numbers // (copies * state.shape[1]))
    return (slice(first, min(first + height, len(state))) for first in range(0, len(state), height))
