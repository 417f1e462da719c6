"""Which training pairs should a person look at? One table of scores, each in [0, 1] with a stated meaning.

suspects = find_issues(features)
suspects.issues          # a row per training pair
print(suspects.report())
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from margincast.diagnose.kernel import KernelSettings, pair_points
from margincast.diagnose.learning import harm, unlearnable
from margincast.diagnose.mislabel import mislabelled
from margincast.diagnose.neighbours import Neighbours, conflicts, duplicates
from margincast.diagnose.treatment import treatment
from margincast.errors import InputError
from margincast.records import FeatureSet, PairSet
from margincast.runs.store import plain, write_json, write_text

KINDS = ("mislabel", "duplicate", "conflict", "unlearnable", "harm")
MEANINGS = {
    "mislabel": "probability that chosen and rejected are exchanged, foreseen from all other pairs",
    "duplicate": "cosine to the nearest pair of the same preference; 1: the same prompt",
    "conflict": "cosine to the nearest pair of the opposite preference; 1: the same prompt",
    "unlearnable": "share of the run during which the pair is not learned though it is trained on",
    "harm": "share of the pair's push on its own concept's other pairs that is downward",
}
# More likely wrong than right; as close as rewordings were on persona statements, with a third of their words the
# same; never learned by the time at which generalisation is best; pushes its own concept down more than up, and further
# from half than chance would by DEVIATIONS.
THRESHOLDS = {"mislabel": 0.5, "duplicate": 0.9, "conflict": 0.9, "unlearnable": 1.0, "harm": 0.5}
SAME_WORDS, DEVIATIONS = 0.3, 2.0
ISSUES, SETTINGS = "issues.jsonl", "suspects.json"


@dataclass(frozen=True)
class Suspects:
    """Scores of training pairs. `issues`: one row per pair, in their order, as `issues.jsonl` holds them.

    settings: what the scores were computed with; `noise_rate` per concept is the estimated share of wrong labels
    """

    pairs: PairSet
    issues: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any]

    def worst(self, kind: str, count: int = 10) -> list[Mapping[str, Any]]:
        """The `count` rows with the largest scores of `kind`, one of `KINDS`, largest first."""
        if kind not in KINDS:
            raise InputError(f"there is no issue {kind!r}; use one of {', '.join(KINDS)}")
        return sorted(self.issues, key=lambda row: -row[f"{kind}_score"])[:count]

    def counts(self) -> dict[str, int]:
        """How many pairs are flagged, by kind."""
        return {kind: sum(row[f"is_{kind}_issue"] for row in self.issues) for kind in KINDS}

    def summary(self) -> dict[str, Any]:
        """Counts, worst examples with their texts, and settings, for JSON and for pages."""
        texts = {pair.id: pair for pair in self.pairs}
        worst = {
            kind: [{**row, **_texts(texts, row, kind)} for row in self.worst(kind) if row[f"{kind}_score"] > 0]
            for kind in KINDS
        }
        return {
            "pairs": len(self.issues),
            "counts": self.counts(),
            "meanings": MEANINGS,
            "thresholds": THRESHOLDS,
            "worst": worst,
            "settings": dict(self.settings),
        }

    def report(self, count: int = 5) -> str:
        """The worst examples of every kind, as text."""
        lines = []
        summary = self.summary()
        for kind in KINDS:
            lines.append(f"{kind}: {summary['counts'][kind]} of {len(self.issues)} pairs. Score: {MEANINGS[kind]}.")
            for row in summary["worst"][kind][:count]:
                mark = "*" if row[f"is_{kind}_issue"] else " "
                beside = f" | {row['partner_id']}: {row['partner_text']}" if row.get("partner_id") else ""
                lines.append(f"  {mark} {row[f'{kind}_score']:.3f}  {row['id']}: {row['text']}{beside}")
        return "\n".join(lines)

    def with_column(self, name: str, values: Sequence[Any]) -> Suspects:
        """With one more column, a value per pair."""
        rows = ({**row, name: value} for row, value in zip(self.issues, values, strict=True))
        return replace(self, issues=tuple(rows))

    def save(self, folder: Path) -> None:
        """Write `issues.jsonl`, `suspects.json` (settings) and the pairs they are about, as JSON."""
        from margincast.runs.save import pair_row

        write_issues(folder / ISSUES, self)
        rows = [pair_row(pair, "train") for pair in self.pairs]
        write_json(folder / SETTINGS, {"settings": dict(self.settings), "pairs": rows})

    @classmethod
    def load(cls, folder: Path) -> Suspects:
        """What `save` wrote. Raises `InputError` when it is not there, or damaged."""
        from margincast.runs.load import pair_of

        try:
            issues = [json.loads(line) for line in (folder / ISSUES).read_bytes().splitlines()]
            kept = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            pairs = PairSet(tuple(map(pair_of, kept["pairs"])))
            if [row["id"] for row in issues] != [pair.id for pair in pairs]:
                raise ValueError("issues and pairs are not the same")
            return cls(pairs, tuple(issues), kept["settings"])
        except OSError as error:
            raise InputError(f"{folder} holds no suspects: {error.filename} is missing") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"the suspects in {folder} are damaged: {type(error).__name__}: {error}") from error


def write_issues(path: Path, suspects: Suspects) -> None:
    """`issues.jsonl`, a row per training pair."""
    lines = (json.dumps(plain(dict(row)), ensure_ascii=False, allow_nan=False) for row in suspects.issues)
    write_text(path, "".join(line + "\n" for line in lines))


def find_issues(train: FeatureSet, *, settings: KernelSettings | None = None, seed: int = 0) -> Suspects:
    """Score every training pair. settings: of the kernel; None chooses them by leave-one-out loss.

    Time: the cube of the pairs up to 4,096 of them, then proportional. Raises `InputError` for responses of more than
    one token, whose pairs `diagnose.mislabel.mislabelled_in` takes with a kernel of their own, and below three pairs.
    """
    if not train.single_token:
        raise InputError(
            "a response has more than one token, and suspects are found among single-token responses; "
            "`margincast decompose DATA --all` ranks pairs of long responses"
        )
    if len(train.pairs) < 3:
        raise InputError(
            f"suspects are found from the other pairs, at least 2 of them; there are {len(train.pairs)} pairs"
        )
    concepts = train.pairs.concepts
    points = pair_points(train, treatment(train.hidden)(train.hidden), concepts)
    found = mislabelled(points, settings, seed)
    near = {"duplicate": duplicates(points, train.pairs), "conflict": conflicts(points, train.pairs)}
    downward, chance = harm(points)
    scores: dict[str, Tensor] = {
        "mislabel": found.probability,
        **{kind: neighbours.score for kind, neighbours in near.items()},
        "unlearnable": unlearnable(found.spectrum, found.ridge),
        "harm": downward,
    }
    kernel = found.kernel or KernelSettings()
    used = {
        "kernel_width": kernel.width,
        "concept_bond": kernel.bond,
        "ridge": found.ridge,
        "noise_rate": dict(zip(concepts, found.noise.rate.tolist(), strict=True)),
        "margin_slope": dict(zip(concepts, found.noise.slope.tolist(), strict=True)),
    }
    return Suspects(train.pairs, tuple(_rows(train.pairs, scores, found.margins, near, chance)), used)


def _rows(
    pairs: PairSet, scores: Mapping[str, Tensor], margins: Tensor, near: Mapping[str, Neighbours], chance: Tensor
) -> Sequence[Mapping[str, Any]]:
    flags = {kind: value > THRESHOLDS[kind] for kind, value in scores.items()}
    flags["harm"] = scores["harm"] > THRESHOLDS["harm"] + DEVIATIONS * chance
    flags["unlearnable"] = scores["unlearnable"] >= THRESHOLDS["unlearnable"]
    for kind, neighbours in near.items():
        flags[kind] &= (neighbours.overlap >= SAME_WORDS) | (neighbours.score >= 1.0)
    values = {kind: value.tolist() for kind, value in scores.items()}
    rows = []
    for row, pair in enumerate(pairs):
        issue: dict[str, Any] = {"id": pair.id, "concept": pair.concept, "source": pair.source, "line": pair.line}
        for kind in KINDS:
            issue[f"{kind}_score"] = min(max(values[kind][row], 0.0), 1.0)
            issue[f"is_{kind}_issue"] = bool(flags[kind][row])
        issue["left_out_margin"] = float(margins[row])
        for kind, neighbours in near.items():
            partner = int(neighbours.partner[row])
            issue[f"{kind}_of"] = pairs[partner].id if partner >= 0 else None
            issue[f"{kind}_word_overlap"] = float(neighbours.overlap[row])
        rows.append(issue)
    return rows


def _texts(pairs: Mapping[str, Any], row: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The pair's own text, and its partner's where the issue is about two."""
    result: dict[str, Any] = {"text": shown(pairs[row["id"]])}
    partner = row.get(f"{kind}_of")
    if partner:
        result |= {"partner_id": partner, "partner_text": shown(pairs[partner])}
    return result


def shown(pair: Any) -> str:
    """A pair in one line: its statement or prompt, and what it prefers to what."""
    prompt = pair.statement or (pair.prompt if isinstance(pair.prompt, str) else pair.prompt[-1]["content"])
    chosen, rejected = (
        side if isinstance(side, str) else side[-1]["content"] if side else "" for side in (pair.chosen, pair.rejected)
    )
    text = " ".join(prompt.split())
    if len(text) > 160:
        text = f"{text[:100]} … {text[-55:]}"
    return f"{text} [{chosen.strip()[:40]} > {rejected.strip()[:40]}]"
