"""What is a run watched for beside the margins of its pairs, and can it be?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from margincast.errors import InputError
from margincast.evaldata.tokens import EncodedEval
from margincast.models.checks import refuse_unknown_ids
from margincast.models.load import LoadedModel
from margincast.passes.tokenize import Encoded
from margincast.recipe.recipe import Recipe
from margincast.records import Features, PairSet, SplitTrajectory, Trajectory
from margincast.runs.metrics import metric_rows
from margincast.training.meter import EffectMeter, meter_of
from margincast.training.stops import check_names, stops_of

EFFECTS_BUDGET = 4096  # tokens of greedy answers of a run


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What a real run is to be watched for beside its pairs' margins.

    eval_data: texts and pairs that it is not trained on, in tokens (`evaldata.tokens.encode_eval`)
    effects_budget: tokens of greedy answers that the run may generate in all; 0: none
    stop_if: conditions like "effects/kl>0.5", of any metric of `metrics.jsonl`: the run stops at the first recorded
    step after step 0 that meets one, and goes on from there when called without it
    """

    eval_data: EncodedEval | None = None
    effects_budget: int = EFFECTS_BUDGET
    stop_if: Sequence[str] = ()

    def refuse_with_fsdp(self) -> None:
        """Raises `InputError` for eval data, which one process measures alone, where all have a part of the weights."""
        if self.eval_data is not None:
            raise InputError("--eval_data does not work where FSDP shards the weights; leave one of the two out")

    @property
    def fingerprint(self) -> list[str | int]:
        """What of it decides what is recorded."""
        return [] if self.eval_data is None else [self.eval_data.fingerprint, self.effects_budget]


def watched(
    loaded: LoadedModel, heldout: Sequence[Encoded], features: Features, recipe: Recipe, watch: Watch, packed: bool
) -> EffectMeter | None:
    """What measures a run beside its margins. Raises `InputError` for what it cannot measure, or not stop at."""
    meter = None
    if watch.eval_data is not None:
        if features.train.start_log_ratios is not None:
            raise InputError(
                f"eval data are compared with the model that a run starts from, and {loaded.name} comes with a trained "
                "adapter, which is not its reference; leave --eval_data out, or give --merge_adapter"
            )
        refuse_unknown_ids(loaded, watch.eval_data.sequences)
        meter = meter_of(
            watch.eval_data,
            loaded.tokenizer,
            heldout,
            budget=watch.effects_budget,
            records=len(recipe.recorded),
            packed=packed,
            frozen_backbone=recipe.train == "head",
        )
    check_names(stops_of(watch.stop_if), recorded_names(features.heldout.pairs, meter))
    return meter


def recorded_names(heldout: PairSet, meter: EffectMeter | None) -> list[str]:
    """The metrics that a run will record at every step."""
    splits = [SplitTrajectory(each, *[torch.zeros(1, len(each))] * 2) for each in (heldout, heldout)]
    effects = None if meter is None else meter.expected()
    return [
        name for name in metric_rows(Trajectory((0,), splits[0], splits[1], 1.0, effects=effects))[0] if name != "step"
    ]
