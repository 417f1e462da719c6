"""The structure of embeddings: cosines between concepts, raw and without their mean; the folder of `inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from margincast.report.figures import cosine_matrices, save_figure
from margincast.report.saving import Contents, saving
from margincast.report.tables import number
from margincast.results import PRESENTERS, Json, Presenter
from margincast.structure import Structure
from margincast.theory.measured import measured_conditions


def _rows(structure: Structure) -> list[Json]:
    raw, centred = structure.raw["both"].tolist(), structure.centred_["matching"].tolist()
    return [
        {"concept": one, "other": other, "cosine_raw": raw[i][j], "cosine_centred": centred[i][j]}
        for i, one in enumerate(structure.concepts)
        for j, other in enumerate(structure.concepts)
    ]


def _summary(structure: Structure) -> tuple[str, Sequence[str], Sequence[Sequence[str]]]:
    title = f"{structure.pairs} pairs of width {structure.hidden}: cosines between concepts, centred"
    rows = [
        [name, *map(number, row)]
        for name, row in zip(structure.concepts, structure.centred_["matching"].tolist(), strict=True)
    ]
    return title, ("concept", *structure.concepts), rows


def _leave(structure: Structure, folder: Path) -> Contents:
    for side in structure.raw:
        save_figure(cosine_matrices(structure, side), folder / "figures", f"cosines-{side.replace('_', '-')}")
    return Contents("inspect", _results(structure))


def _results(structure: Structure) -> Json:
    """Lengths are in units where the mean half-distance of a concept's clusters is 1."""
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
        "mean_cosine_centred": structure.mean_between(structure.centred_["matching" if clusters else "both"]),
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


PRESENTERS.register("structure")(Presenter(_rows, _summary, saving(_leave)))
