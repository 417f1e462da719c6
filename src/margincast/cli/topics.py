"""Topics in place of concepts, where the data name none: found from the prompts, before features are extracted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from margincast.errors import InputError

if TYPE_CHECKING:
    from margincast.cli.inputs import Inputs, Reading
    from margincast.cli.job import Job
    from margincast.records import PairSet

AUTO, NONE = "auto", "none"


def topics_wanted(reading: Reading, pairs: PairSet) -> bool:
    """Whether topics may take the place of the concepts. Raises `InputError` for what is no number of topics."""
    said, named = reading.pairs.topics, reading.pairs.concept_column is not None or len(pairs.concepts) > 1
    if said in (AUTO, NONE):
        return said == AUTO and not named
    if not said.isascii() or not said.isdigit() or int(said) < 1:
        raise InputError(f"--topics {said}: give {AUTO}, {NONE} or a number of topics")
    if named:
        raise InputError(f"--topics {said}: the pairs have concepts, {', '.join(pairs.concepts[:3])} ...; leave it out")
    return True


def with_topics(job: Job, reading: Reading, inputs: Inputs) -> Inputs:
    """With the topics of the prompts as concepts, where there are any; a pass over the prompts, which is cached.

    By itself (`auto`) that is done for responses of many tokens, and where there are prompts enough for two topics.
    """
    from margincast.features.prompts import prompts_of
    from margincast.structure.topics import SMALLEST, find_topics

    said = reading.pairs.topics
    if said == AUTO and (inputs.encoding.single_token or len(inputs.train) < 2 * SMALLEST):
        return inputs
    job.write_config()
    train, heldout = inputs.train, inputs.heldout
    prompts = prompts_of(
        inputs.loaded,
        inputs.encoding,
        train,
        heldout,
        cache_dir=inputs.options.cache,
        progress=job.progress,
        say=job.say,
    )
    count = None if said == AUTO else int(said)
    topics = find_topics(prompts.train, train, count=count, seed=reading.seed).place(prompts.heldout, heldout)
    if len(topics.names) == 1:
        note = "no topics repeat among the prompts: all pairs are one concept"
        job.say(note)
        return replace(inputs, notes=(*inputs.notes, note))
    note = f"{len(topics.names)} topics found in the prompts take the place of concepts (--topics {NONE} for one)"
    job.say(note)
    rows = [[name, *map(str, sizes)] for name, sizes in zip(topics.names, topics.sizes, strict=True)]
    job.table("", ["topic", "training pairs", "held-out pairs"], rows)
    both = topics.relabel(inputs.encoding.pairs)
    return replace(
        inputs,
        encoding=replace(inputs.encoding, pairs=both),
        train=topics.relabel(train),
        heldout=topics.relabel(heldout),
        notes=(*inputs.notes, note),
    )
