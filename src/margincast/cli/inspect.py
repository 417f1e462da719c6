"""margincast inspect"""

from __future__ import annotations

from typing import Any

from margincast.cli import options as opt
from margincast.cli.inputs import Inputs, load_inputs
from margincast.cli.job import Job, open_job


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
    out: opt.Out = None,
    resume: opt.Resume = True,
    json_: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Show the structure of the embeddings per concept, and which conditions of the theorems it meets.

    Example: margincast inspect persona:k4
    """
    job = open_job("inspect", locals())
    inputs = load_inputs(job, persona_dir, cache_dir)
    job.done(run_inspection(job, inputs))


def run_inspection(job: Job, inputs: Inputs) -> dict[str, Any]:
    """Inspect the features, save figures and summary, print the tables."""
    from margincast.report import tables
    from margincast.report.figures import cosine_matrices, save_figure
    from margincast.report.sections import write_page
    from margincast.runs import structure_results, write_summary
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
