"""What else does a run change? Its figure, tables and sentences, from `metrics.jsonl` and `results.effects`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from margincast.report.figures import HELDOUT, INK, finish_curves, new_figure, save_figure, styles
from margincast.report.page import PageFigure, PageTable, Section
from margincast.report.tables import Rows, interval, number, percent
from margincast.results import Json
from margincast.runs.layout import FIGURES, figure_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "What else changes"
FIGURE = "effects"
PREFIX = "effects/"
# Of all texts, pairs and answers: the name in a table of steps.
COLUMNS = {
    "kl": "KL per token",
    "perplexity": "perplexity",
    "greedy_changed": "next token changed",
    "repetition": "repeated 4-grams",
    "answer_tokens": "answer length",
    "answers_changed": "answers changed",
    "chosen_logps": "log p(chosen)",
    "length_slope": "reward per token",
}
SHARES = ("greedy_changed", "repetition", "answers_changed")
# Keys of `results.effects` in words.
MEASURED = {
    "kl": "KL(before || after) per token, nats",
    "perplexity_before": "perplexity before",
    "perplexity_after": "perplexity after",
    "perplexity_factor": "perplexity, after over before",
    "greedy_changed": "tokens whose most likely alternative changed",
    "repetition_before": "repeated 4-grams of answers, before",
    "repetition": "repeated 4-grams of answers, after",
    "answer_tokens_before": "tokens of an answer, before",
    "answer_tokens": "tokens of an answer, after",
    "answers_changed": "greedy answers that changed",
    "chosen_logps_before": "log-probability of held-out chosen responses, before",
    "chosen_logps_after": "log-probability of held-out chosen responses, after",
    "chosen_logps_change": "its change",
    "length_slope": "reward per token of a held-out response",
}
CONCEPT_HEADER = ("beside the training data", "margin [95%]", "accuracy [95%]")
MEASURED_HEADER = ("measured", "value [95%]")
GIBBERISH, LARGE_KL = 1.5, 0.5


def has_effects(results: Mapping[str, Any]) -> bool:
    return bool(results.get("effects"))


def leave_effects(folder: Path, rows: Sequence[Json]) -> None:
    """The figure of a run's effects, where it has any. rows: of `metrics.jsonl`"""
    if any(name.startswith(PREFIX) for name in rows[0]):
        save_figure(effect_curves(rows), folder / FIGURES, FIGURE)


def effect_curves(rows: Sequence[Json]) -> Figure:
    """Everything that was measured beside the pairs, against the step: a panel each."""
    panels = [name for name in COLUMNS if f"{PREFIX}{name}" in rows[0]]
    margins = sorted(name for name in rows[0] if name.startswith(PREFIX) and name.endswith("rewards/margins"))
    count = len(panels) + bool(margins)
    columns = min(count, 4)
    figure, axes = new_figure(columns, -(-count // columns), height=2.5, width=3.2)
    steps, flat = [row["step"] for row in rows], list(axes.flat)
    for axis, name in zip(flat, panels, strict=False):
        axis.plot(steps, [row[f"{PREFIX}{name}"] for row in rows], color=HELDOUT, linewidth=2)
        finish_curves(axis, COLUMNS[name], accuracy=name in SHARES)
    if margins:
        axis = flat[len(panels)]
        names = [name.removeprefix(PREFIX).removesuffix("rewards/margins").rstrip("/_") for name in margins]
        for name, (_, style) in zip(margins, styles(names).items(), strict=True):
            axis.plot(steps, [row[name] for row in rows], linewidth=1.2, **style)
        axis.axhline(0, color=INK, linewidth=0.6)
        finish_curves(axis, "margin, other concepts", accuracy=False)
        if len(names) <= 8:
            axis.legend(fontsize=6, frameon=False)
    for axis in flat[count:]:
        axis.set_visible(False)
    return figure


def step_header(rows: Sequence[Json]) -> tuple[str, ...]:
    return ("step", *(words for name, words in COLUMNS.items() if f"{PREFIX}{name}" in rows[0]))


def step_rows(rows: Sequence[Json]) -> Rows:
    names = [name for name in COLUMNS if f"{PREFIX}{name}" in rows[0]]
    return [[str(row["step"]), *(_cell(name, row[f"{PREFIX}{name}"]) for name in names)] for row in rows]


def _cell(name: str, value: float | None) -> str:
    return f"{value:.1%}" if name in SHARES and value is not None else number(value, 4)


def measured_rows(effects: Mapping[str, Any]) -> Rows:
    """The numbers of the last step, and, of several sets of texts, each set's."""
    listed = list(_measured("", effects))
    for name, each in effects["sets"].items():
        listed += _measured(f"{name}: ", each)
    return listed


def _measured(prefix: str, effects: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, words in MEASURED.items():
        if name in effects:
            share = name.removesuffix("_before") in SHARES
            yield [f"{prefix}{words}", percent(effects[name]) if share else interval(effects[name])]


def concept_rows(effects: Mapping[str, Any]) -> Rows:
    """Margins of concepts that are not in the training data, the largest first."""
    found = [
        (name, concept, each)
        for name, of in effects["sets"].items()
        for concept, each in of.get("concepts", {}).items()
    ]
    found.sort(key=lambda item: -item[2]["margin"]["value"])
    return [
        [concept if concept == name else f"{name}: {concept}", interval(each["margin"]), percent(each["accuracy"])]
        for name, concept, each in found
    ]


def read_effects(results: Mapping[str, Any]) -> list[str]:
    """What was found, in sentences."""
    effects, texts = results["effects"], []
    if "kl" in effects:
        factor = effects["perplexity_factor"]["value"]
        verdict = (
            "The model has lost much of what it knew of such text."
            if factor > GIBBERISH
            else "That is far from where it began."
            if effects["kl"]["value"] > LARGE_KL
            else ""
        )
        texts.append(
            f"On {effects['texts']} texts outside the training data the next-token distribution is "
            f"{interval(effects['kl'])} nats a token from where it began, and perplexity goes from "
            f"{number(effects['perplexity_before']['value'])} to {number(effects['perplexity_after']['value'])} "
            f"(times {interval(effects['perplexity_factor'])}). {verdict}".strip()
        )
    texts += [said for read in (_on_answers, _on_length, _on_chosen, _on_concepts) if (said := read(effects))]
    if "stopped" in results:
        texts.insert(0, f"The run stopped early: {results['stopped']['reason']}.")
    return texts


def _on_answers(effects: Mapping[str, Any]) -> str:
    if "answers" not in effects:
        return ""
    return (
        f"Of {effects['answers']} greedy answers {percent(effects['answers_changed'])} are others than before; "
        f"{percent(effects['repetition'])} of their 4-grams repeat, before it was "
        f"{effects['repetition_before']['value']:.0%}; they have {interval(effects['answer_tokens'])} tokens, before "
        f"{number(effects['answer_tokens_before']['value'])}."
    )


def _on_length(effects: Mapping[str, Any]) -> str:
    slope = effects.get("length_slope")
    if slope is None or slope["low"] is None or slope["value"] != slope["value"]:
        return ""
    if slope["low"] > 0:
        sense = "longer responses are rewarded for their length"
    elif slope["high"] < 0:
        sense = "longer responses lose by their length"
    else:
        sense = "no pull towards longer or shorter responses is seen"
    return f"The reward of a held-out response changes by {interval(slope)} a token: {sense}."


def _on_chosen(effects: Mapping[str, Any]) -> str:
    change = effects.get("chosen_logps_change")
    if change is None:
        return ""
    sense = "less likely" if change["value"] < 0 else "more likely"
    return f"Chosen responses of held-out pairs became {sense}: their log-probability changed by {interval(change)}."


def _on_concepts(effects: Mapping[str, Any]) -> str:
    found = [
        (each["margin"], concept) for of in effects["sets"].values() for concept, each in of.get("concepts", {}).items()
    ]
    moved = sorted((item for item in found if _sure(item[0])), key=lambda item: -abs(item[0]["value"]))
    if not moved:
        return "" if not found else "No concept outside the training data moved beyond what its pairs vary by."
    listed = ", ".join(f"{concept} ({interval(margin)})" for margin, concept in moved[:3])
    return f"Of {len(found)} concepts outside the training data {len(moved)} moved, most of all {listed}."


def _sure(margin: Mapping[str, float | None]) -> bool:
    """Whether its interval is on one side of 0."""
    low, high = margin["low"], margin["high"]
    return low is not None and high is not None and (low > 0 or high < 0)


def effect_sections(folder: Path, rows: Sequence[Json], results: Mapping[str, Any]) -> list[Section]:
    """The part of a run's page, where anything was measured."""
    if not has_effects(results):
        return []
    effects = results["effects"]
    concepts = concept_rows(effects)
    tables = [
        PageTable("Every recorded step", step_header(rows), step_rows(rows)),
        PageTable(
            f"Step {rows[-1]['step']}. Intervals are over texts, pairs or answers.",
            MEASURED_HEADER,
            measured_rows(effects),
        ),
        *([PageTable("Concepts that are not in the training data", CONCEPT_HEADER, concepts)] if concepts else []),
    ]
    return [
        Section(
            title=TITLE,
            texts=[
                "Texts and pairs beside the training data (--eval_data), at recorded steps. KL is that of the model "
                "at step 0 from the model of the step, over the whole vocabulary."
            ],
            reading=read_effects(results),
            figures=[PageFigure(figure_path(folder, FIGURE), "What was measured, against the optimizer step.")],
            tables=tables,
        )
    ]
