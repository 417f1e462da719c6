"""What follows from rules judged side by side? Sentences, each computed from the numbers beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from margincast.intervals import Estimate

if TYPE_CHECKING:
    from margincast.selection.budget import Budget
    from margincast.selection.choosing import Choice, Selection


def points(gain: Estimate) -> str:
    """A difference of shares in points of a hundred, with its interval."""
    if gain.low != gain.low:
        return f"{100 * gain.value:+.1f} points (no interval: one pair judges)"
    return f"{100 * gain.value:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"


def verdict(gain: Estimate) -> str:
    """better, worse or within noise, by the interval."""
    return "better beyond noise" if gain.low > 0 else "worse beyond noise" if gain.high < 0 else "within noise"


def advice_of(found: Selection, yardstick: str) -> tuple[str, ...]:
    """The recommendation, how it stands to random parts and to all pairs, and what was not judged."""
    picked, of = found.rules[found.picked], f"{found.size} of {len(found.train_pairs)} pairs"
    others = {name: choice for name, choice in found.rules.items() if name != yardstick}
    said = []
    if found.picked != yardstick:
        said.append(
            f"Train on the {of} that {found.picked} keeps: forecast held-out accuracy "
            f"{picked.worth.accuracy.value:.1%}, {points(picked.over_random)} over a random part: "
            f"{verdict(picked.over_random)}."
        )
    else:
        said.append(_random_is_as_good(others, of))
    said.append(
        f"All {len(found.train_pairs)} pairs: {found.whole.accuracy.value:.1%}; the part stands at "
        f"{points(picked.over_all)} to that: {verdict(picked.over_all)}."
    )
    worse = [name for name, choice in others.items() if choice.over_random.high < 0]
    if worse:
        said.append(f"Worse than random beyond noise: {', '.join(worse)}.")
    seen = len(found.heldout_pairs) - len(found.judges)
    pairs = f"{len(found.judges)} held-out pairs judge"
    if seen and found.target == "all":
        pairs += f", and none of the {seen} that influence rules looked at"
    elif found.target != "all":
        pairs += f", all of {found.target}"
    said.append(f"{pairs}; every run takes its recipe's steps, {found.steps} on all pairs.")
    if found.left_out:
        said.append(f"Left out, as they cannot tell these pairs apart: {', '.join(found.left_out)}.")
    return (*said, *(() if found.budget is None else budget_advice(found.budget, len(found.train_pairs))))


def _random_is_as_good(others: Mapping[str, Choice], of: str) -> str:
    if not others:
        return f"Train on a random part, {of}: no other rule was tried."
    best = max(others, key=lambda name: (others[name].worth.accuracy.value, others[name].worth.margin.value))
    return (
        f"Random is as good: train on a random part, {of}. The best other rule, {best}, stands at "
        f"{points(others[best].over_random)} to it: {verdict(others[best].over_random)}."
    )


def budget_advice(budget: Budget, count: int) -> tuple[str, ...]:
    """Where the random curve flattens, what more pairs are worth, and of which concepts."""
    random = budget.flat_from[next(iter(budget.flat_from))]
    flat = (
        f"Of random parts, {random} of {count} pairs are as good as any larger number, within noise."
        if random < count
        else f"Accuracy still rises at all {count} pairs, beyond noise."
    )
    more = (
        f"The last doubling brought {points(budget.doubling)}; at that rate the next {budget.next_pairs} pairs bring "
        f"{100 * budget.next_worth:+.1f} points."
    )
    said = [flat, more]
    helping = [name for name, half in budget.concepts.items() if half.target.low > 0]
    harming = [name for name, half in budget.concepts.items() if half.target.high < 0]
    if helping:
        said.append(f"The second half of these concepts' pairs still helps: {', '.join(helping)}.")
    if harming:
        said.append(f"The second half of these concepts' pairs harms: {', '.join(harming)}.")
    if budget.concepts and not helping and not harming:
        said.append("Of no concept does half of the pairs matter to the whole, beyond noise.")
    return tuple(said)
