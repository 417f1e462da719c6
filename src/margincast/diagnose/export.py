"""What becomes of the suspects? A training set that TRL reads unchanged, and a reason for every change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from margincast.diagnose.kinds import kinds as known_kinds
from margincast.diagnose.suspects import Suspects
from margincast.errors import InputError
from margincast.frozen.tokens.displacement import Displacements, Exported
from margincast.records import Pair, PairSet
from margincast.runs.store import write_jsonl

ACTIONS = ("drop", "flip", "weight")


@dataclass(frozen=True)
class Change:
    """What is done to pair `id`, and why. weight: what is left of it, 0 when dropped; partner: the pair it is about"""

    id: str
    source: str
    line: int
    action: str
    issue: str
    score: float
    weight: float
    reason: str
    partner: str | None = None


def plan_changes(
    suspects: Suspects,
    action: str = "drop",
    kinds: Sequence[str] = ("mislabel",),
    *,
    threshold: float | None = None,
    share: float | None = None,
) -> list[Change]:
    """One change per pair that has an issue of `kinds`, in the order of the pairs.

    action: "drop", "flip" (exchange chosen and rejected) or "weight" (1 - score)
    threshold: scores above it in place of each kind's own;  share: the worst pairs, this share of all, of one kind
    Of duplicates the first stays; of two pairs in conflict the one that is likelier mislabelled is changed. A pair with
    several issues is changed for the first of `kinds`.

    Raises `InputError` for an unknown action or kind, for a flip of issues that it cannot mend, and for a share of
    several kinds, whose scores are of different things.
    """
    if action not in ACTIONS:
        raise InputError(f"action must be one of {', '.join(ACTIONS)}, got {action!r}")
    wrong = [kind for kind in kinds if kind not in known_kinds()]
    if wrong or not kinds:
        raise InputError(f"issues are {', '.join(known_kinds())}, got {', '.join(wrong) or 'none'}")
    unmended = [kind for kind in kinds if not known_kinds()[kind].flippable]
    if action == "flip" and unmended:
        raise InputError(f"exchanging the responses does not mend {', '.join(unmended)}; drop or weight these")
    if share is not None and (threshold is not None or len(kinds) != 1):
        raise InputError("a share is of one kind of issue, and in place of a threshold")
    changes: dict[str, Change] = {}
    for kind in kinds:
        for row in _chosen(suspects, kind, threshold, share):
            changes.setdefault(row["id"], _change(row, kind, action))
    return [changes[row["id"]] for row in suspects.issues if row["id"] in changes]


def apply_changes(pairs: Sequence[Pair], changes: Sequence[Change]) -> tuple[list[Pair], list[float]]:
    """The pairs that are left, flipped where they are to be, and the weight of each."""
    by_id = {change.id: change for change in changes}
    left, weights = [], []
    for pair in pairs:
        change = by_id.get(pair.id)
        if change and change.action == "drop":
            continue
        flipped = change is not None and change.action == "flip"
        left.append(replace(pair, chosen=pair.rejected, rejected=pair.chosen) if flipped else pair)
        weights.append(change.weight if change else 1.0)
    return left, weights


def write_cleaned(path: str | Path, pairs: Sequence[Pair], heldout: Sequence[Pair], changes: Sequence[Change]) -> None:
    """Write the cleaned training `pairs` to `path`, and beside it what was changed and the untouched held-out pairs.

    `NAME.jsonl` is for TRL, `NAME.heldout.jsonl` for judging what it trains, `NAME.changes.jsonl` for people.
    """
    path = Path(path)
    left, weights = apply_changes(pairs, changes)
    weighted = any(change.action == "weight" for change in changes)
    write_pairs(path, left, weights if weighted else None)
    write_pairs(path.with_suffix(".heldout.jsonl"), heldout)
    write_jsonl(path.with_suffix(".changes.jsonl"), [asdict(change) for change in changes])


def write_without_worst(
    found: Displacements, pairs: PairSet, path: str | Path, *, share: float = 0.1, weight: float | None = None
) -> Displacements:
    """Write `pairs` without the training pairs that push falling chosen responses down most; `found`, saying so.

    Those that `found` holds out are in `NAME.heldout.jsonl` beside it, so that nothing is trained on them.

    share: of training pairs that go at most;  weight: keep them, with this `weight`, where others have 1
    """
    path, heldout = Path(path), {pair.id for pair in found.heldout_pairs}
    worst = tuple(pair.id for pair in found.worst(share))
    train = [pair for pair in pairs if pair.id not in heldout and (weight is not None or pair.id not in worst)]
    weights = None if weight is None else [weight if pair.id in worst else 1.0 for pair in train]
    write_pairs(path, train, weights)
    write_pairs(path.with_suffix(".heldout.jsonl"), [pair for pair in pairs if pair.id in heldout])
    return replace(found, exported=Exported(str(path), worst))


def write_pairs(path: str | Path, pairs: Sequence[Pair], weights: Sequence[float] | None = None) -> None:
    """Write `pairs` for TRL, in their order, with a column `weight` where `weights` are given."""
    from margincast.runs.save import pair_row

    rows = [
        {name: value for name, value in pair_row(pair, "").items() if name not in ("split", "statement")}
        for pair in pairs
    ]
    if weights is not None:
        rows = [{**row, "weight": weight} for row, weight in zip(rows, weights, strict=True)]
    write_jsonl(Path(path), rows)


def _chosen(suspects: Suspects, kind: str, threshold: float | None, share: float | None) -> list[Mapping[str, Any]]:
    name = f"{kind}_score"
    if share is not None:
        rows = [row for row in suspects.worst(kind, round(share * len(suspects.issues))) if row[name] > 0]
    elif threshold is not None:
        rows = [row for row in suspects.issues if row[name] > threshold]
    else:
        rows = [row for row in suspects.issues if row[f"is_{kind}_issue"]]
    return _one_of_two(rows, suspects, kind) if known_kinds()[kind].stays else rows


def _one_of_two(rows: Sequence[Mapping[str, Any]], suspects: Suspects, kind: str) -> list[Mapping[str, Any]]:
    """Of every two pairs that are about each other, the one to change."""
    place = {row["id"]: k for k, row in enumerate(suspects.issues)}
    suspicion = {row["id"]: row["mislabel_score"] for row in suspects.issues}
    likelier = known_kinds()[kind].stays == "likelier"

    def stays(name: str) -> tuple[float, int]:
        return (suspicion[name] if likelier else 0.0, place[name])  # of two as likely, the first

    changed: set[str] = set()
    for row in sorted(rows, key=lambda row: place[row["id"]]):
        first, second = sorted((row["id"], row[f"{kind}_of"]), key=stays)
        if first not in changed:
            changed.add(second)
    return [row for row in suspects.issues if row["id"] in changed]


def _change(row: Mapping[str, Any], kind: str, action: str) -> Change:
    score, partner = row[f"{kind}_score"], row.get(f"{kind}_of")
    about = f", of {partner}" if partner else ""
    return Change(
        id=row["id"],
        source=row["source"],
        line=row["line"],
        action=action,
        issue=kind,
        score=score,
        weight={"drop": 0.0, "flip": 1.0, "weight": 1.0 - score}[action],
        reason=f"{kind} {score:.3f}: {known_kinds()[kind].meaning}{about}",
        partner=partner,
    )
