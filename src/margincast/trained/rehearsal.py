"""What would a run of the same length in few, long steps do? Training rehearsed at a larger learning rate.

AdamW moves every weight by about the learning rate a step, whatever the gradient's size. So the distance that training
has gone is its path length, the sum of its learning rates, and few steps of a larger learning rate go as far: n steps
in place of S, each with the learning rates of S/n real ones added up. Weights and features really move, which no frozen
picture shows. What the batch order does to the shared offset is lost in so few steps, so batches are drawn with labels
and concepts in the proportions of the data, and the offset is left to `offset`. Without that noise small batches do:
growth is compound, and more steps of fewer pairs compound more.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from margincast.errors import InputError, StatedFailure
from margincast.models.adapter import add_adapter
from margincast.models.load import LoadedModel
from margincast.passes.evaluate import Evaluator
from margincast.passes.response_pass import packing_problem, response_pass
from margincast.passes.tokenize import Encoding
from margincast.recipe.settings import TrainingSettings
from margincast.records import Features, FeatureSet
from margincast.trained.time import learning_rates, merged

PARTS, FEWEST = 4, 8  # a batch of training becomes up to 4 batches of rehearsal, of no fewer than 8 pairs


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal did.

    heldout: (pairs,) held-out margins at its end, float64;  pairs: distinct training pairs that it saw
    """

    heldout: Tensor
    pairs: int


def size_of(settings: TrainingSettings, share: float) -> tuple[int, int]:
    """(steps, pairs of a batch) of a rehearsal that takes `share` of the pairs that training takes."""
    batch = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    parts = max(1, min(PARTS, batch // FEWEST))
    return max(2, min(round(share * settings.max_steps) * parts, settings.max_steps)), batch // parts


def rehearse(
    loaded: LoadedModel,
    encoding: Encoding,
    features: Features,
    settings: TrainingSettings,
    steps: int,
    batch_size: int,
    *,
    seed: int = 0,
    progress: bool = False,
) -> Rehearsal:
    """Rehearse the run of `settings` in `steps` steps of `batch_size` pairs. `loaded` is left as it is.

    Raises `InputError` for settings that a path length does not describe, `StatedFailure` when the rehearsal diverges.
    """
    if settings.optimizer not in ("adamw", "adam") or settings.train == "head":
        raise InputError("a rehearsal is of all weights or an adapter trained by adamw or adam")
    if steps < 2:
        raise InputError(f"a rehearsal takes at least 2 steps, got {steps}")
    network = copy.deepcopy(loaded.model)
    if settings.train == "lora":
        network = add_adapter(network, settings)
    rows, heldout = encoding.select(features.train.pairs).rows, encoding.select(features.heldout.pairs).rows
    packed = packing_problem(network, rows) is None
    evaluator = Evaluator(heldout, packed, frozen_backbone=False)
    reference = (features.train.reference_chosen - features.train.reference_rejected).float()
    batches = proportional_batches(features.train, batch_size, steps, seed)
    rates = merged(
        learning_rates(settings.learning_rate, settings.lr_scheduler_type, settings.max_steps, settings.warmup_steps),
        steps,
    )
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    for batch, rate in tqdm(zip(batches, rates, strict=True), "rehearse", steps, disable=not progress):
        network.train()
        with torch.autocast(network.device.type, torch.bfloat16, enabled=settings.bf16):
            result = response_pass(network, [rows[index] for index in batch], packed)
            margin = settings.beta * (result.chosen - result.rejected - reference[batch].to(result.chosen.device))
            loss = settings.loss.value(margin).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    chosen, rejected = evaluator(network)
    before = features.heldout.reference_chosen - features.heldout.reference_rejected
    margins = settings.beta * (chosen - rejected - before.double())
    if not bool(margins.isfinite().all()):
        raise StatedFailure("the rehearsal diverged: its steps are longer than training's; rehearse in more steps")
    return Rehearsal(margins, len({row for batch in batches for row in batch}))


def proportional_batches(train: FeatureSet, size: int, steps: int, seed: int) -> list[list[int]]:
    """Rows of `steps` batches in which every concept and response has, as nearly as can be, its share of the data."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, pair in enumerate(train.pairs):
        groups.setdefault((pair.concept, train.chosen_ids[index], train.rejected_ids[index]), []).append(index)
    generator = random.Random(seed)
    for members in groups.values():
        generator.shuffle(members)
    drawn = dict.fromkeys(groups, 0)
    order: list[int] = []
    for count in range(1, size * steps + 1):
        owed = {key: count * len(members) / len(train.pairs) - drawn[key] for key, members in groups.items()}
        most = max(owed, key=lambda key: (owed[key], generator.random()))
        order.append(groups[most][drawn[most] % len(groups[most])])
        drawn[most] += 1
    return [order[start : start + size] for start in range(0, len(order), size)]
