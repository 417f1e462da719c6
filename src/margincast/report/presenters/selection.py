"""Rules side by side: a row per training pair with what the picked rule says of it, and the folder of `select`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from margincast.records import PairSet
from margincast.report import selection as shown
from margincast.report.figures import save_figure
from margincast.report.saving import Contents, saving
from margincast.results import PRESENTERS, Json, Presenter
from margincast.runs.layout import SELECTION
from margincast.runs.save import data_summary
from margincast.runs.store import write_jsonl
from margincast.selection.choosing import Choice, Selection
from margincast.selection.judging import Worth
from margincast.selection.subset import write_chosen


def _rows(found: Selection) -> list[Json]:
    choice = found.rules[found.picked]
    kept = set(choice.rows.tolist())
    return [
        {"id": pair.id, "keep": row in kept, "rule": found.picked, "value": value}
        for row, (pair, value) in enumerate(zip(found.train_pairs, choice.value.tolist(), strict=True))
    ]


def _summary(found: Selection) -> tuple[str, Sequence[str], Sequence[Sequence[str]]]:
    title = f"{found.size} of {len(found.train_pairs)} pairs, * is picked: {found.picked}"
    return title, shown.RULE_HEADER, shown.rule_rows(_results(found))


def _leave(found: Selection, folder: Path) -> Contents:
    write_jsonl(folder / SELECTION, _rows(found))
    results = {**_results(found), **_files(found, folder)}
    save_figure(shown.rules_figure(results), folder / "figures", "rules")
    if results["budget"]:
        save_figure(shown.curve_figure(results["budget"]), folder / "figures", "curve")
    both = PairSet(found.train_pairs.pairs + found.heldout_pairs.pairs)
    data = data_summary(both, found.train_pairs, found.heldout_pairs, "given in Python")
    return Contents("select", results, {"keep": found.size}, {"data": data})


def _files(found: Selection, folder: Path) -> Json:
    """The files of the pairs to train on, and of the held-out ones where the first does not hold them too.

    as_it_came: whether the chosen rows are those of their file
    """
    both = PairSet(found.train_pairs.pairs + found.heldout_pairs.pairs)
    whole = found.size == len(found.train_pairs)
    chosen, untouched = write_chosen(found.chosen, both, folder, "chosen", whole=whole)
    files: Json = {"chosen": chosen.name, "heldout": None, "as_it_came": untouched}
    apart = {pair.source for pair in found.heldout_pairs}.isdisjoint(pair.source for pair in found.train_pairs)
    if whole and untouched and not apart:
        return files
    heldout, _ = write_chosen(found.heldout_pairs, both, folder, "heldout", whole=False)
    return {**files, "heldout": heldout.name}


def _worth(worth: Worth) -> Json:
    return {"margin": worth.margin.as_dict(), "accuracy": worth.accuracy.as_dict()}


def _rule(choice: Choice) -> Json:
    return {
        **_worth(choice.worth),
        "over_random": choice.over_random.as_dict(),
        "over_all": choice.over_all.as_dict(),
        "concepts": {name: _worth(worth) for name, worth in choice.concepts.items()},
        "parts": len(choice.margins),
        "meaning": choice.meaning,
    }


def _results(found: Selection) -> Json:
    return {
        "pairs": len(found.train_pairs),
        "size": found.size,
        "target": found.target,
        "judging_pairs": len(found.judges),
        "steps": found.steps,
        "picked": found.picked,
        "advice": list(found.advice),
        "rules": {name: _rule(choice) for name, choice in found.rules.items()},
        "all_pairs": _worth(found.whole),
        "left_out": list(found.left_out),
        "budget": None if found.budget is None else asdict(found.budget),
    }


PRESENTERS.register("selection")(Presenter(_rows, _summary, saving(_leave)))
