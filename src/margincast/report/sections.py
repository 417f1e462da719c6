"""Which sections does the page of a run folder have? One builder per command, fed from the folder's own files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from margincast.errors import InputError
from margincast.report import tables
from margincast.report.attribution import attribution_sections
from margincast.report.bounds import bound_sections
from margincast.report.decomposition import decomposition_sections
from margincast.report.effects import effect_sections
from margincast.report.page import PageFigure, PageTable, Section, render_page
from margincast.report.profile import profile_sections
from margincast.report.reading import read_comparison, read_inspection, read_run
from margincast.report.reproduction import reproduction_sections
from margincast.report.selection import selection_sections
from margincast.report.simulation import simulation_sections
from margincast.report.trained import answers_in_words, limits
from margincast.report.verdict import verdict_sections
from margincast.results import Json
from margincast.runs import load
from margincast.runs.store import write_text

ACCURACY = (
    "against the optimizer step. Accuracy is the share of pairs with a positive margin; before the first update every "
    "margin is 0 and counts as wrong."
)
GLOSSARY = (
    "A pair is a prompt with a chosen and a rejected response. Its reward margin says how much more training has "
    "raised the log-probability of the chosen response than that of the rejected one, times beta. A margin above 0 "
    "means that training moved the pair the right way, which half of all pairs do by chance. Held-out pairs take no "
    "part in training. Intervals are 95%, over pairs, where nothing else is said."
)


def read_summary(folder: Path) -> Json:
    """The `summary.json` of a run folder. Raises `InputError` when there is none, or the folder is damaged."""
    summary = load.read_summary(folder)
    if summary.get("command") not in BUILDERS:
        raise InputError(f"{folder} is not a run that can be reported; use the folder of: {', '.join(BUILDERS)}")
    return summary


def page_of(folder: Path) -> str:
    """The HTML page of a finished run folder. Raises `InputError` when `folder` is not one."""
    summary = read_summary(folder)
    try:
        config = summary["config"]
        title = f"margincast {summary['command']}: {config.get('data') or config.get('run') or folder.name}"
        return render_page(title, GLOSSARY, BUILDERS[summary["command"]](folder, summary), details_of(summary))
    except FileNotFoundError as error:
        raise InputError(f"{folder} is damaged: {error.filename} is missing") from error
    except (KeyError, json.JSONDecodeError) as error:
        raise InputError(f"{folder} is damaged: {type(error).__name__}: {error}") from error


def write_page(folder: Path) -> Path:
    """Write `report.html` of a finished run into its folder. Raises `InputError` as `page_of` does."""
    path = folder / "report.html"
    write_text(path, page_of(folder))
    return path


def details_of(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings, environment and data of a run, as text to unfold."""
    parts = {"Settings": "config", "Environment": "environment", "Data": "data", "Model": "model"}
    return [
        (name, yaml.safe_dump(summary[key], sort_keys=False, allow_unicode=True))
        for name, key in parts.items()
        if key in summary
    ]


def inspection_sections(folder: Path, summary: Mapping[str, Any]) -> list[Section]:
    results = summary["results"]
    both = {"both": "All statements together."}
    captions = {
        "matching": "Matching side: pairs whose chosen response is the later one in the alphabet, Yes of Yes and No "
        "(the paper's Figures 1 and 3).",
        "non-matching": "The other side: pairs whose chosen response is the earlier one.",
        **both,
    }
    clustered = results["concept_lengths"] is not None
    unit = "Lengths are in units where the mean half-distance between a concept's two clusters is 1."
    return [
        Section(
            title="Structure of the embeddings",
            texts=[
                "How alike are the model's embeddings of different concepts? "
                "This decides how concepts help or disturb each other in training."
            ],
            reading=read_inspection(results),
            figures=[
                PageFigure(folder / "figures" / f"cosines-{side}.svg", f"Average cosine between concepts. {caption}")
                for side, caption in (captions if clustered else both).items()
            ],
            tables=[
                PageTable(
                    unit if clustered else "No concept has two clusters that lie apart, so that nothing has a length.",
                    tables.STRUCTURE_HEADER,
                    tables.structure_rows(results),
                ),
                *(
                    [
                        PageTable(
                            "Conditions of Theorems 4.1 and 4.2 at the estimated values",
                            tables.CONDITION_HEADER,
                            tables.condition_rows(results["conditions"]),
                        )
                    ]
                    if results["conditions"]
                    else []
                ),
            ],
        )
    ]


def trained_sections(folder: Path, summary: Mapping[str, Any]) -> list[Section]:
    """Of a forecast of a trained backbone."""
    results = summary["results"]
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_bytes().splitlines()]
    listed = [
        PageTable("Every recorded step", tables.BAND_HEADER, tables.band_rows(steps, results)),
        PageTable(
            f"Step {steps[-1]}: the median of drawn runs, with the central 90% of them",
            tables.TRAINED_HEADER,
            tables.concept_rows(results["concepts"]),
        ),
    ]
    if results["sweep"]:
        name = next(iter(results["sweep"][0]))
        listed.append(PageTable(f"By {name}", (name, *tables.SWEEP_HEADER), tables.sweep_rows(name, results["sweep"])))
    return [
        *verdict_sections(results),
        Section(
            title="Forecast",
            texts=[f"This is a {results['origin']}. It is not exact.", limits(results)],
            reading=answers_in_words(results, steps[-1]),
            figures=[
                PageFigure(
                    folder / "figures" / "curves.svg",
                    f"Held-out reward margin and accuracy {ACCURACY} The band holds 90% of drawn runs.",
                )
            ],
            tables=listed,
        ),
    ]


def run_sections(folder: Path, summary: Mapping[str, Any]) -> list[Section]:
    if load.fitted(summary):
        return trained_sections(folder, summary)
    # Lines of bytes: those of a text also end at characters that names of concepts may hold, like U+2028.
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]
    concepts = summary["results"]["concepts"]
    return [
        *verdict_sections(summary["results"]),
        Section(
            title="Forecast" if summary["command"] == "forecast" else "Training",
            texts=[f"This is a {summary['results']['origin']}."],
            reading=read_run(summary),
            figures=[PageFigure(folder / "figures" / "curves.svg", f"Reward margin, loss and accuracy {ACCURACY}")],
            tables=[
                PageTable("Every recorded step", tables.STEP_HEADER, tables.step_rows(rows)),
                PageTable(f"Step {rows[-1]['step']}", tables.CONCEPT_HEADER, tables.concept_rows(concepts)),
            ],
        ),
        *effect_sections(folder, rows, summary["results"]),
        # Of responses of many tokens.
        *(profile_sections(folder, summary["results"]["length"]) if "length" in summary["results"] else []),
    ]


def reward_profile_sections(folder: Path, summary: Mapping[str, Any]) -> list[Section]:
    return profile_sections(folder, summary["results"]["length"])


def comparison_sections(folder: Path, summary: Mapping[str, Any]) -> list[Section]:
    results = summary["results"]
    a, b = results["titles"]
    return [
        Section(
            title=f"{a.capitalize()} against {b}",
            reading=read_comparison(results),
            figures=[
                PageFigure(folder / "figures" / "curves.svg", f"Held-out pairs. Dashed: {a}. Solid: {b}."),
                PageFigure(folder / "figures" / "margins.svg", f"Every held-out pair at step {results['step']}."),
            ],
            tables=[
                PageTable(
                    f"Step {results['step']}. A: {a}. B: {b}.", tables.AGREEMENT_HEADER, tables.agreement_rows(results)
                ),
                *(
                    [
                        PageTable(
                            f"Step {results['step']}: what was foretold and what came. CRPS: of accuracy, of margin.",
                            tables.FORETOLD_HEADER,
                            tables.foretold_rows(results["foretold"]),
                        )
                    ]
                    if "foretold" in results
                    else []
                ),
            ],
        )
    ]


def demo_sections(folder: Path, summary: Mapping[str, Any]) -> list[Section]:
    """What came of the demonstration, then all of its stages, one after the other."""
    parts = {stage: read_summary(folder / stage) for stage in summary["results"]["stages"]}
    sections = [in_short(parts)]
    for stage, text in summary["results"]["stages"].items():
        part = parts[stage]
        first, *rest = BUILDERS[part["command"]](folder / stage, part)
        sections += [replace(first, texts=[text, *first.texts]), *rest]
    return sections


def in_short(parts: Mapping[str, Mapping[str, Any]]) -> Section:
    """What the last layer's forecast expects, whether it came true, and what training all weights did instead."""
    verdict = parts["forecast"]["results"]["verdict"]
    return Section(
        title="In short",
        reading=[
            f"Training the last layer alone, as forecast: {verdict['decision']}. {verdict['reasons'][0]['says']}",
            f"The same for real: {read_comparison(parts['compare-head']['results'])[0]}",
            f"Training all weights, for real: {read_run(parts['train-all'])[0]}",
        ],
    )


BUILDERS: dict[str, Callable[[Path, Mapping[str, Any]], list[Section]]] = {
    "inspect": inspection_sections,
    "forecast": run_sections,
    "reward_profile": reward_profile_sections,
    "train": run_sections,
    "compare": comparison_sections,
    "decompose": decomposition_sections,
    "attribute": attribution_sections,
    "select": selection_sections,
    "bounds": bound_sections,
    "simulate": simulation_sections,
    "demo": demo_sections,
    "reproduce": reproduction_sections,
}
