"""How far do forecasts of chat pairs miss true runs of `chat`? From features alone, from a rehearsal, and plainer ones.

    MARGINCAST_DATA_DIR=... python -m benchmarks.forecast.chat_errors

A line a run and method: held-out accuracy less the run's in points, the mean and the root mean square of margins over
beta, Spearman's and Pearson's correlation of margins of pairs, whether 90% intervals hold accuracy and mean margin.
Parts 0 are what choices were made on. `chat` has to have made the runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from benchmarks.forecast.chat import KEPT, PLAN, ChatRun, splits_of
from benchmarks.packing import model
from margincast.features import features_of
from margincast.intervals import Estimate
from margincast.models import LoadedModel
from margincast.models.load import default_cache_dir
from margincast.records import Features
from margincast.trained.forecast import TrainedForecast, forecast_trained
from margincast.trained.inputs import deep_spaces
from margincast.trained.rehearsal import Rehearsal, size_of
from margincast.trained.shape import token_spectra

Spans = tuple[Estimate, Estimate] | None


def answers(run: ChatRun, features: Features, rehearsed: Tensor) -> Iterator[tuple[str, Tensor, Spans]]:
    """Every method's held-out margins over beta at the end, and its intervals of accuracy and mean margin over beta."""
    steps, batch = size_of(run.recipe, 0.1)
    for name, rehearsal in (
        ("features alone", None),
        ("rehearsal forecast", Rehearsal(rehearsed * run.beta, steps * batch)),
    ):
        yield name, *_ours(run, forecast_trained(features, run.recipe, rehearsal=rehearsal))
    yield "rehearsal as it is", rehearsed, None
    lengths = [
        len(chosen) - len(rejected)
        for chosen, rejected in zip(features.heldout.chosen_ids, features.heldout.rejected_ids, strict=True)
    ]
    yield "length difference", torch.tensor(lengths, dtype=torch.float64), None
    ratio = features.heldout.reference_rejected - features.heldout.reference_chosen
    yield "reference log-ratio", ratio.double(), None
    train, heldout = deep_spaces(features, run.recipe, torch.arange(len(features.train.pairs)))
    yield "ridge probe", token_spectra(train, heldout, centre=False)[0].shape(1.0, 0.1), None


def _ours(run: ChatRun, made: TrainedForecast) -> tuple[Tensor, Spans]:
    band = made.bands[""]
    low, value, high = (getattr(band.margin[-1], name) / run.beta for name in ("low", "value", "high"))
    return made.heldout.margins[-1] / run.beta, (band.accuracy[-1], Estimate(value, low, high))


def scores(margins: Tensor, spans: Spans, truth: Tensor) -> str:
    """One line of the table, without the names."""
    held = ""
    if spans is not None:
        held = f"  accuracy {_held(spans[0], _accuracy(truth))}, mean {_held(spans[1], float(truth.mean()))}"
    return (
        f"{100 * (_accuracy(margins) - _accuracy(truth)):+6.1f} {float(margins.mean()):8.2f} "
        f"{float(margins.square().mean().sqrt()):8.2f} {spearmanr(margins, truth).statistic:6.2f} "
        f"{pearsonr(margins, truth).statistic:6.2f}{held}"
    )


def _accuracy(margins: Tensor) -> float:
    return float((margins > 0).double().mean())


def _held(span: Estimate, true: float) -> str:
    return f"{span.low:.2f} to {span.high:.2f} {'holds' if span.low <= true <= span.high else 'misses'} {true:.2f}"


def ends() -> dict[ChatRun, tuple[Tensor, Tensor]]:
    """Held-out margins over beta of every kept run, and of its rehearsal."""
    found = {}
    for run in PLAN:
        path = KEPT / f"{run.name}.json"
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            margins = kept["heldout_margins_over_beta"][str(run.steps)]
            found[run] = (
                torch.tensor(margins, dtype=torch.float64),
                torch.tensor(kept["rehearsal_margins_over_beta"], dtype=torch.float64),
            )
    return found


def inputs_of(run: ChatRun, loaded: LoadedModel) -> Features:
    encoding, train, heldout = splits_of(run, loaded)
    cache = default_cache_dir() / "chat-bank"
    return features_of(loaded, encoding, train, heldout, cache_dir=cache, layers=True)


def main() -> None:
    loaded, known = model(), ends()
    print(f"{'run':12} {'method':22} points     mean      rms   rank      r  intervals of 90%")
    for run, (truth, rehearsed) in known.items():
        sizes = float(truth.mean()), float(truth.square().mean().sqrt())
        print(f"{run.name:12} {'the run':22} {100 * _accuracy(truth):5.1f}% {sizes[0]:8.2f} {sizes[1]:8.2f}")
        for name, margins, spans in answers(run, inputs_of(run, loaded), rehearsed):
            print(f"{run.name:12} {name:22} {scores(margins, spans, truth)}", flush=True)
        for other, (twin, _) in known.items():
            if other is not run and other.twin == run.twin:
                print(f"{run.name:12} {'other batch order':22} {scores(twin, None, truth)}")


if __name__ == "__main__":
    main()
