"""A forecast of a trained backbone on the page: its bands, and its answers in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from margincast.report.figures import INK, TRAIN, finish_curves, legend_height, new_figure, styles
from margincast.results import Json
from margincast.trained.answers import Pairs, still_rising, stops_rising
from margincast.trained.constants import package_constants
from margincast.trained.forecast import TrainedForecast
from margincast.trained.noise import COVERAGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 0.5  # of the drawn runs
PACKAGE = "runs of SmolLM2-135M on persona questions with AdamW"  # where results name no other constants


def band_curves(forecast: TrainedForecast) -> Figure:
    """Held-out margin and accuracy against step, with the 90% band of all pairs, and every concept's own line."""
    concepts = styles(forecast.heldout.pairs.concepts)
    figure, axes = new_figure(2, width=4.4, height=max(3.0, legend_height(len(concepts))))
    for axis, (name, label) in zip(
        axes[0], (("margin", "held-out reward margin"), ("accuracy", "held-out accuracy")), strict=True
    ):
        band = getattr(forecast.bands[""], name)
        if len(concepts) > 1:
            for concept, style in reversed(concepts.items()):
                values = [one.value for one in getattr(forecast.bands[concept], name)]
                axis.plot(forecast.steps, values, linewidth=1.0, alpha=0.75, **style)
        low, high = [one.low for one in band], [one.high for one in band]
        axis.fill_between(forecast.steps, low, high, color=TRAIN, alpha=0.25, linewidth=0, label="90% of runs")
        axis.plot(forecast.steps, [one.value for one in band], color=INK, linewidth=2, label="held-out, forecast")
        finish_curves(axis, label, accuracy=name == "accuracy")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize=7.5, frameon=False)
    return figure


def limits(results: Mapping[str, Any]) -> str:
    """Where the constants of a forecast are from, and what to trust elsewhere."""
    return (
        f"The constants behind it come from {results.get('constants', PACKAGE)}. On another model or other data the "
        "order of concepts is likelier to hold than the size of margins; margincast compare, after training, says."
    )


def trained_results(forecast: TrainedForecast, pairs: Pairs | None) -> Json:
    """What `summary.json` has of it besides what every forecast has: intervals of 90%, and answers."""
    named = {name: band for name, band in forecast.bands.items() if name}
    known = forecast.constants
    return {
        "interval": COVERAGE,
        "concepts": {
            name: {
                "heldout_margin": band.margin[-1].as_dict(),
                "heldout_accuracy": band.accuracy[-1].as_dict(),
                "least_accurate": forecast.worst[name],
            }
            for name, band in named.items()
        },
        "heldout_accuracy": [one.as_dict() for one in forecast.bands[""].accuracy],
        "heldout_margin": [one.as_dict() for one in forecast.bands[""].margin],
        "stops_rising": stops_rising(forecast).as_dict(),
        "still_rising": still_rising(forecast),
        "more_pairs": None if pairs is None else vars(pairs),
        "path": {"length": forecast.length, "tested": list(forecast.tested), "beyond": forecast.beyond},
        "validity": forecast.validity.as_dict(),
        **({} if known == package_constants() else {"constants": known.fitted_on}),
        **({} if forecast.order is None else {"order": forecast.order}),
        **({"from_rehearsal_alone": True} if forecast.order is None and forecast.spectrum is None else {}),
    }


def calibration_in_words(validity: Mapping[str, Any]) -> str:
    """Which calibration the forecast has, how near it is and how far it missed the runs it was tested on."""
    near = {"same": "of this model", "family": "of its family", "other": "of another model"}[validity["model"]]
    error = validity["error"]
    missed = "its error is not known"
    if error:
        missed = (
            f"leaving {error['left_out']} out it missed accuracies by {error['accuracy_median']:.1f} points in the "
            f"median and margins by {error['margin_relative']:.0%}"
        )
    text = f"Calibration: {validity['calibration']}, {near} ({validity['fitted_on']}); {missed}."
    if validity["far"]:
        text += f" Intervals are doubled: {'; '.join(validity['far'])}."
    elif validity["outside"]:
        text += f" Outside its runs: {', '.join(validity['outside'])}."
    return text


def answers_in_words(results: Mapping[str, Any], max_steps: int) -> list[str]:
    """How far to trust it, when to stop, whether more pairs would help, which concept lags."""
    stop, rising, path = results["stops_rising"], results["still_rising"], results["path"]
    known = "those of the runs behind the constants to {:.2g} to {:.2g}".format(*path["tested"])
    texts = [calibration_in_words(results["validity"])] if "validity" in results else []
    if path["beyond"]:
        texts.append(
            f"Untested: the learning rates of this run add up to {path['length']:.2g}, {known}. Intervals may be far "
            "too narrow."
        )
    if "order" in results:
        texts.append(
            "Of responses of many tokens little is tested: the order of pairs had a rank correlation of "
            f"{results['order']:.2f} with two true runs of chat pairs, whose margins differed in size by a factor of "
            "two. Intervals are set wide for that, not fitted."
        )
    if "from_rehearsal_alone" in results:
        texts.append(
            "Of responses of many tokens little is tested: from a rehearsal of two steps the intervals missed a true "
            "run of 20 steps on chat pairs, where features alone had it. Compare --pilot 0."
        )
    beyond = [row for row in results.get("sweep") or [] if row["beyond"]]
    if beyond:
        name = next(iter(beyond[0]))
        values = ", ".join(f"{row[name]:g}" for row in beyond)
        texts.append(f"Untested values of {name}: {values}. Their learning rates add up to less or more, {known}.")
    if rising >= MOST:
        texts.append(f"Held-out accuracy still rises at step {max_steps}, in {rising:.0%} of the drawn runs.")
    else:
        texts.append(
            f"Held-out accuracy stops rising around step {stop['value']:.0f} (90%: {stop['low']:.0f} to "
            f"{stop['high']:.0f}); in {rising:.0%} of the drawn runs it still rises at step {max_steps}."
        )
    pairs = results["more_pairs"]
    if pairs is not None:
        now, half = pairs["accuracies"][-1], pairs["accuracies"][-2]
        limit = "" if pairs["limit"] is None else f"; the curve's limit is {pairs['limit']:.0%}"
        texts.append(
            f"More pairs of this kind: by the features, half of the {pairs['counts'][-1]} pairs that training takes "
            f"give {half:.0%} of held-out pairs, all of them {now:.0%}, twice as many would give about "
            f"{pairs['doubled']:.0%}{limit}."
        )
    if len(results["concepts"]) > 1:
        shares = {name: concept["least_accurate"] for name, concept in results["concepts"].items()}
        first, *others = sorted(shares, key=lambda name: -shares[name])
        text = f"{first} will lag: it is the least accurate concept in {shares[first]:.0%} of the drawn runs"
        near = [f"{name} in {shares[name]:.0%}" for name in others if shares[name] >= shares[first] / 2]
        texts.append(f"{text}, {', '.join(near)}." if near else f"{text}.")
    return texts
