"""A run told by its training pairs: a row for each, and the folder of `attribute`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from margincast.report import attribution as shown
from margincast.report.figures import save_figure
from margincast.report.saving import Contents, saving
from margincast.report.tables import number
from margincast.results import PRESENTERS, Json, Presenter
from margincast.runs.layout import ATTRIBUTION
from margincast.runs.save import data_summary
from margincast.runs.store import write_jsonl

if TYPE_CHECKING:
    from margincast.diagnose.diagnosis import Diagnosis

EFFECTS = 10  # training pairs of each direction
DONE = {"drop": "dropped", "flip": "flipped", "weight": "given less weight"}


def _rows(diagnosis: Diagnosis) -> list[Json]:
    return [dict(row) for row in diagnosis.suspects.issues]


def _summary(diagnosis: Diagnosis) -> tuple[str, Sequence[str], Sequence[Sequence[str]]]:
    title = (
        f"Step {diagnosis.step}: training pairs that harm most. Mean held-out margin {number(diagnosis.heldout.margin)}"
    )
    return title, shown.EFFECT_HEADER, shown.effect_rows(_effects(_ranked(diagnosis)))


def _leave(diagnosis: Diagnosis, folder: Path) -> Contents:
    diagnosis.suspects.save(folder)
    write_jsonl(folder / ATTRIBUTION, [asdict(parts) for parts in diagnosis.margins])
    results = _results(diagnosis)
    save_figure(shown.interaction_figure(results["interaction"]), folder / "figures", "interaction")
    if len(diagnosis.interaction.steps) > 1:
        over_time = shown.interaction_over_time(results["interaction"])
        save_figure(over_time, folder / "figures", "interaction-over-time")
    save_figure(shown.suspects_figure(diagnosis.suspects.issues), folder / "figures", "suspects")
    train, heldout = diagnosis.features.train_pairs, diagnosis.features.heldout_pairs
    data = data_summary(type(train)(train.pairs + heldout.pairs), train, heldout, "given in Python")
    return Contents("attribute", results, {"beta": diagnosis.recipe.beta}, {"data": data})


def _results(diagnosis: Diagnosis) -> Json:
    ranked, cleaned = _ranked(diagnosis), diagnosis.cleaned
    results: Json = {
        "origin": diagnosis.origin,
        "exact": diagnosis.exact,
        "step": diagnosis.step,
        "sum_error": diagnosis.sum_error,
        "heldout": asdict(diagnosis.heldout),
        "suspects": diagnosis.suspects.summary(),
        "interaction": diagnosis.interaction.as_dict(),
        "helping": _effects(ranked[::-1]),
        "harming": _effects(ranked),
        "pair": _pair(diagnosis),
    }
    if cleaned is None:
        return results
    levels = {name: each for name, each in asdict(cleaned.effect).items() if each is not None}
    changed = {"changed": len(cleaned.changed), "done": DONE[cleaned.action]}
    exported = {"file": cleaned.file, "changed": list(cleaned.changed), "action": cleaned.action}
    return {**results, "exported": exported, "counterfactual": {**changed, **levels}}


def _ranked(diagnosis: Diagnosis) -> list[Mapping[str, Any]]:
    """Training pairs by what they add to the mean held-out margin, the most harmful first."""
    return sorted(diagnosis.suspects.issues, key=lambda row: row["heldout_effect"])


def _effects(rows: Sequence[Mapping[str, Any]]) -> list[Json]:
    return [
        {"id": row["id"], "effect": row["heldout_effect"], "mislabel_score": row["mislabel_score"]}
        for row in rows[:EFFECTS]
    ]


def _pair(diagnosis: Diagnosis) -> Json | None:
    """The parts of one margin, with texts and how likely each training pair is mislabelled."""
    if diagnosis.pair is None:
        return None
    suspicion = {row["id"]: row["mislabel_score"] for row in diagnosis.suspects.issues}
    top = [
        {**asdict(each), "text": diagnosis.text(each.id), "mislabel_score": suspicion[each.id]}
        for each in diagnosis.pair.top
    ]
    return {**asdict(diagnosis.pair), "top": top, "text": diagnosis.text(diagnosis.pair.id)}


PRESENTERS.register("diagnosis")(Presenter(_rows, _summary, saving(_leave)))
