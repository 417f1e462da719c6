"""When is a forecast a reason to stop, or to be careful? One function a rule; why these thresholds: docs/verdict.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from margincast.decision.evidence import Evidence, Expected
from margincast.intervals import Estimate
from margincast.runs.metrics import CHANCE, response_results, taking_all
from margincast.trained.forecast import TrainedForecast

GO, CAUTION, STOP = "go", "caution", "stop"
POOR = 0.65  # accuracy: an interval around chance that ends below it measured that little is learned
EARLY = 0.75  # part of the steps: accuracy that stops rising before has stopped early
GOES_ON = 0.2  # of the training margin at the end: gained after that step
AHEAD = 0.1  # of accuracy: training pairs before held-out ones
CARRIES_OVER = 0.5  # held-out margin gained for training margin gained
BY_LENGTH = 0.5  # of the mean held-out margin
FALLS = 0.5  # of held-out pairs: their chosen responses
SWING = 0.2  # of accuracy, down and up again
LISTED, FEWEST, MOST_PAIRS = 6, 5, 1000
HOLD_OUT = "Hold out more pairs (--holdout, --heldout)."
# How an expected accuracy stands to chance.
LEARNED, REVERSED, AT_CHANCE, NOT_SHOWN = "learned", "learned the wrong way round", "not learned", "not shown"


@dataclass(frozen=True)
class Reason:
    """rule: its name in docs/verdict.md;  decision: what it speaks for;  says: with the numbers it rests on"""

    rule: str
    decision: str
    says: str


def standing(expected: Expected) -> str:
    """How an accuracy with its interval stands to chance."""
    if expected.low > CHANCE:
        return LEARNED
    if expected.high < CHANCE:
        return REVERSED
    return AT_CHANCE if expected.high <= POOR else NOT_SHOWN


def diverged(evidence: Evidence) -> Iterator[Reason]:
    if evidence.diverged:
        yield Reason("diverged", STOP, f"Margins are no numbers at step {evidence.steps[-1]}: lower the learning rate.")


def accuracy(evidence: Evidence) -> Iterator[Reason]:
    """Of all held-out pairs, against chance."""
    expected = evidence.overall
    found = standing(expected)
    text = f"Held-out accuracy at step {evidence.steps[-1]} is expected at {shown(expected)} of {pairs(expected)}: "
    if found == LEARNED:
        yield Reason("accuracy", GO, f"{text}above chance, 50%.")
    elif found == REVERSED:
        yield Reason("accuracy", STOP, f"{text}below chance, 50%; what training teaches is the reverse of these pairs.")
    elif found == AT_CHANCE:
        yield Reason("accuracy", STOP, f"{text}not told from chance, 50%, and at best {expected.high:.0%}.")
    else:
        yield Reason("accuracy", CAUTION, f"{text}not shown to be above chance, 50%. {more(expected)}")


def concepts(evidence: Evidence) -> Iterator[Reason]:
    """Of every concept, against chance."""
    groups: dict[str, dict[str, Expected]] = {}
    for name, expected in evidence.concepts.items():
        groups.setdefault(standing(expected), {})[name] = expected
    if LEARNED in groups:
        yield Reason("concepts", GO, f"Learned: {listed(groups[LEARNED])}.")
    for state in (REVERSED, AT_CHANCE):
        if state in groups:
            yield Reason("concepts", CAUTION, f"{state.capitalize()}: {listed(groups[state])}.")
    if NOT_SHOWN in groups:
        doubtful = groups[NOT_SHOWN]
        low = LEARNED not in groups or any(each.value <= CHANCE for each in doubtful.values())
        # A share of a pair or two says nothing of how many would tell.
        known = [each for each in doubtful.values() if each.pairs >= FEWEST and each.sure]
        hint = more(max(known, key=lambda each: each.value)) if known else HOLD_OUT
        text = f"Not shown to be above chance by so few pairs: {listed(doubtful, counts=True)}. {hint}"
        yield Reason("concepts", CAUTION if low else GO, text)


def one_response(evidence: Evidence) -> Iterator[Reason]:
    """One response goes up for every prompt: pairs that prefer it are right, those that prefer another are wrong."""
    counts = response_results(evidence.forecast)
    up = taking_all(counts)
    if up is not None:
        each = (f'of those that prefer "{name}" {count["right"]} of {count["of"]}' for name, count in counts.items())
        yield Reason(
            "one_response",
            CAUTION if evidence.overall.low > CHANCE else STOP,
            f'One response takes all: {"; ".join(each)} are right. Training moves "{up}" up for every prompt alike.',
        )


def unsettled(evidence: Evidence) -> Iterator[Reason]:
    """The last step is a phase of an oscillation: of some response accuracy falls and rises in the last half."""
    if isinstance(evidence.forecast, TrainedForecast):  # whose medians are smooth
        return
    start = next(index for index, step in enumerate(evidence.steps) if 2 * step >= evidence.steps[-1])
    curves = {f'of pairs that prefer "{name}"': evidence.accuracy(rows) for name, rows in evidence.responses.items()}
    widest = max(((swing(curve[start:]), name) for name, curve in (curves or {"": evidence.accuracy()}).items()))
    if widest[0] >= SWING:
        curve = (curves or {"": evidence.accuracy()})[widest[1]][start:]
        yield Reason(
            "unsettled",
            CAUTION,
            f"Held-out accuracy {widest[1]} goes up and down between {min(curve):.0%} and {max(curve):.0%} from step "
            f"{evidence.steps[start]} on: the last step is one phase of that. Lower the learning rate.",
        )


def overfits(evidence: Evidence) -> Iterator[Reason]:
    """Held-out accuracy stops rising; do training margins go on alone?"""
    last, stop = evidence.steps[-1], evidence.settled
    train, heldout = evidence.margins
    at = evidence.steps.index(int(stop.value))
    if evidence.rising:
        yield Reason("overfits", GO, f"Held-out accuracy still rises at step {last}: more steps may give more.")
    elif 0 < stop.value <= EARLY * last:
        gained = None if train is None else (train[-1] - train[at], heldout[-1] - heldout[at])
        around = "" if stop.low == stop.high else f" (90%: {stop.low:.0f} to {stop.high:.0f})"
        text = f"Held-out accuracy stops rising at step {stop.value:.0f}{around} of {last}"
        right = evidence.train_accuracy
        apart = gained and train and gained[0] > GOES_ON * abs(train[-1]) and gained[1] < CARRIES_OVER * gained[0]
        if apart and train and right is not None and right >= max(POOR, evidence.accuracy()[-1] + AHEAD):
            moves = f"{train[at]:.2g} to {train[-1]:.2g}, held-out ones from {heldout[at]:.2g} to {heldout[-1]:.2g}"
            text += f", and training margins go on from {moves}: expect it to overfit after."
            yield Reason("overfits", CAUTION, text)
        elif evidence.overall.low > CHANCE and stop.high <= EARLY * last:
            yield Reason("overfits", GO, f"{text}: about as many would do.")


def length(evidence: Evidence) -> Iterator[Reason]:
    """How much of the held-out margin is the responses' length."""
    if evidence.length is None:
        return
    margin, left = evidence.length["margin"], evidence.length["length_controlled_margin"]
    if margin["value"] is None or left["value"] is None or not margin["value"] > 0:
        return
    share = 1 - left["value"] / margin["value"]
    if share >= BY_LENGTH:
        holds = left["low"] is not None and left["low"] <= 0 <= left["high"]
        yield Reason(
            "length",
            CAUTION,
            f"{min(share, 1):.0%} of the mean held-out margin of {margin['value']:.2g} comes from length: without it "
            f"{left['value']:.2g} is left" + (", which may be chance." if holds else "."),
        )


def displaced(evidence: Evidence) -> Iterator[Reason]:
    """Chosen responses become less likely."""
    share, heldout = evidence.falling, evidence.margins[1]
    if share is not None and share > FALLS and heldout[-1] > 0:
        yield Reason(
            "displaced",
            CAUTION,
            f"Chosen responses of {share:.0%} of held-out pairs end less likely than they were, while the mean "
            f"margin is {heldout[-1]:.2g}.",
        )


def untested(evidence: Evidence) -> Iterator[Reason]:
    """How far from the runs that a forecast's constants are from."""
    forecast = evidence.forecast
    if not isinstance(forecast, TrainedForecast):
        return
    known, least, most = forecast.constants.fitted_on, *forecast.tested
    if forecast.beyond:
        yield Reason(
            "untested",
            CAUTION,
            f"The learning rates of this run add up to {forecast.length:.2g}; those behind the forecast ({known}) to "
            f"{least:.2g} to {most:.2g}: how far forecasts miss was not measured there.",
        )
    if forecast.validity.far:
        why = "; ".join(forecast.validity.far)
        text = f"The calibration is far from this run, so that intervals are doubled: {why}."
        yield Reason("untested", CAUTION, text)
    if forecast.spectrum is None or forecast.order is not None:
        yield Reason("untested", CAUTION, f"Responses have many tokens, of which little is tested; behind it: {known}.")


RULES: tuple[Callable[[Evidence], Iterator[Reason]], ...] = (
    diverged, accuracy, concepts, one_response, unsettled, overfits, length, displaced, untested,
)  # fmt: skip


def shown(expected: Expected | Estimate) -> str:
    return f"{expected.value:.0%} (95%: {expected.low:.0%} to {expected.high:.0%})"


def pairs(expected: Expected) -> str:
    return "1 pair" if expected.pairs == 1 else f"{expected.pairs} pairs"


def listed(found: Mapping[str, Expected], counts: bool = False) -> str:
    """Names with accuracies and intervals, and pairs where these are the point."""
    texts = [
        f"{name} {each.value:.0%} ({each.low:.0%} to {each.high:.0%}{', ' + pairs(each) if counts else ''})"
        for name, each in list(found.items())[:LISTED]
    ]
    return ", ".join(texts) + (f" and {len(found) - LISTED} more" if len(found) > LISTED else "")


def more(expected: Expected) -> str:
    """What would show it."""
    needed = expected.needed
    if not expected.sure:
        return "The forecast itself is not sure of it; a pilot narrows it down (--pilot 0.1)."
    if needed is None:
        return HOLD_OUT
    if needed > MOST_PAIRS:
        return f"It is so near chance that {MOST_PAIRS} held-out pairs would not tell."
    return f"Hold out more pairs (--holdout, --heldout): of {expected.value:.0%} about {needed} would tell."


def swing(curve: Sequence[float]) -> float:
    """The largest move down and back up, or up and back down, of a curve: the smaller of its two parts."""
    widest = 0.0
    for index, value in enumerate(curve):
        before, after = curve[:index], curve[index + 1 :]
        if before and after:
            peak, dip = value - max(min(before), min(after)), min(max(before), max(after)) - value
            widest = max(widest, peak, dip)
    return widest
