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
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from margincast.diagnose.kernel import pair_points
from margincast.diagnose.kinds import Evidence, Scores, kinds
from margincast.diagnose.mislabel import mislabelled
from margincast.diagnose.points import Points, Settings
from margincast.diagnose.sequences import lengths_of, reference_of, sequence_points
from margincast.diagnose.treatment import treatment
from margincast.errors import InputError
from margincast.features.positions import Positions, TokenFeatures
from margincast.frozen.forecast import Forecast
from margincast.frozen.tokens.forecast import TokenForecast
from margincast.records import Features, FeatureSet, PairSet
from margincast.results import Json, Shown
from margincast.runs.store import plain, write_json, write_text

ISSUES, SETTINGS = "issues.jsonl", "suspects.json"


@dataclass(frozen=True, repr=False)
class Suspects(Shown):
    """Scores of training pairs. `issues`: one row per pair, in their order, as `issues.jsonl` holds them.

    settings: what the scores were computed with; `noise_rate` per concept is the estimated share of wrong labels
    """

    presenter: ClassVar[str] = "suspects"

    pairs: PairSet
    issues: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any]

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {kind}" for kind, count in self.counts().items())
        return f"Suspects(of {len(self.pairs)} pairs: {counts})"

    def worst(self, kind: str, count: int = 10) -> list[Mapping[str, Any]]:
        """The `count` rows with the largest scores of `kind`, one of `kinds()`, largest first."""
        if kind not in kinds():
            raise InputError(f"there is no issue {kind!r}; use one of {', '.join(kinds())}")
        return sorted(self.issues, key=lambda row: -row[f"{kind}_score"])[:count]

    def counts(self) -> dict[str, int]:
        """How many pairs are flagged, by kind."""
        return {kind: sum(row[f"is_{kind}_issue"] for row in self.issues) for kind in kinds()}

    def summary(self) -> Json:
        """Counts, worst examples with their texts, and settings, for JSON and for pages."""
        texts = {pair.id: pair for pair in self.pairs}
        worst = {
            kind: [{**row, **_texts(texts, row, kind)} for row in self.worst(kind) if row[f"{kind}_score"] > 0]
            for kind in kinds()
        }
        return {
            "pairs": len(self.issues),
            "counts": self.counts(),
            "meanings": {name: kind.meaning for name, kind in kinds().items()},
            "thresholds": {name: kind.threshold for name, kind in kinds().items()},
            "flagged_when": {name: kind.flagged_when for name, kind in kinds().items()},
            "worst": worst,
            "settings": dict(self.settings),
        }

    def report(self, count: int = 5) -> str:
        """The worst examples of every kind, as text."""
        lines = []
        summary = self.summary()
        for kind, known in kinds().items():
            lines.append(f"{kind}: {summary['counts'][kind]} of {len(self.issues)} pairs. Score: {known.meaning}.")
            for row in summary["worst"][kind][:count]:
                mark = "*" if row[f"is_{kind}_issue"] else " "
                beside = f" | {row['partner_id']}: {row['partner_text']}" if row.get("partner_id") else ""
                lines.append(f"  {mark} {row[f'{kind}_score']:.3f}  {row['id']}: {row['text']}{beside}")
        return "\n".join(lines)

    def with_column(self, name: str, values: Sequence[Any]) -> Suspects:
        """With one more column, a value per pair."""
        rows = ({**row, name: value} for row, value in zip(self.issues, values, strict=True))
        return replace(self, issues=tuple(rows))

    def save(self, folder: str | Path) -> None:
        """Write `issues.jsonl`, `suspects.json` (settings) and the pairs they are about, as JSON."""
        from margincast.runs.save import pair_row

        folder = Path(folder)
        write_issues(folder / ISSUES, self)
        rows = [pair_row(pair, "train") for pair in self.pairs]
        write_json(folder / SETTINGS, {"settings": dict(self.settings), "pairs": rows})

    @classmethod
    def load(cls, folder: str | Path) -> Suspects:
        """What `save` wrote. Raises `InputError` when it is not there, or damaged."""
        from margincast.runs.load import pair_of

        folder = Path(folder)
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


def find_issues(
    features: Features | FeatureSet | Positions | Forecast | TokenForecast,
    *,
    settings: Settings | None = None,
    seed: int = 0,
) -> Suspects:
    """Score every training pair of `features` or of an exact forecast, or every pair of one split.

    settings: of the kernel, `KernelSettings`, for responses of many tokens `SequenceSettings`; None chooses what
    is not fixed of them by leave-one-out loss

    Rows of responses of many tokens have two more columns, chosen less rejected: `length_difference` in tokens and
    `reference_log_ratio` in log-probability under the model; `settings["length"]` says what length alone explains.

    Time: the cube of the pairs up to 4,096 of them, then proportional. Raises `InputError` for features of one position
    of responses of more than one token, and below three pairs.
    """
    if isinstance(features, Forecast | TokenForecast):
        features = features.features
    train, pairs = _training(features)
    if len(pairs) < 3:
        raise InputError(f"suspects are found from the other pairs, at least 2 of them; there are {len(pairs)} pairs")
    points, pushed = _points(train, pairs, features)
    found = mislabelled(points, cast("Any", settings), seed)
    heldout = torch.arange(len(pushed)) >= len(pairs)
    evidence = Evidence(pairs, train, points, found, pushed, heldout if bool(heldout.any()) else None)
    scores = {name: kind.score(evidence) for name, kind in kinds().items()}
    used = {
        **(found.kernel.said() if found.kernel else {}),
        "ridge": found.ridge,
        "noise_rate": dict(zip(pairs.concepts, found.noise.rate.tolist(), strict=True)),
        "margin_slope": dict(zip(pairs.concepts, found.noise.slope.tolist(), strict=True)),
    }
    suspects = Suspects(pairs, tuple(_rows(pairs, scores, found.margins)), used)
    return suspects if isinstance(train, FeatureSet) else with_lengths(suspects, train, found.margins)


def _training(features: Features | FeatureSet | Positions) -> tuple[FeatureSet | TokenFeatures, PairSet]:
    """Features of the training pairs: of one position where responses are single tokens, else of all."""
    if isinstance(features, Positions):
        train = features.train
        if len(train.target) > 2 * train.pairs:
            return train, features.train_pairs
        return train.as_single(features.train_pairs), features.train_pairs
    train_set = features.train if isinstance(features, Features) else features
    if not train_set.single_token:
        raise InputError(
            "a response has more than one token, whose suspects are found from features of every response position: "
            "give those of `extract_positions`"
        )
    return train_set, train_set.pairs


def _points(
    train: FeatureSet | TokenFeatures, pairs: PairSet, features: Features | FeatureSet | Positions
) -> tuple[Points[Any], Points[Any]]:
    """Places of the training pairs in their kernel, and these with the held-out pairs' after them where those are of
    many tokens too.
    """
    if isinstance(train, FeatureSet):
        single = pair_points(train, treatment(train.hidden)(train.hidden), pairs.concepts)
        return single, single
    points = sequence_points(train, pairs)
    if not isinstance(features, Positions) or not len(features.heldout_pairs):
        return points, points
    heldout = sequence_points(features.heldout, features.heldout_pairs)
    return points, points.beside(heldout, PairSet(pairs.pairs + features.heldout_pairs.pairs))


def with_lengths(suspects: Suspects, train: TokenFeatures, margins: Tensor) -> Suspects:
    """With how the responses differ without being read, and how far length alone explains which one is chosen.

    margins: (pairs,) left out;  train: features of the pairs
    """
    lengths, sums = lengths_of(train), reference_of(train)
    longer = lengths[:, 0] - lengths[:, 1]
    found = suspects.with_column("length_difference", longer.long().tolist())
    ratios = [None] * len(longer) if sums is None else (sums[:, 0] - sums[:, 1]).tolist()
    found = found.with_column("reference_log_ratio", ratios)
    both = torch.stack([margins.double(), lengths.log()[:, 0] - lengths.log()[:, 1]])
    varies = bool((both.std(dim=1) > 0).all())
    unequal = longer != 0
    length = {
        # Of pairs whose responses differ in length: how often the label would be right if the longer one were chosen.
        "chosen_is_longer": float((longer > 0).sum()) / max(1, int(unequal.sum())),
        "correlation_with_left_out_margin": float(torch.corrcoef(both)[0, 1]) if varies else 0.0,
    }
    return replace(found, settings={**found.settings, "length": length})


def _rows(pairs: PairSet, scores: Mapping[str, Scores], margins: Tensor) -> Sequence[Mapping[str, Any]]:
    values = {kind: found.score.tolist() for kind, found in scores.items()}
    rows = []
    for row, pair in enumerate(pairs):
        issue: Json = {"id": pair.id, "concept": pair.concept, "source": pair.source, "line": pair.line}
        for kind, found in scores.items():
            issue[f"{kind}_score"] = min(max(values[kind][row], 0.0), 1.0)
            issue[f"is_{kind}_issue"] = bool(found.flag[row])
        issue["left_out_margin"] = float(margins[row])
        for kind, found in scores.items():
            if found.neighbours is not None:
                partner = int(found.neighbours.partner[row])
                issue[f"{kind}_of"] = pairs[partner].id if partner >= 0 else None
                issue[f"{kind}_word_overlap"] = float(found.neighbours.overlap[row])
        rows.append(issue)
    return rows


def _texts(pairs: Mapping[str, Any], row: Mapping[str, Any], kind: str) -> Json:
    """The pair's own text, and its partner's where the issue is about two."""
    result: Json = {"text": shown(pairs[row["id"]])}
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
    openings = (" ".join(response.split())[:40] for response in (chosen, rejected))
    return f"{text} [{' > '.join(openings)}]"
