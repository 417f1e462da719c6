"""From the input options to encoded pairs, a model and features: the first half of inspect, forecast and train."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import typer

from margincast.cli.job import Job
from margincast.cli.options import InputOptions, PairOptions
from margincast.cli.topics import topics_wanted, with_topics
from margincast.results import Json

if TYPE_CHECKING:
    from margincast.features.positions import Positions
    from margincast.models import LoadedModel
    from margincast.passes.tokenize import Encoding
    from margincast.recipe.loss import Loss
    from margincast.records import Features, PairSet

KEPT_BYTES = 8 << 30  # of features of response positions that a training run extracts for `attribute` alone


@dataclass(frozen=True)
class Inputs:
    """What the options name, loaded: model and encoded pairs of both splits.

    data: as it was named;  options: where the model came from;  notes: how the data were understood
    """

    data: str
    options: InputOptions
    loaded: LoadedModel
    encoding: Encoding
    train: PairSet
    heldout: PairSet
    notes: tuple[str, ...]

    def sections(self) -> Json:
        """The `data`, `model`, `device`, `dtype` and `packs` parts of a summary."""
        from margincast.passes.plan import plan_of
        from margincast.runs.save import data_summary

        data = data_summary(self.encoding.pairs, self.train, self.heldout, self.data)
        data["notes"] = list(self.notes)
        data["tokens"] = {
            "eos_appended": self.encoding.eos,
            "single_token_responses": self.encoding.single_token,
            "responses_cut_at_max_length": self.encoding.truncated,
        }
        model = {"id": self.loaded.name, "revision": self.options.revision, "hash": self.loaded.hash}
        return {
            "data": data,
            "model": model,
            "device": self.loaded.device,
            "dtype": self.loaded.dtype,
            "packs": plan_of(self.loaded.model).summary(),
        }


@dataclass(frozen=True)
class PairInputs(Inputs):
    """With the features of every pair."""

    features: Features


@dataclass(frozen=True)
class PositionInputs(Inputs):
    """With the features of every response position."""

    positions: Positions

    def word(self, token: int) -> str:
        """The text of a token."""
        return str(self.loaded.tokenizer.decode([token]))


@dataclass(frozen=True)
class Reading:
    """What `read_inputs` is to read: DATA, by which model, and how it is cut and split."""

    data: str
    options: InputOptions
    pairs: PairOptions
    seed: int
    max_length: int


def load_inputs(job: Job, reading: Reading, loss: Loss | None = None) -> PairInputs:
    """Load, encode, split and extract; put the features into the job's folder."""
    return with_features(job, read_inputs(job, reading, loss))


def read_inputs(job: Job, reading: Reading, loss: Loss | None = None) -> Inputs:
    """Load, encode and split.

    loss: that of a forecast of all weights or an adapter; refused here where responses have more tokens than it can
    have, minutes of extraction earlier than the forecast itself would
    """
    from margincast.data import load_pairs
    from margincast.recipe.losses import refuse_averaged

    options = reading.options
    pairs = load_pairs(
        reading.data,
        heldout=reading.pairs.heldout,
        dataset_test_split=reading.pairs.dataset_test_split,
        persona_dir=options.persona_dir,
        concept_column=reading.pairs.concept_column,
        prompt_column=reading.pairs.prompt_column,
        chosen_column=reading.pairs.chosen_column,
        rejected_column=reading.pairs.rejected_column,
        on_bad_row=reading.pairs.on_bad_row,
    )
    unnamed = topics_wanted(reading, pairs)
    if not unnamed:
        job.check_concepts(pairs.concepts)
    notes = (*pairs.notes, *about_prompts(pairs, reading.pairs.allow_leakage))
    _say_what_was_read(job, pairs, reading.data, notes)
    loaded = options.loaded()
    job.say(f"{loaded.name} in {loaded.dtype} on {loaded.device}")
    encoding = _encoded(job, reading, pairs, loaded)
    train, heldout = encoding.pairs.split(
        reading.pairs.holdout, reading.seed, allow_leakage=reading.pairs.allow_leakage
    )
    if loss is not None:
        refuse_averaged(loss, encoding.single_token, "the forecast of a run that moves the backbone")
    inputs = Inputs(reading.data, options, loaded, encoding, train, heldout, notes)
    if unnamed:
        inputs = with_topics(job, reading, inputs)
        job.check_concepts(inputs.encoding.pairs.concepts)
    return inputs


def _encoded(job: Job, reading: Reading, pairs: PairSet, loaded: LoadedModel) -> Encoding:
    """The pairs in tokens, and what there is to say of that."""
    from margincast.passes.tokenize import encode

    encoding = encode(
        pairs,
        loaded.tokenizer,
        eos=reading.pairs.eos,
        max_length=reading.max_length,
        context=loaded.context,
        on_bad_row=reading.pairs.on_bad_row,
    )
    left_out = len(encoding.pairs.skipped) - len(pairs.skipped)
    if left_out:
        pairs_of = "pair" if left_out == 1 else "pairs"
        reason = encoding.pairs.skipped[-left_out]
        job.say(f"left out {left_out} {pairs_of} that the model cannot read, the first: {reason}")
    if encoding.truncated:
        job.say(
            f"{encoding.cut_pairs} of {len(encoding.rows)} pairs are longer than max_length {encoding.max_length} (or "
            f"the model's context) and cut at their end: {encoding.truncated} responses lose tokens, no prompt does"
        )
    for notice in encoding.notices:
        job.say(notice)
    return encoding


def with_features(job: Job, inputs: Inputs, layers: bool = False) -> PairInputs:
    from margincast.features import features_of
    from margincast.features.kept import keep_features

    job.write_config()
    features = features_of(*_parts(inputs), **_options(job, inputs), layers=layers)
    _leave_to_first(job)
    if job.main:
        keep_features(job.out, features)
        _keep_small(job, inputs.options)
    return PairInputs(**vars(inputs), features=features)


def with_positions(job: Job, inputs: Inputs) -> PositionInputs:
    from margincast.features.positions import Positions, head_of, token_features

    job.write_config()
    features = token_features(*_parts(inputs), **_options(job, inputs))
    _leave_to_first(job)
    if job.main:
        _keep_small(job, inputs.options)
    loaded = inputs.loaded
    head = head_of(loaded)
    positions = Positions(*features, inputs.train, inputs.heldout, *head, loaded.name, loaded.hash, loaded.device)
    given = {each.name: getattr(inputs, each.name) for each in fields(Inputs)}  # a run may have other features, too
    return PositionInputs(**given, positions=positions)


def with_kept_positions(job: Job, inputs: Inputs) -> PositionInputs:
    """`with_positions`, and in the job's folder all that `attribute` needs of them."""
    from margincast.features.kept import keep_positions

    found = with_positions(job, inputs)
    if job.main:
        keep_positions(job.out, inputs.loaded, inputs.encoding, (inputs.train, inputs.heldout), inputs.options.cache)
    return found


def keep_for_attribution(job: Job, inputs: Inputs) -> None:
    """Leave in the job's folder what `attribute` needs of a run that has no use for features of every response
    position itself, and say how much that is, or why it is left out."""
    from margincast.features.extract import known_logits
    from margincast.features.kept import bytes_of_positions

    needed = bytes_of_positions(inputs.loaded, inputs.encoding)
    logits = known_logits(inputs.loaded, inputs.encoding.rows, inputs.options.cache)
    if needed > KEPT_BYTES or logits != "linear":
        why = f"the logits are {logits}" if logits != "linear" else f"they would take {needed / 1e9:.0f} GB"
        job.say(f"`attribute` will refuse this run: features of its response positions are not kept, as {why}")
        return
    job.say(f"for `attribute`, features of all response positions are kept in the cache: {needed / 1e6:.0f} MB")
    with_kept_positions(job, inputs)


def _parts(inputs: Inputs) -> tuple[LoadedModel, Encoding, PairSet, PairSet]:
    return inputs.loaded, inputs.encoding, inputs.train, inputs.heldout


def _options(job: Job, inputs: Inputs) -> Json:
    """How an extraction of `job` runs: its cache, its progress bar, where its features go, whom it tells."""
    return {"cache_dir": inputs.options.cache, "progress": job.progress, "copy_to": job.out, "say": job.say}


def _keep_small(job: Job, options: InputOptions) -> None:
    """Bring the cache down to its limit, where one is given."""
    if options.cache_limit is not None:
        from margincast.cli.cache import GIB, in_words
        from margincast.features.entries import shrink

        gone = shrink(options.cache, options.cache_limit * GIB, time.time() - job.seconds)
        if gone:
            job.say(f"The cache is at its limit; removed {len(gone)} entries: {in_words(sum(e.size for e in gone))}")


def _leave_to_first(job: Job) -> None:
    if job.command != "train" and not job.main:
        raise typer.Exit  # the rest is no work for several


def about_prompts(pairs: PairSet, allow_leakage: bool) -> list[str]:
    """What there is to say of prompts that several pairs have. Raises `InputError` for leakage that is not allowed."""
    from margincast.splitting import refuse_leakage, repeated_prompts, shared_prompts

    if not allow_leakage:
        refuse_leakage(pairs)
    shared, repeated = len(shared_prompts(pairs)), repeated_prompts(pairs)
    if shared:
        return [f"{shared} held-out pairs have a prompt that training pairs have too: their numbers are too good"]
    if repeated and any(pair.split is None for pair in pairs):
        return [f"{repeated} pairs have a prompt that another pair has too; the split keeps each prompt on one side"]
    return []


def _say_what_was_read(job: Job, pairs: PairSet, data: str, notes: tuple[str, ...]) -> None:
    job.say(notes[0])
    given = sum(pair.split == "heldout" for pair in pairs)
    heldout = f", {given} of them held out" if given else ""
    concepts = "1 concept" if len(pairs.concepts) == 1 else f"{len(pairs.concepts)} concepts"
    job.say(f"{len(pairs)} pairs in {concepts} from {data}{heldout}")
    for note in notes[1:]:
        job.say(note)
    if pairs.duplicates:
        first, again = pairs.duplicates[0]
        job.say(
            f"{len(pairs.duplicates)} rows repeat an earlier row exactly and are kept, the first: {again} = {first}"
        )
    if pairs.skipped:
        job.say(f"left out {len(pairs.skipped)} unusable rows, the first: {pairs.skipped[0]}")
