"""margincast inspect"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from margincast.cli import options as opt
from margincast.cli.inputs import PairInputs, load_inputs
from margincast.cli.job import Job, open_job

if TYPE_CHECKING:
    from margincast.structure import Structure


def inspect(
    data: opt.Data,
    model: opt.Model = "smollm2",
    revision: opt.Revision = None,
    dtype: opt.DtypeOption = opt.Dtype.float32,
    device: opt.Device = "cpu",
    trust_remote_code: opt.TrustRemoteCode = False,
    persona_dir: opt.PersonaDir = None,
    cache_dir: opt.CacheDir = None,
    concept_column: opt.ConceptColumn = None,
    on_bad_row: opt.OnBadRowOption = opt.OnBadRow.fail,
    eos: opt.Eos = None,
    max_length: opt.MaxLength = 1024,
    holdout: opt.Holdout = 0.1,
    seed: opt.Seed = 1234,
    export_reference: Annotated[
        Path | None,
        typer.Option(
            "--export_reference",
            help="Write the pairs with ref_chosen_logps and ref_rejected_logps for TRL, to a .jsonl or .parquet file",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = None,
    out: opt.Out = None,
    resume: opt.Resume = True,
    json_: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Show the structure of the embeddings per concept, and which conditions of the theorems it meets.

    Example: margincast inspect persona:k4
    """
    job = open_job("inspect", locals())
    if export_reference:
        from margincast.training.references import check_references

        check_references(export_reference, eos)  # minutes of extraction earlier than the writing itself would
    inputs = load_inputs(job, persona_dir, cache_dir)
    if export_reference:
        from margincast.training.references import write_references

        write_references(export_reference, inputs.features, inputs.encoding)
        job.say(f"Pairs with reference log-probabilities for TRL: {export_reference}")
    job.done(run_inspection(job, inputs))


def run_inspection(job: Job, inputs: PairInputs) -> dict[str, Any]:
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
    summary = write_summary(job.out, "inspect", job.config, results, **inputs.sections(job.config))
    write_page(job.out)
    job.table("Embeddings", tables.STRUCTURE_HEADER, tables.structure_rows(results))
    if results["conditions"]:
        rows = tables.condition_rows(results["conditions"])
        job.table("Conditions of Theorems 4.1 and 4.2 on these data", tables.CONDITION_HEADER, rows)
    return summary


def structure_results(structure: Structure) -> dict[str, Any]:
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
