"""The tables that the terminal and the HTML page share: a header and rows of text for each kind of result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Rows = list[list[str]]


def number(value: float | None, digits: int = 3) -> str:
    """A number at `digits` significant digits, or `-` where there is none. Thousands are written out."""
    if value is None or value != value:
        return "-"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+0" in text and abs(value) < 1e6 else text


def interval(estimate: Mapping[str, float], digits: int = 3) -> str:
    value, low, high = (number(estimate[name], digits) for name in ("value", "low", "high"))
    return value if value == "-" else f"{value} [{low}, {high}]"


def percent(estimate: Mapping[str, float | None]) -> str:
    """A share with its interval, or `-` where there is no value."""
    if estimate["value"] is None or estimate["value"] != estimate["value"]:
        return "-"
    if estimate["low"] is None or estimate["low"] != estimate["low"]:
        return f"{estimate['value']:.0%}"  # of one text or pair, which has no interval
    return f"{estimate['value']:.0%} [{estimate['low']:.0%}, {estimate['high']:.0%}]"


STEP_HEADER = ("step", "train loss", "margin", "accuracy", "held-out loss", "margin", "accuracy")


def step_rows(rows: Sequence[Mapping[str, Any]]) -> Rows:
    """The rows of `metrics.jsonl`."""
    keys = [f"{prefix}{name}" for prefix in ("", "eval_") for name in ("loss", "rewards/margins", "rewards/accuracies")]
    return [[str(row["step"]), *(_cell(key, row[key]) for key in keys)] for row in rows]


def _cell(key: str, value: float | None) -> str:
    # A run that recorded no training pairs has no value in their columns.
    return f"{value:.1%}" if "accuracies" in key and value is not None else number(value, 4)


CONCEPT_HEADER = ("concept", "held-out margin [95%]", "held-out accuracy [95%]")


def concept_rows(concepts: Mapping[str, Any]) -> Rows:
    """The `results.concepts` of a forecast or training run."""
    return [
        [name, interval(result["heldout_margin"]), percent(result["heldout_accuracy"])]
        for name, result in concepts.items()
    ]


BAND_HEADER = ("step", "held-out margin [90%]", "held-out accuracy [90%]")


def band_rows(steps: Sequence[int], results: Mapping[str, Any]) -> Rows:
    """Held-out margin and accuracy of a forecast with intervals, at every recorded step."""
    lines = zip(steps, results["heldout_margin"], results["heldout_accuracy"], strict=True)
    return [[str(step), interval(margin), percent(accuracy)] for step, margin, accuracy in lines]


TRAINED_HEADER = ("concept", "held-out margin [90%]", "held-out accuracy [90%]")
SWEEP_HEADER = ("held-out accuracy [90%]", "held-out margin [90%]", "accuracy stops rising at step [90%]")


def sweep_rows(name: str, rows: Sequence[Mapping[str, Any]]) -> Rows:
    """The `results.sweep` of a forecast: the end of the run by every value of a setting."""
    return [
        [
            f"{row[name]:g}",
            percent(row["heldout_accuracy"]),
            interval(row["heldout_margin"]),
            interval(row["stops_rising"]),
        ]
        for row in rows
    ]


STRUCTURE_HEADER = ("quantity", "value")
STRUCTURE_QUANTITIES = (
    ("l_b, length of the shared component", "shared_norm"),
    ("v, noise per coordinate", "noise"),
    ("d v^2, noise energy", "noise_energy"),
    ("effective dimension of the noise", "effective_dimension"),
    ("Z, concepts that use one token", "max_token_count"),
    ("largest number of interacting concepts", "interacting_concepts"),
)


def structure_rows(results: Mapping[str, Any]) -> Rows:
    """A row per quantity that there is: data without two clusters a concept have no lengths, one concept no cosines."""
    centred = "mean cosine between concepts, centred" + (", matching side" if results["concept_lengths"] else "")
    cosines = (("mean cosine between concepts, raw", "mean_cosine_raw"), (centred, "mean_cosine_centred"))
    rows = [[name, number(results[key])] for name, key in (*cosines, *STRUCTURE_QUANTITIES)]
    return [row for row in rows if row[1] != "-"]


CONDITION_HEADER = ("condition", "left side", "right side", "holds")


def condition_rows(checks: Sequence[Mapping[str, Any]]) -> Rows:
    return [[c["name"], number(c["left"]), number(c["right"]), "yes" if c["holds"] else "no"] for c in checks]


AGREEMENT_HEADER = (
    "held-out pairs",
    "n",
    "margin A",
    "margin B",
    "accuracy A",
    "accuracy B",
    "Spearman [95%]",
    "max |A-B|",
)


def agreement_rows(results: Mapping[str, Any]) -> Rows:
    """The `results` of a comparison: all held-out pairs, then every concept."""
    rows = []
    for name, agreement in {"all": results["heldout"], **results["concepts"]}.items():
        low, high = agreement["intervals"]["spearman"]
        rows.append(
            [
                name,
                str(agreement["pairs"]),
                number(agreement["margin_a"]),
                number(agreement["margin_b"]),
                f"{agreement['accuracy_a']:.1%}",
                f"{agreement['accuracy_b']:.1%}",
                interval({"value": agreement["spearman"], "low": low, "high": high}),
                number(agreement["max_abs_difference"]),
            ]
        )
    return rows


FORETOLD_HEADER = ("held-out pairs", "accuracy foretold [90%]", "came", "", "margin foretold [90%]", "came", "", "CRPS")


def foretold_rows(outcomes: Sequence[Mapping[str, Any]]) -> Rows:
    """The `results.foretold` of a comparison: a row per concept, accuracy and margin."""
    by_name: dict[str, dict[str, Mapping[str, Any]]] = {}
    for each in outcomes:
        by_name.setdefault(each["concept"], {})[each["quantity"]] = each
    rows = []
    for name, both in by_name.items():
        accuracy, margin = both["accuracy"], both["margin"]
        where = ["inside" if each["inside"] else "OUTSIDE" for each in (accuracy, margin)]
        scores = f"{number(accuracy['crps'], 2)}, {number(margin['crps'], 2)}"
        came = f"{accuracy['run']:.0%}", number(margin["run"])
        rows.append([name, percent(accuracy), came[0], where[0], interval(margin), came[1], where[1], scores])
    return rows
