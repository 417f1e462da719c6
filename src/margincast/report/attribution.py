"""How is an attribution shown? Heat maps of who helps whom, suspects with their texts, and what cleaning would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from margincast.report.figures import HELDOUT, INK, QUIET, TRAIN, new_figure, short
from margincast.report.page import PageFigure, PageTable, Section
from margincast.report.tables import Rows, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ISSUE_HEADER = ("issue", "pairs", "share", "flagged when", "what the score says")
WORST_HEADER = ("score", "pair", "concept", "text")
EFFECT_HEADER = ("training pair", "adds to the mean held-out margin", "P(mislabelled)")
TOP_HEADER = ("training pair", "contribution", "P(mislabelled)")
CHECK_HEADER = ("held-out pairs", "margin", "accuracy")
SHOWN = 8  # on the page, of each kind
# More concepts than this are drawn without numbers in their cells.
NUMBERED = 10


def issue_rows(suspects: Mapping[str, Any]) -> Rows:
    return [
        [
            kind,
            str(count),
            f"{count / suspects['pairs']:.1%}",
            suspects.get("flagged_when", {}).get(kind, f"> {suspects['thresholds'][kind]:g}"),
            suspects["meanings"][kind],
        ]
        for kind, count in suspects["counts"].items()
    ]


def worst_header(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return (*WORST_HEADER, "nearest such pair") if _of_two(rows) else WORST_HEADER


def _of_two(rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(row.get("partner_id") for row in rows)


def worst_rows(rows: Sequence[Mapping[str, Any]], kind: str) -> Rows:
    """Those that are flagged, or the nearest to it where none is."""
    flagged = [row for row in rows if row[f"is_{kind}_issue"]] or rows[:3]
    return [
        [
            f"{row[f'{kind}_score']:.3f}{'' if row[f'is_{kind}_issue'] else ' (not flagged)'}",
            row["id"],
            row["concept"],
            row["text"],
            *(
                [f"{row['partner_id']}: {row['partner_text']}" if row.get("partner_id") else ""]
                if _of_two(rows)
                else []
            ),
        ]
        for row in flagged[:SHOWN]
    ]


def worst_effects_title(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the training pairs of the smallest effects, smallest first, have in common."""
    harmful = bool(rows) and rows[0]["effect"] < 0
    return "Training pairs that harm most" if harmful else "Training pairs that help least; none harms"


def effect_rows(rows: Sequence[Mapping[str, Any]]) -> Rows:
    return [[row["id"], number(row["effect"]), number(row["mislabel_score"])] for row in rows]


def top_rows(rows: Sequence[Mapping[str, Any]]) -> Rows:
    return [[row["id"], number(row["contribution"]), number(row["mislabel_score"])] for row in rows]


def check_rows(check: Mapping[str, Any]) -> Rows:
    names = {"now": "as it is", "first_order": "cleaned, predicted", "rerun": "cleaned, run again (exact)"}
    return [
        [label, number(check[key]["margin"]), _share(check[key]["accuracy"])]
        for key, label in names.items()
        if key in check
    ]


def _share(value: float | None) -> str:
    return "not foreseen" if value is None else f"{value:.1%}"


def interaction_header(interaction: Mapping[str, Any]) -> tuple[str, ...]:
    return ("trained on \\ moves", *interaction["heldout"])


def interaction_rows(interaction: Mapping[str, Any], kind: str = "raw", at: int = -1) -> Rows:
    matrix = interaction[kind][at]
    return [[name, *map(number, row)] for name, row in zip(interaction["trained"], matrix, strict=True)]


def interaction_figure(interaction: Mapping[str, Any]) -> Figure:
    """Who helps (blue) and who harms (red) whom at the last step: as it is, and without the shared component where
    that is known."""
    trained, heldout = ([short(name) for name in interaction[side]] for side in ("trained", "heldout"))
    size = max(3.4, min(0.42 * len(trained) + 1.6, 14.0))
    kinds = _kinds(interaction)
    figure, axes = new_figure(len(kinds), width=size + 0.8, height=size)
    for column, (axis, (kind, title)) in enumerate(zip(axes[0], kinds.items(), strict=True)):
        matrix = interaction[kind][-1]
        largest = max((abs(value) for row in matrix for value in row), default=0.0) or 1.0
        image = axis.imshow(matrix, cmap="RdBu", vmin=-largest, vmax=largest)
        axis.grid(visible=False)
        fontsize = 7 if len(trained) <= 30 else 4
        axis.set_xticks(
            range(len(heldout)), heldout, rotation=60, ha="right", rotation_mode="anchor", fontsize=fontsize
        )
        axis.set_yticks(range(len(trained)), trained if column == 0 else [], fontsize=fontsize)
        axis.set_title(f"{title}, step {interaction['steps'][-1]}", fontsize=9, color=INK)
        axis.set_xlabel("held-out pairs of", fontsize=8, color=INK)
        if column == 0:
            axis.set_ylabel("training pairs of", fontsize=8, color=INK)
        if len(trained) <= NUMBERED:
            _numbers(axis, matrix, largest)
        figure.colorbar(image, ax=axis, shrink=0.8).ax.tick_params(labelsize=7)
    return figure


def _kinds(interaction: Mapping[str, Any]) -> dict[str, str]:
    """The matrices that there are, with their titles; for responses of many tokens only the first."""
    titles = {"raw": "as it is", "without_shared": "without the shared component"}
    return {kind: title for kind, title in titles.items() if interaction[kind] is not None}


def _numbers(axis: Axes, matrix: Sequence[Sequence[float]], largest: float) -> None:
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            colour = "w" if abs(value) > 0.6 * largest else INK
            axis.text(j, i, number(value, 2), ha="center", va="center", fontsize=6, color=colour)


def interaction_over_time(interaction: Mapping[str, Any]) -> Figure:
    """What a held-out concept gains from its own training pairs and from those of all others, step by step."""
    kinds = _kinds(interaction)
    figure, axes = new_figure(len(kinds), width=4.2)
    for axis, (kind, title) in zip(axes[0], kinds.items(), strict=True):
        for name in interaction["heldout"]:
            if name not in interaction["trained"]:
                continue
            b, a = interaction["heldout"].index(name), interaction["trained"].index(name)
            within = [matrix[a][b] for matrix in interaction[kind]]
            others = [sum(row[b] for k, row in enumerate(matrix) if k != a) for matrix in interaction[kind]]
            first = name == interaction["heldout"][0]
            axis.plot(
                interaction["steps"], within, color="#0072b2", linewidth=1.2, label="own concept" if first else None
            )
            axis.plot(
                interaction["steps"], others, color=HELDOUT, linewidth=1.2, linestyle=(0, (4, 1.5)),
                label="all other concepts" if first else None,
            )  # fmt: skip
        axis.axhline(0, color=TRAIN, linewidth=0.8)
        axis.set_title(title, fontsize=9, color=INK)
        axis.set_xlabel("step", fontsize=9, color=INK)
    axes[0][0].set_ylabel("part of the mean held-out margin", fontsize=9, color=INK)
    axes[0][0].legend(fontsize=8, frameon=False)
    return figure


def suspects_figure(issues: Sequence[Mapping[str, Any]]) -> Figure:
    """Left-out margins of all training pairs; those that are flagged as mislabelled stand out."""
    figure, axes = new_figure(1, width=5.6, height=3.0)
    axis = axes[0][0]
    margins = [[row["left_out_margin"] for row in issues if row["is_mislabel_issue"] is flag] for flag in (False, True)]
    axis.hist(margins, bins=60, stacked=True, color=[QUIET, HELDOUT], label=["not flagged", "likely mislabelled"])
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.set_xlabel("left-out margin (1: what a right label should have)", fontsize=9, color=INK)
    axis.set_ylabel("training pairs", fontsize=9, color=INK)
    axis.legend(fontsize=8, frameon=False)
    return figure


def read_attribution(results: Mapping[str, Any]) -> list[str]:
    """What was found, in plain words."""
    suspects, check = results["suspects"], results.get("counterfactual")
    counts = suspects["counts"]
    texts = [
        f"{counts['mislabel']} of {suspects['pairs']} training pairs are more likely mislabelled than not; "
        f"{counts['duplicate']} repeat another one, {counts['conflict']} contradict another one, "
        f"{counts['unlearnable']} never get a positive margin on the flow that scores them, which is not this run, and "
        f"{counts['harm']} push their own concept down more than up."
    ]
    rates = suspects["settings"]["noise_rate"]
    worst = max(rates, key=lambda name: rates[name])
    texts.append(f"The largest estimated share of wrong labels is that of {worst}: {rates[worst]:.0%}.")
    if "length" in suspects["settings"]:
        texts.append(read_length(suspects["settings"]["length"]))
    if check and not check["changed"]:
        texts.append("No pair is past the threshold: the exported pairs are the training pairs as they were.")
    elif check:
        moved = check["rerun"] if "rerun" in check else check["first_order"]
        texts.append(
            f"With {check['changed']} pairs {check['done']} held-out accuracy of this forecast would be "
            f"{moved['accuracy']:.1%} in place of {check['now']['accuracy']:.1%}, the mean margin "
            f"{number(moved['margin'])} in place of {number(check['now']['margin'])}."
        )
    return texts


def read_length(length: Mapping[str, float]) -> str:
    """What length alone explains of which response is chosen."""
    longer, correlation = length["chosen_is_longer"], length["correlation_with_left_out_margin"]
    return (
        f"The chosen response is the longer one in {longer:.0%} of the pairs whose responses differ in length; "
        f"left-out margins correlate {correlation:.2f} with the difference of log lengths."
    )


def attribution_sections(folder: Path, summary: Mapping[str, Any]) -> list[Section]:
    results = summary["results"]
    suspects = results["suspects"]
    return [
        Section(
            title="What was found",
            texts=[f"What is attributed: {results['origin']}.", f"Contributions are {results['exact']}."],
            reading=read_attribution(results),
            tables=[
                PageTable("Issues", ISSUE_HEADER, issue_rows(suspects), text=True),
                *effect_of_export(results),
            ],
        ),
        *([pair_section(results["pair"])] if results.get("pair") else []),
        Section(
            title="Suspects",
            texts=[
                "The likeliest cases of every issue. A left-out margin is what all other pairs foresee for a pair: 1 "
                "where they agree with its label, negative where they would have it the other way round."
            ],
            figures=[PageFigure(folder / "figures" / "suspects.svg", "Left-out margins of the training pairs.")],
            tables=[
                PageTable(
                    f"{kind}: {suspects['meanings'][kind]}", worst_header(rows), worst_rows(rows, kind), text=True
                )
                for kind, rows in suspects["worst"].items()
                if rows
            ],
        ),
        interaction_section(folder, results["interaction"]),
        Section(
            title="Training pairs that make or break generalisation",
            texts=["What single training pairs add to the mean held-out margin of this forecast."],
            tables=[
                PageTable("Training pairs that help most", EFFECT_HEADER, effect_rows(results["helping"])),
                PageTable(worst_effects_title(results["harming"]), EFFECT_HEADER, effect_rows(results["harming"])),
            ],
        ),
    ]


def interaction_section(folder: Path, interaction: Mapping[str, Any]) -> Section:
    kinds = _kinds(interaction)
    texts = [
        "Rows: the concept that training pairs belong to. Columns: the concept of held-out pairs. A cell is "
        "what the former add to the latter's mean margin; a column adds up to the mean margin of its concept."
    ]
    figures = [PageFigure(folder / "figures" / "interaction.svg", "Blue helps, red harms.")]
    if "without_shared" in kinds:
        texts.append(
            "Features share a large component, which moves all concepts with one response token alike. The second "
            "matrix leaves it out: what concepts teach one another beyond a common liking of one response."
        )
    if len(interaction["steps"]) > 1:
        over_time = "Solid: what each held-out concept gets from its own training pairs. Dashed: from all others."
        figures.append(PageFigure(folder / "figures" / "interaction-over-time.svg", over_time))
    tables = [
        PageTable(title.capitalize(), interaction_header(interaction), interaction_rows(interaction, kind))
        for kind, title in kinds.items()
    ]
    return Section(title="Who helps and who harms whom", texts=texts, figures=figures, tables=tables)


def pair_section(pair: Mapping[str, Any]) -> Section:
    return Section(
        title=f"What makes the margin of {pair['id']}",
        texts=[pair["text"]],
        reading=[
            f"Its margin is {number(pair['margin'])}: training pairs add {number(pair['positive'])} and take away "
            f"{number(-pair['negative'])}. The {len(pair['top'])} that matter most are below; the others add "
            f"{number(pair['rest'])}."
        ],
        tables=[
            PageTable(
                "Training pairs",
                (*TOP_HEADER, "text"),
                [[*cells, row["text"]] for cells, row in zip(top_rows(pair["top"]), pair["top"], strict=True)],
                text=True,
            )
        ],
    )


def effect_of_export(results: Mapping[str, Any]) -> list[PageTable]:
    check = results.get("counterfactual")
    if not check or not check["changed"]:
        return []
    return [PageTable("What the change would do to this forecast", CHECK_HEADER, check_rows(check))]
