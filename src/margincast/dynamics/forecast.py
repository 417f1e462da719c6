"""How will margins move when this data trains this model's unembedding, before training? Exact when frozen."""

from __future__ import annotations

import torch
from torch import Tensor

from margincast.dynamics.batches import batch_order, full_batch
from margincast.dynamics.flow import gradient_flow
from margincast.dynamics.horizon import long_flow
from margincast.dynamics.optimizers import SGD, AdamW, GradientFlow, Optimizer
from margincast.dynamics.pairspace import choose_form, simulate_in
from margincast.dynamics.schedule import schedule
from margincast.dynamics.state import TokenSpace
from margincast.errors import InputError
from margincast.losses import Loss, get_loss
from margincast.records import Features, FeatureSet, SplitTrajectory, Trajectory

# Local error of gradient flow relative to dW.
FLOW_RTOL = 1e-9


def recorded_steps(steps: int, every: int) -> tuple[int, ...]:
    """Step 0, every `every`-th step and the last."""
    return tuple(sorted({*range(0, steps + 1, every), steps}))


def forecast(
    features: Features,
    *,
    beta: float = 0.01,
    optimizer: Optimizer | GradientFlow = AdamW(),  # noqa: B008 (a frozen record)
    steps: int = 60,
    batch_size: int = 32,
    gradient_accumulation_steps: int = 1,
    seed: int = 1234,
    eval_steps: int = 10,
    loss_type: str | Loss = "sigmoid",
    lr_scheduler_type: str = "constant",
    warmup_steps: int = 0,
    max_grad_norm: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Trajectory:
    """Margins of every training and held-out pair at step 0, every `eval_steps` and the last of `steps`.

    Equal, to rounding, to training the unembedding alone with `margincast train --train head` and the same settings.
    Gradient flow ignores batches, schedule and clipping: it is their limit for small learning rates; where the loss is
    convex, `error` of the result bounds the numerical error of its margins.

    Raises `InputError` when the features do not obey the equations: multi-token responses, logits not linear in W.
    """
    # The flow's integrators are CPU code; steps run where there is a GPU (Apple's has no float64).
    gpu = torch.cuda.is_available() and not isinstance(optimizer, GradientFlow)
    device = torch.device("cuda" if gpu else "cpu")
    spaces = tuple(space.to(device) for space in token_spaces(features, beta, dtype))
    train, heldout = spaces
    wanted = recorded_steps(steps, eval_steps)
    loss = get_loss(loss_type, beta, without_reference=True)
    unembedding, error = features.unembedding.to(device, dtype), None
    if loss.reference_free and features.bias is not None:
        raise InputError(
            f"loss_type {loss.name!r} leaves the reference out, and the unembedding of {features.model} has a bias, "
            "which its margins start from; forecast it with a loss that has a reference"
        )
    if isinstance(optimizer, GradientFlow):
        times = [optimizer.learning_rate * step for step in wanted]
        if loss.convex and not loss.reference_free and len(times) > 1:
            flow = long_flow(train, times[1:], loss, rtol=FLOW_RTOL)
            states = [train.zeros(), *flow.states.to(dtype)]
            error = max(float(flow.margin_error(space).max()) for space in spaces)
        else:
            states = list(gradient_flow(train, times, loss, unembedding=unembedding))
    else:
        whole = isinstance(optimizer, SGD) and optimizer.full_batch
        batches = (
            full_batch(len(train), steps)
            if whole
            else batch_order(len(train), batch_size, steps, seed, gradient_accumulation_steps)
        )
        size = len(train) if whole else min(len(train), batch_size * gradient_accumulation_steps)
        run = simulate_in(
            choose_form(train, optimizer, steps, size, loss),
            train,
            optimizer,
            batches,
            unembedding=unembedding,
            loss=loss,
            factor=schedule(lr_scheduler_type, steps, warmup_steps),
            max_grad_norm=max_grad_norm,
        )
        states = [train.zeros(), *(state for step, state in enumerate(run, start=1) if step in wanted)]
    # With weight decay the other rows of W move as well, and the normaliser is not known from T rows.
    decays = not isinstance(optimizer, GradientFlow) and optimizer.weight_decay != 0.0
    bias = 0.0 if features.bias is None else features.scale * features.bias.to(unembedding)

    def record(split: FeatureSet, space: TokenSpace) -> SplitTrajectory:
        start = space.features @ unembedding.T + bias
        margins = torch.stack([space.margins(unembedding + s if loss.reference_free else s) for s in states])
        chosen = None if decays else torch.stack([_chosen_rewards(split, space, start, s) for s in states])
        if chosen is not None and loss.reference_free:
            chosen = chosen + beta * split.reference_chosen.to(chosen)
        return SplitTrajectory(split.pairs, margins.cpu(), None if chosen is None else chosen.cpu())

    return Trajectory(
        steps=wanted,
        train=record(features.train, train),
        heldout=record(features.heldout, heldout),
        beta=beta,
        loss_type=loss_type,
        error=error,
        origin=f"forecast of training the unembedding on a frozen backbone (exact{', on the GPU' if gpu else ''})",
    )


def token_spaces(features: Features, beta: float, dtype: torch.dtype = torch.float64) -> tuple[TokenSpace, TokenSpace]:
    """Training and held-out pairs of `features` as the state sees them.

    Raises `InputError` for features the single-token equations do not cover, and for features that are not finite.
    """
    if features.logits != "linear":
        raise InputError(
            f"the logits of {features.model} are {features.logits}, so margins are not linear in the unembedding and "
            "the frozen forecast does not hold for it; use a model without soft-capping"
        )
    refuse_multi_token(features.train.single_token and features.heldout.single_token)

    def space(split: FeatureSet, name: str) -> TokenSpace:
        hidden = split.hidden.to(dtype) * features.scale
        if not bool(hidden.isfinite().all()):
            bad = int((~hidden.isfinite().all(dim=1)).nonzero()[0])
            raise InputError(
                f"the features of {name} pair {split.pairs[bad].id} are not finite; extract them in float32"
            )
        chosen, rejected = (
            torch.searchsorted(features.tokens, torch.tensor([ids[0] for ids in side]))
            for side in (split.chosen_ids, split.rejected_ids)
        )
        return TokenSpace(hidden, chosen, rejected, beta, len(features.tokens))

    return space(features.train, "training"), space(features.heldout, "held-out")


def refuse_multi_token(single_token: bool) -> None:
    """Raises `InputError` unless every response is a single token: the equations above hold for no others."""
    if not single_token:
        raise InputError(
            "a response has more than one token, and these equations are of single tokens; use "
            "`tokens.forecast_tokens`, or eos=False where only TRL's end-of-sequence token is too many"
        )


def _chosen_rewards(split: FeatureSet, space: TokenSpace, start: Tensor, state: Tensor) -> Tensor:
    """beta * log(pi/pi_ref) of the chosen response, (pairs,), without the vocabulary.

    Only T logits move, so Z changes by what they change: with p the reference probabilities of the T tokens,
    log Z/Z0 = log(1 + sum_t p_t (exp(dlogit_t) - 1)).

    start: (pairs, T) the reference's logits of the T tokens
    """
    change = space.features @ state.T
    log_normaliser = start.gather(1, space.chosen[:, None]).squeeze(1) - split.reference_chosen.to(start)
    probability = (start - log_normaliser[:, None]).exp()
    growth = torch.log1p((probability * torch.expm1(change)).sum(dim=1))
    return space.beta * (change.gather(1, space.chosen[:, None]).squeeze(1) - growth)
