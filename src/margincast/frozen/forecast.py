"""How will margins move when this data trains this model's unembedding, before training? Exact when frozen."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.frozen.attribution.contributions import Attribution, account
from margincast.frozen.engine.pairspace import choose_form, simulate_in
from margincast.frozen.engine.spaces import refuse_bias, token_spaces
from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.flow.driven import driven_flow
from margincast.frozen.flow.horizon import margin_error
from margincast.recipe.losses import Loss
from margincast.recipe.optimizers import AdamW, GradientFlow, Optimizer
from margincast.recipe.recipe import Recipe
from margincast.records import Features, FeatureSet, SplitTrajectory, Trajectory


@dataclass(frozen=True)
class Forecast(Trajectory):
    """A `Trajectory` that knows the run it comes from, and so what every training pair contributed to every margin."""

    features: Features = field(kw_only=True, repr=False)
    recipe: Recipe = field(kw_only=True)
    _attributed: dict[int, Attribution] = field(default_factory=dict, init=False, repr=False, compare=False)

    def attribution(self, pair: int | str, *, split: str = "heldout", step: int | None = None) -> Tensor:
        """One signed contribution per training pair, (N,) float64, to the margin of one pair after `step` steps.

        pair: index into the split, or the pair's id;  split: "heldout" or "train";  step: a recorded one, or the last
        The contributions sum to the margin, less `attributed(step).start`, which only weight decay and losses without
        a reference have. What each optimizer's contributions mean: `frozen.attribution.contributions`.

        Raises `InputError` for a pair or a step that was not recorded.
        """
        sides = {"train": (self.features.train, 0), "heldout": (self.features.heldout, 1)}
        if split not in sides:
            raise InputError(f"split must be 'train' or 'heldout', got {split!r}")
        part, side = sides[split]
        index = _place(part, pair, split)
        targets = token_spaces(self.features, self.recipe.beta, self.recipe.dtype)[side].rows(torch.tensor([index]))
        return self.attributed(step).contributions(targets)[0]

    def attributed(self, step: int | None = None) -> Attribution:
        """The attribution of all margins after `step` steps, a recorded one, or the last. Computed at its first use,
        which costs another run.

        Raises `InputError` for a step that was not recorded.
        """
        step = self.steps[-1] if step is None else step
        if step not in self.steps:
            raise InputError(f"step {step} was not recorded; use one of {', '.join(map(str, self.steps))}")
        if step not in self._attributed:
            train, _ = token_spaces(self.features, self.recipe.beta, self.recipe.dtype)
            self._attributed[step] = account(train, self.recipe, self.features.unembedding, [step])[step]
        return self._attributed[step]


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
) -> Forecast:
    """Margins of every training and held-out pair at step 0, every `eval_steps` and the last of `steps`.

    Equal, to rounding, to training the unembedding alone with `margincast train --train head` and the same settings.
    Gradient flow ignores batches, schedule and clipping: it is their limit for small learning rates; where the loss is
    convex, `error` of the result bounds the numerical error of its margins.

    Raises `InputError` when the features do not obey the equations: multi-token responses, logits not linear in W.
    """
    recipe = Recipe(
        beta=beta,
        optimizer=optimizer,
        steps=steps,
        batch_size=batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        seed=seed,
        eval_steps=eval_steps,
        loss_type=loss_type,
        lr_scheduler_type=lr_scheduler_type,
        warmup_steps=warmup_steps,
        max_grad_norm=max_grad_norm,
        dtype=dtype,
    )
    # The flow's integrators are CPU code; steps run where there is a GPU (Apple's has no float64).
    gpu = torch.cuda.is_available() and not isinstance(optimizer, GradientFlow)
    device = torch.device("cuda" if gpu else "cpu")
    spaces = tuple(space.to(device) for space in token_spaces(features, beta, dtype))
    train, heldout = spaces
    wanted, loss = recipe.recorded, recipe.loss
    refuse_bias(features, loss)
    unembedding, error = features.unembedding.to(device, dtype), None
    if isinstance(optimizer, GradientFlow):
        times = [optimizer.learning_rate * step for step in wanted]
        flow = driven_flow(train, times, loss, start=unembedding if loss.reference_free else None)
        states = list(flow.states.to(dtype))
        if loss.convex:
            error = max(float(margin_error(flow.error, space).max()) for space in spaces)
    else:
        size = len(train) if recipe.whole else min(len(train), batch_size * gradient_accumulation_steps)
        run = simulate_in(
            choose_form(train, optimizer, steps, size, loss),
            train,
            optimizer,
            recipe.batches(len(train)),
            unembedding=unembedding,
            loss=loss,
            factor=recipe.factor,
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

    return Forecast(
        steps=wanted,
        train=record(features.train, train),
        heldout=record(features.heldout, heldout),
        beta=beta,
        loss_type=loss_type,
        error=error,
        origin=f"forecast of training the unembedding on a frozen backbone (exact{', on the GPU' if gpu else ''})",
        features=features,
        recipe=recipe,
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


def _place(split: FeatureSet, pair: int | str, name: str) -> int:
    """The index of a pair given by index or id."""
    if isinstance(pair, str):
        found = [index for index, other in enumerate(split.pairs) if other.id == pair]
        if not found:
            raise InputError(f"no {name} pair has the id {pair!r}")
        return found[0]
    if not 0 <= pair < len(split.pairs):
        raise InputError(f"pair must lie in 0 .. {len(split.pairs) - 1} of the {name} pairs, got {pair}")
    return pair
