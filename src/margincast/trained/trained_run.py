"""What does a finished run tell about its model? Its margins, beside what a forecast of it may look at.

    TrainedRun(features, recipe, trajectory)                   # of records at hand
    TrainedRun.from_folder("runs/train-1", "smollm2")          # of what `margincast train` left

`fit_constants` takes the constants of forecasts from such runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from margincast.errors import InputError
from margincast.models.load import LoadedModel, default_cache_dir, opened
from margincast.recipe.recipe import Recipe
from margincast.records import Features, PairSet, Trajectory
from margincast.trained.inputs import check_lengths, check_recipe, heldout_nats, single_token
from margincast.trained.rehearsal import Rehearsal, rehearse, size_of

# Log-probabilities of the same model in memory and from disk differ by rounding, of 16 bits at most; others by nats.
SAME_LOGPS = 0.25


@dataclass(frozen=True)
class TrainedRun:
    """A run of all weights or of an adapter as trained, and what a forecast of it may look at.

    features: of the untrained model, with inner layers, of single-token responses
    recipe: how it was trained;  trajectory: what it recorded, its last step and at least one on the way to it
    rehearsal: of this run (`rehearse`), None where it was not rehearsed
    data: a name of its data; how far forecasts miss is measured on runs of data that the constants do not know. "": the
    names of its concepts

    Raises `InputError` for a run that is not of such features and such a recipe.
    """

    features: Features
    recipe: Recipe
    trajectory: Trajectory
    rehearsal: Rehearsal | None = None
    data: str = ""

    def __post_init__(self) -> None:
        check_recipe(self.recipe)
        check_lengths(self.features, self.recipe)
        if self.recipe.train == "lora" and self.features.train.start_log_ratios is not None:
            raise InputError(
                f"{self.features.model} comes with a trained adapter, which trained on: constants of train lora are of "
                "runs whose adapters are fresh; give one of the model without it, or with it merged"
            )
        object.__setattr__(self, "recipe", self.recipe.for_pairs(len(self.features.train.pairs)))
        heldout, steps = self.features.heldout, self.trajectory.steps
        object.__setattr__(self, "data", self.data or ", ".join(heldout.pairs.concepts))
        name = f"the run of {self.data}"
        if not single_token(self.features):
            raise InputError(f"{name}: constants are fitted on responses of one token, and some of these have more")
        if heldout.layers is None or self.features.train.layers is None:
            raise InputError(f"{name}: a fit looks at inner layers: extract features with layers=True")
        if self.recipe.steps not in steps:
            raise InputError(f"{name}: recorded up to step {steps[-1]}, and its recipe has {self.recipe.steps} steps")
        if not any(0 < step < self.recipe.steps for step in steps):
            raise InputError(
                f"{name}: recorded no step between the first and the last; train with a smaller eval_steps"
            )
        nats = heldout_nats(self.trajectory, self.features, self.recipe, name)
        if not bool(nats.isfinite().all()):
            raise InputError(f"{name}: not all its margins are finite")
        rehearsed = len(heldout.pairs) if self.rehearsal is None else len(self.rehearsal.heldout)
        if rehearsed != len(heldout.pairs):
            raise InputError(f"{name}: its rehearsal has {rehearsed} margins for {len(heldout.pairs)} held-out pairs")

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        model: str | Path | LoadedModel | tuple[Any, Any],
        *,
        rehearsal: float = 0.1,
        data: str = "",
        cache_dir: str | Path | None = None,
        progress: bool = False,
    ) -> TrainedRun:
        """The run in a folder of `margincast train`, of whose pairs features of inner layers are extracted.

        model: the untrained one, as `extract_features` takes it;  rehearsal: the share of the run's pairs that a
        rehearsal takes, 0 for none;  cache_dir: where features are kept, as for `extract_features`

        Raises `InputError` for a folder that is no such run, or a run of another model.
        """
        from margincast.features import features_of
        from margincast.features.kept import kept_features
        from margincast.passes.tokenize import encode
        from margincast.runs.load import load_run

        run = load_run(folder)
        if run.summary["command"] != "train":
            raise InputError(f"{folder} is a {run.summary['command']}; constants are fitted on runs of train")
        recipe = Recipe.from_config(run.summary["config"])
        check_recipe(recipe)
        kept = kept_features(folder)
        if not isinstance(kept, Features):
            raise InputError(f"{folder}: constants are fitted on responses of one token, and some of these have more")
        cache = default_cache_dir() if cache_dir is None else Path(cache_dir)
        loaded = opened(model, cache)
        other = InputError(f"{folder} trained {kept.model}, whose weights are not those of {loaded.name}")
        # A model in memory is named by its weights, one from disk by its files: only what they put out compares.
        if not isinstance(model, tuple) and loaded.hash != kept.model_hash:
            raise other
        train, heldout = kept.train_pairs, run.trajectory.heldout.pairs
        both = PairSet(train.pairs + heldout.pairs)
        encoding = encode(
            both,
            loaded.tokenizer,
            eos=run.summary["config"].get("eos"),
            max_length=recipe.max_length,
            context=loaded.context,
        )
        features = features_of(
            loaded, encoding, train, heldout, cache_dir=cache, progress=progress, layers=encoding.single_token
        )
        if not float((features.train.policy_logps[0] - kept.train.policy_logps[0]).abs().max()) <= SAME_LOGPS:
            raise other
        rehearsed = None
        if rehearsal > 0.0:
            steps, batch = size_of(recipe.for_pairs(len(train)), rehearsal)
            rehearsed = rehearse(loaded, encoding, features, recipe, steps, batch, seed=recipe.seed, progress=progress)
        return cls(features, recipe, run.trajectory, rehearsed, data)
