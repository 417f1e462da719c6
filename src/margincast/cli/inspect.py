"""margincast inspect"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from margincast.cli.inputs import Inputs, PairInputs, Reading, read_inputs, with_features
from margincast.cli.job import Job, open_job
from margincast.cli.options import Data, InputOptions, OutputOptions, PairOptions, ReadOptions
from margincast.recipe.fields import INPUT, OUTPUT, option
from margincast.records import Json

if TYPE_CHECKING:
    from margincast.structure import Structure


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
    """Inspect the features, save figures and summary, print the tables."""
    from margincast.report import tables
    from margincast.report.figures import cosine_matrices, save_figure
    from margincast.report.sections import write_page
    from margincast.runs.save import write_summary
    from margincast.structure import inspect_features

    structure = inspect_features(inputs.features)
    for side in structure.raw:
        name = f"cosines-{side.replace('_', '-')}"
        save_figure(cosine_matrices(structure, side), job.out / "figures", name)
    results = {**structure_results(structure), "seconds": job.seconds}
    summary = write_summary(job.out, "inspect", job.config, results, **inputs.sections())
    write_page(job.out)
    job.table("Embeddings", tables.STRUCTURE_HEADER, tables.structure_rows(results))
    if results["conditions"]:
        rows = tables.condition_rows(results["conditions"])
        job.table("Conditions of Theorems 4.1 and 4.2 on these data", tables.CONDITION_HEADER, rows)
    return summary


def structure_results(structure: Structure) -> Json:
    """The `results` of `inspect`. Lengths are in units where the mean half-distance of a concept's clusters is 1."""
    from dataclasses import asdict

    from margincast.theory.measured import measured_conditions

    clusters = structure.clusters
    nothing = float("nan")
    cosines = {
        f"cosine_{kind}{'' if side == 'both' else f'_{side}'}": matrix.tolist()
        for kind, by_side in (("raw", structure.raw), ("centred", structure.centred_))
        for side, matrix in by_side.items()
    }
    return {
        "concepts": list(structure.concepts),
        "pairs": structure.pairs,
        "hidden": structure.hidden,
        **cosines,
        "mean_cosine_raw": structure.mean_between(structure.raw["both"]),
        "mean_cosine_centred": structure.mean_between(structure.centred_["matching"]),
        "shared_norm": clusters.shared_norm if clusters else nothing,
        "noise": clusters.noise if clusters else nothing,
        "noise_energy": clusters.noise_energy if clusters else nothing,
        "effective_dimension": clusters.effective_dimension if clusters else nothing,
        "unit": clusters.unit if clusters else nothing,
        "concept_lengths": clusters.lengths.tolist() if clusters else None,
        "concept_gram": clusters.gram.tolist() if clusters else None,
        "angle_with_shared": clusters.angle_with_shared.tolist() if clusters else None,
        "midpoint_spread": clusters.midpoint_spread if clusters else nothing,
        "max_token_count": structure.sharing.max_token_count,
        "interacting_concepts": structure.sharing.interacting_concepts,
        "conditions": [asdict(check) for check in measured_conditions(structure)],
    }
