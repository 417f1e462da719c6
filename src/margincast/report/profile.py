"""How are rewards by position, turn and length shown? What `length.jsonl` and the summary say, a figure, a section."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from margincast.intervals import Estimate, Slope, mean_interval, normal_interval, proportion
from margincast.report.figures import HELDOUT, INK, TRAIN, new_figure, save_figure
from margincast.report.page import PageFigure, PageTable, Section
from margincast.report.tables import Rows, interval, number, percent
from margincast.results import Json
from margincast.runs.layout import LENGTH
from margincast.runs.metrics import concept_rows
from margincast.runs.store import write_jsonl

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from margincast.frozen.tokens.profile import RewardProfile, SplitProfile

SPLITS = {"train": "training", "heldout": "held-out"}
PROFILE_HEADER = ("", "training [95%]", "held-out [95%]")
PROFILE_CONCEPT_HEADER = ("concept", "held-out margin [95%]", "length-controlled [95%]", "won by length")
TURN_HEADER = ("turn", "pairs", "chosen", "rejected", "margin")
WON = "won_by_length"
NAMES = {
    "margin": "margin",
    "length_controlled_margin": "length-controlled margin",
    WON: "pairs won by length",
    "slope": "slope of reward, a token",
    "slope_chosen": "slope, chosen alone",
    "slope_rejected": "slope, rejected alone",
    "tokens_for_70": "tokens for 70% of the margin",
}


def leave_profile(profile: RewardProfile, folder: Path) -> Json:
    """Write `length.jsonl` and the figure of positions; give `profile_results`."""
    write_jsonl(folder / LENGTH, profile.rows())
    save_figure(carried_shares(profile), folder / "figures", "positions")
    return profile_results(profile)


def profile_results(profile: RewardProfile) -> Json:
    """`results.length` of a summary: of held-out pairs, of training pairs under "train", and of concepts."""
    rows = profile.rows()
    train, heldout = ([row for row in rows if row["split"] == name] for name in SPLITS)
    concepts = {
        name: _margins(profile.heldout, heldout, members)
        for name, members in concept_rows(profile.heldout.pairs).items()
    }
    of_heldout, of_train = _split_results(profile.heldout, heldout), _split_results(profile.train, train)
    return {**of_heldout, "train": of_train, "concepts": concepts}


def profile_rows(length: Mapping[str, Any]) -> Rows:
    """A row per number, training beside held-out."""
    shown: dict[str, Callable[[Any], str]] = {
        "margin": interval,
        "length_controlled_margin": interval,
        WON: percent,
        "slope": interval,
        "slope_chosen": interval,
        "slope_rejected": interval,
        "tokens_for_70": number,
    }
    both = (length["train"], length)
    return [[NAMES[key], *(text(split[key]) for split in both)] for key, text in shown.items()]


def profile_concept_rows(length: Mapping[str, Any]) -> Rows:
    return [
        [name, interval(row["margin"]), interval(row["length_controlled_margin"]), percent(row[WON])]
        for name, row in length["concepts"].items()
    ]


def turn_rows(turns: Sequence[Mapping[str, Any]]) -> Rows:
    return [
        [
            f"{turn['number'] + 1}, {turn['role']}",
            str(turn["pairs"]),
            *(number(turn[name]) for name in ("chosen", "rejected", "margin")),
        ]
        for turn in turns
    ]


def read_profile(length: Mapping[str, Any]) -> list[str]:
    """The result in sentences."""
    count, slope = length["tokens_for_70"], length["slope"]
    texts = []
    if count is not None:
        texts.append(f"For half of the held-out pairs the first {count:.0f} tokens carry 70% of the margin.")
    if slope["low"] is not None and slope["low"] == slope["low"]:
        sure = slope["low"] > 0 or slope["high"] < 0
        way = "gains" if slope["value"] > 0 else "loses"
        texts.append(
            f"A held-out response {way} {number(abs(slope['value']))} of reward with each token"
            + (". " if sure else ", which may be chance (the interval holds 0). ")
            + f"Of the held-out pairs {length[WON]['value']:.0%} are won by their length: their margin is above 0, and "
            "is not once the slope times their length difference is taken away."
        )
    return texts


def profile_sections(folder: Path, length: Mapping[str, Any]) -> list[Section]:
    tables = [PageTable("Margins, and what they owe to length", PROFILE_HEADER, profile_rows(length))]
    if len(length["concepts"]) > 1:
        tables.append(PageTable("By concept", PROFILE_CONCEPT_HEADER, profile_concept_rows(length)))
    if length["turns"]:
        caption = "Mean rewards of the messages of held-out responses that have several"
        tables.append(PageTable(caption, TURN_HEADER, turn_rows(length["turns"])))
    return [
        Section(
            title="Where in the response",
            texts=[
                "Rewards are sums over tokens. The slope is that of the reward in the number of tokens, over the "
                "chosen and rejected responses of a split together, with an intercept for each side; its error is "
                "clustered by pair."
            ],
            reading=read_profile(length),
            figures=[
                PageFigure(
                    folder / "figures" / "positions.svg",
                    "Share of a pair's margin that the first tokens of both its responses carry: the median, and the "
                    "middle half of the pairs. It passes 1 where later tokens take something back.",
                )
            ],
            tables=tables,
        )
    ]


def carried_shares(profile: RewardProfile) -> Figure:
    """Median and quartiles over pairs of the share that the first tokens carry, of both splits."""
    figure, axes = new_figure(1, width=5.6, height=3.6)
    axis = axes[0][0]
    for split, colour, label in ((profile.train, TRAIN, "training"), (profile.heldout, HELDOUT, "held-out")):
        shares = split.shares[split.shares.isfinite().all(1)]
        if not len(shares):
            continue
        tokens = range(1, shares.shape[1] + 1)
        low, middle, high = torch.quantile(shares, torch.tensor([0.25, 0.5, 0.75], dtype=shares.dtype), dim=0)
        axis.fill_between(tokens, low, high, color=colour, alpha=0.18, linewidth=0)
        axis.plot(tokens, middle, color=colour, linewidth=1.8, label=label)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:.0f}")
    axis.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
    axis.set_ylim(-0.25, 1.75)
    axis.set_xlabel("first tokens of both responses", fontsize=9, color=INK)
    axis.set_ylabel("share of the margin", fontsize=9, color=INK)
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        axis.legend(handles, labels, fontsize=8, frameon=False)
    return figure


def _split_results(split: SplitProfile, rows: Sequence[Json]) -> Json:
    found = _margins(split, rows, range(len(rows)))
    found["slope"] = _slope(split.slope())
    found["slope_chosen"], found["slope_rejected"] = _slope(split.slope("chosen")), _slope(split.slope("rejected"))
    for key in (name for name in rows[0] if name.startswith("tokens_for_")) if rows else ():
        counts = [row[key] for row in rows if row[key] is not None]
        found[key] = float(torch.tensor(counts).double().quantile(0.5)) if counts else None
    found["turns"] = _turns(rows)
    return found


def _margins(split: SplitProfile, rows: Sequence[Json], members: Sequence[int]) -> Json:
    """Intervals over pairs, of length-controlled margins given the slope."""
    index = list(members)
    won = [rows[k][WON] for k in index]
    unknown = Estimate(float("nan"), float("nan"), float("nan"))
    return {
        "margin": mean_interval(split.margins[index].numpy()).as_dict(),
        "length_controlled_margin": mean_interval(split.length_controlled[index].numpy()).as_dict(),
        WON: (unknown if None in won else proportion(sum(won), len(index))).as_dict(),
    }


def _slope(slope: Slope) -> Json:
    estimate: Estimate = normal_interval(slope.value, slope.error)
    return {**estimate.as_dict(), "standard_error": slope.error}


def _turns(rows: Sequence[Json]) -> list[Json]:
    """Mean rewards of each message, over the pairs whose responses have several."""
    several = [row["turns"] for row in rows if row["turns"] and len(row["turns"]) > 1]
    found: list[Json] = []
    for turn in range(max(map(len, several), default=0)):
        there = [turns[turn] for turns in several if len(turns) > turn]
        roles = {each["role"] for each in there}
        sides = {side: sum(each[side] for each in there) / len(there) for side in ("chosen", "rejected")}
        found.append(
            {
                "number": turn,
                "role": " or ".join(sorted(roles)),
                "pairs": len(there),
                **sides,
                "margin": sides["chosen"] - sides["rejected"],
            }
        )
    return found
