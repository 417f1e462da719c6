"""From the input options to encoded pairs, a model and features: the first half of inspect, forecast and train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from margincast.cli.job import Job
from margincast.cli.options import loss_of, optimizer_of

if TYPE_CHECKING:
    from margincast.frozen.tokens import TokenFeatures
    from margincast.models import LoadedModel
    from margincast.passes.tokenize import Encoding
    from margincast.records import Features, PairSet


@dataclass(frozen=True)
class Inputs:
    """What the options name, loaded: model and encoded pairs of both splits."""

    loaded: LoadedModel
    encoding: Encoding
    train: PairSet
    heldout: PairSet

    def sections(self, config: dict[str, Any]) -> dict[str, Any]:
        """The `data`, `model` and `device` parts of a summary."""
        from margincast.runs.save import data_summary

        data = data_summary(self.encoding.pairs, self.train, self.heldout, config["data"])
        data["tokens"] = {
            "eos_appended": self.encoding.eos,
            "single_token_responses": self.encoding.single_token,
            "responses_cut_at_max_length": self.encoding.truncated,
        }
        model = {"id": self.loaded.name, "revision": config["revision"], "hash": self.loaded.hash}
        return {"data": data, "model": model, "device": config["device"]}


@dataclass(frozen=True)
class PairInputs(Inputs):
    """With the features of every pair."""

    features: Features


@dataclass(frozen=True)
class PositionInputs(Inputs):
    """With the features of every response position, of training and held-out pairs."""

    positions: tuple[TokenFeatures, TokenFeatures]


def check_settings(config: dict[str, Any]) -> None:
    """Refuse settings of a forecast or training before anything is loaded. Raises `InputError`."""
    loss_of(config)
    optimizer_of(config)


def load_inputs(job: Job, persona_dir: Path | None, cache_dir: Path | None) -> PairInputs:
    """Load, encode, split and extract for the settings in `job.config`; put the features into the job's folder."""
    return with_features(job, read_inputs(job, persona_dir, cache_dir), cache_dir)


def read_inputs(job: Job, persona_dir: Path | None, cache_dir: Path | None) -> Inputs:
    """Load, encode and split for the settings in `job.config`, which then claims its folder."""
    from margincast.data import load_pairs
    from margincast.models import load_model
    from margincast.models.load import default_cache_dir
    from margincast.passes.tokenize import encode
    from margincast.recipe.losses import refuse_length_normalized

    config = job.config
    pairs = load_pairs(
        config["data"],
        persona_dir=persona_dir,
        concept_column=config["concept_column"],
        on_bad_row=config["on_bad_row"],
    )
    _say_what_was_read(job, pairs)
    loaded = load_model(
        config["model"],
        revision=config["revision"],
        dtype=config["dtype"],
        device=config["device"],
        trust_remote_code=config["trust_remote_code"],
        cache_dir=cache_dir or default_cache_dir(),
    )
    encoding = encode(
        pairs,
        loaded.tokenizer,
        eos=config["eos"],
        max_length=config["max_length"],
        context=loaded.context,
        on_bad_row=config["on_bad_row"],
    )
    left_out = len(encoding.pairs.skipped) - len(pairs.skipped)
    if left_out:
        job.say(f"left out {left_out} pairs that the model cannot read, the first: {encoding.pairs.skipped[-left_out]}")
    if encoding.truncated:
        job.say(f"{encoding.truncated} responses are cut at max_length {encoding.max_length}")
    train, heldout = encoding.pairs.split(config["holdout"], config["seed"])
    if job.command in ("forecast", "decompose"):
        # Minutes of extraction earlier than the forecast itself would.
        refuse_length_normalized(loss_of(config), encoding.single_token)
    return Inputs(loaded, encoding, train, heldout)


def with_features(job: Job, inputs: Inputs, cache_dir: Path | None, layers: bool = False) -> PairInputs:
    from margincast.features import features_of
    from margincast.runs.features import keep_features

    job.write_config()
    features = features_of(*_parts(inputs), **_options(job, cache_dir), layers=layers)
    _leave_to_first(job)
    if job.main:
        keep_features(job.out, features)
    return PairInputs(*_parts(inputs), features)


def with_positions(job: Job, inputs: Inputs, cache_dir: Path | None) -> PositionInputs:
    from margincast.frozen.tokens import token_features

    job.write_config()
    positions = token_features(*_parts(inputs), **_options(job, cache_dir))
    _leave_to_first(job)
    return PositionInputs(*_parts(inputs), positions)


def _parts(inputs: Inputs) -> tuple[LoadedModel, Encoding, PairSet, PairSet]:
    return inputs.loaded, inputs.encoding, inputs.train, inputs.heldout


def _options(job: Job, cache_dir: Path | None) -> dict[str, Any]:
    """How an extraction of `job` runs: its cache, its progress bar, where its features go, whom it tells."""
    from margincast.models.load import default_cache_dir

    return {
        "cache_dir": cache_dir or default_cache_dir(),
        "progress": job.progress,
        "copy_to": job.out,
        "say": job.say,
    }


def _leave_to_first(job: Job) -> None:
    if job.command != "train" and not job.main:
        raise typer.Exit  # the rest is no work for several


def _say_what_was_read(job: Job, pairs: PairSet) -> None:
    job.say(f"{len(pairs)} pairs in {len(pairs.concepts)} concepts from {job.config['data']}")
    if pairs.duplicates:
        first, again = pairs.duplicates[0]
        job.say(
            f"{len(pairs.duplicates)} rows repeat an earlier row exactly and are kept, the first: {again} = {first}"
        )
    if pairs.skipped:
        job.say(f"left out {len(pairs.skipped)} unusable rows, the first: {pairs.skipped[0]}")
