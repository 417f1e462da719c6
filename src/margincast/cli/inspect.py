"""margincast inspect"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from margincast.cli.inputs import Inputs, PairInputs, Reading, read_inputs, with_features
from margincast.cli.job import Job, open_job
from margincast.cli.options import Data, InputOptions, OutputOptions, PairOptions, ReadOptions
from margincast.recipe.fields import INPUT, OUTPUT, option
from margincast.results import Json


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions:
    """What else the extraction pass is good for."""

    export_reference: Path | None = option(
        None,
        "Write the pairs with ref_chosen_logps and ref_rejected_logps for TRL, to a .jsonl or .parquet file",
        OUTPUT,
    )


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """What of the pairs is shown."""

    show: int = option(1, "Print this many pairs as the model reads them", INPUT, least=0, setting=False)


def inspect(
    data: Data,
    inputs: InputOptions,
    pairs: PairOptions,
    read: ReadOptions,
    reference: ReferenceOptions,
    shown: ShowOptions,
    output: OutputOptions,
) -> None:
    """Show the structure of the embeddings per concept, and which conditions of the theorems it meets.

    Example: margincast inspect persona:k4
    """
    job = open_job("inspect", output, inputs, pairs, read, reference, data=data)
    path = reference.export_reference
    if path:
        from margincast.training.references import check_references

        check_references(path, pairs.eos)  # minutes of extraction earlier than the writing itself would
    encoded = read_inputs(job, Reading(data, inputs, pairs, read.seed, read.max_length))
    show_pairs(job, encoded, shown.show)
    loaded = with_features(job, encoded)
    if path:
        from margincast.training.references import write_references

        write_references(path, loaded.features, loaded.encoding)
        job.say(f"Pairs with reference log-probabilities for TRL: {path}")
    job.done(run_inspection(job, loaded))


def show_pairs(job: Job, inputs: Inputs, count: int) -> None:
    """Print the first pairs token by token, as text in which special tokens are seen."""
    from margincast.report.shown_pairs import pair_text

    heldout = {pair.id for pair in inputs.heldout}
    for pair, row in list(zip(inputs.encoding.pairs, inputs.encoding.rows, strict=True))[:count]:
        split = "held out" if pair.id in heldout else "training"
        job.say(pair_text(pair, row, inputs.loaded.tokenizer, split))


def run_inspection(job: Job, inputs: PairInputs) -> Json:
    """Inspect the features, save the result, print the tables."""
    from margincast.report import tables
    from margincast.structure import inspect_features

    summary = job.keep(inspect_features(inputs.features), inputs.sections())
    results = summary["results"]
    job.table("Embeddings", tables.STRUCTURE_HEADER, tables.structure_rows(results))
    if results["conditions"]:
        rows = tables.condition_rows(results["conditions"])
        job.table("Conditions of Theorems 4.1 and 4.2 on these data", tables.CONDITION_HEADER, rows)
    return summary
