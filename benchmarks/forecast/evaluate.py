"""How good are forecasts of full fine-tuning? Every method on every run of the bank, its constants from other sets.

    MARGINCAST_PERSONA_DIR=... python -m benchmarks.forecast.evaluate [--apart]

Constants are fitted on the runs of all other persona sets (leave one set out); with `--apart` on all sets that are not
apart, and tested on those that are. Printed for each method: the error of held-out accuracy per concept at the end, the
error of the mean margin, Spearman's correlation of the margins of pairs with and without their shared offset, and how
often the 90% intervals of accuracy and mean margin hold the truth.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.forecast.bank import kept, load, rehearsal_of
from benchmarks.forecast.plan import PLAN, Run
from margincast.dynamics.batches import batch_order
from margincast.dynamics.forecast import TokenSpace
from margincast.dynamics.optimizers import AdamW
from margincast.dynamics.pairspace import choose_form, simulate_in
from margincast.effective.amplitude import AmplitudeLaw, fit_amplitude, signal_share
from margincast.effective.laws import EffectiveForecast, Laws, Plan, effective_forecast
from margincast.effective.noise import LEVEL, Noise, accuracies, drawn_margins, interval
from margincast.effective.offset import OffsetLaw, offset_path, without_offset
from margincast.effective.shape import spectral_shape
from margincast.effective.time import UNIT
from margincast.losses import get_loss

ALPHAS, TRUSTS = (0.0, 0.25, 0.5, 0.75), (0.0, 0.5, 0.75, 1.0)
RATES, GROWTHS = (0.1, 0.15, 0.2, 0.3, 0.45, 0.7, 1.0), (0.0, 0.03, 0.1, 0.2)
RIDGE = 1e-3
# Exponents that a handful of runs of our trials suggest; what the bank's runs say is mixed in.
PRIOR = AmplitudeLaw(scale=1.0, length=2.0, batch=0.3, signal=0.5, spread=0.3)


@dataclass(frozen=True)
class Seen:
    """A run of the bank: what a forecast may look at, and the truth. Margins are over beta, in nats."""

    run: Run
    tensors: dict[str, Tensor]

    @cached_property
    def spaces(self) -> tuple[TokenSpace, TokenSpace]:
        def space(name: str) -> TokenSpace:
            yes = self.tensors[f"{name}_yes"].long()
            return TokenSpace(self.tensors[f"features_{name}"].double(), yes, 1 - yes, self.run.beta, 2)

        return space("train"), space("heldout")

    @cached_property
    def plan(self) -> Plan:
        run = self.run
        batches = tuple(batch_order(len(self.spaces[0]), run.batch, run.steps, run.seed))
        return Plan((run.learning_rate,) * run.steps, batches, AdamW(run.learning_rate), get_loss("sigmoid"))

    @cached_property
    def truth(self) -> Tensor:
        return self.tensors["heldout"].double()

    @property
    def steps(self) -> list[int]:
        return [int(step) for step in self.tensors["steps"]]

    @cached_property
    def pilot(self) -> Tensor:
        return self.truth[self.steps.index(self.run.pilot)]

    @cached_property
    def rehearsed(self) -> Tensor:
        from safetensors.torch import load_file

        return load_file(rehearsal_of(self.run))["heldout"][-1].double()

    @cached_property
    def length(self) -> float:
        return self.run.steps * self.run.learning_rate / UNIT

    @cached_property
    def signal(self) -> float:
        return signal_share(self.spaces[0])

    @cached_property
    def shapes(self) -> dict[float, Tensor]:
        return {alpha: spectral_shape(*self.spaces, alpha, RIDGE) for alpha in ALPHAS}

    @cached_property
    def concepts(self) -> list[list[int]]:
        concept = self.tensors["heldout_concept"]
        return [(concept == number).nonzero()[:, 0].tolist() for number in range(len(self.run.concepts))]

    def parted(self, margins: Tensor) -> tuple[Tensor, Tensor]:
        return without_offset(margins, self.spaces[1].chosen, self.spaces[1].rejected)


@dataclass(frozen=True)
class Answer:
    """Forecast margins at the end, over beta, (pairs,), parted; with how sure they are, where a method says so.

    accuracy: (concepts,), mean: of all pairs, where a method does not get them from the margins of pairs
    """

    rest: Tensor
    shift: Tensor
    noise: Noise | None = None
    accuracy: Tensor | None = None
    mean: float | None = None


Method = Callable[[Seen, Sequence[Seen]], Answer]


def persistence(seen: Seen, others: Sequence[Seen]) -> Answer:
    return Answer(*seen.parted(seen.pilot))


def power_law(seen: Seen, others: Sequence[Seen]) -> Answer:
    """The pilot's margins times what pilots of other runs grew by, as a power of the steps."""
    growth = [
        np.log(max(1e-3, float(o.truth[-1].mean())) / max(1e-3, float(o.pilot.mean())))
        / np.log(o.run.steps / o.run.pilot)
        for o in others
    ]
    return Answer(*seen.parted(seen.pilot * (seen.run.steps / seen.run.pilot) ** float(np.median(growth))))


def frozen(seen: Seen, others: Sequence[Seen]) -> Answer:
    """The exact run of the unembedding alone, same optimizer and batches."""
    train, heldout = seen.spaces
    plan = seen.plan
    form = choose_form(train, plan.optimizer, seen.run.steps, seen.run.batch, plan.loss)
    states = simulate_in(
        form, train, plan.optimizer, plan.batches, unembedding=train.zeros(), loss=plan.loss, factor=lambda _: 1.0,
        max_grad_norm=1.0,
    )  # fmt: skip
    return Answer(*seen.parted(heldout.margins(list(states)[-1]) / seen.run.beta))


def probe(seen: Seen, others: Sequence[Seen]) -> Answer:
    """Ridge regression on frozen features, its scale from the amplitude of other runs."""
    rest, _ = seen.parted(spectral_shape(*seen.spaces, 1.0, 3e-3))
    size = float(np.median([float(other.truth[-1].mean()) for other in others]))
    return Answer(rest / rest.mean() * size, torch.zeros_like(rest))


def floor(seen: Seen, others: Sequence[Seen]) -> Answer:
    """The same run with another batch order. It is no forecast: it has seen the run's end."""
    twin = next((other for other in every() if _twins(seen.run, other.run)), None)
    if twin is None:
        raise LookupError
    return Answer(*seen.parted(twin.truth[-1]))


def _twins(one: Run, other: Run) -> bool:
    return one.name != other.name and replace(one, name="", seed=0) == replace(other, name="", seed=0)


def features_only(seen: Seen, others: Sequence[Seen]) -> Answer:
    return _ours(seen, others, rehearsed=False)


def with_rehearsal(seen: Seen, others: Sequence[Seen]) -> Answer:
    return _ours(seen, others, rehearsed=True)


def _ours(seen: Seen, others: Sequence[Seen], rehearsed: bool) -> Answer:
    laws = fit(others, rehearsed)
    made = _apply(seen, laws, rehearsed)
    # The noise of runs that were fitted with, in so small a bank, is too small: each is forecast without its own set.
    residuals = []
    for other in others:
        rest = [one for one in others if one.run.personas != other.run.personas]
        if rest:
            residuals.append(_residual(other, _apply(other, fit(rest, rehearsed), rehearsed)))
    parts = zip(*residuals, strict=True)
    noise = Noise(*(float(np.sqrt(np.mean(np.square(part)))) for part in parts)) if residuals else None
    return Answer(made.rest[-1], made.shift[-1], noise)


def _apply(seen: Seen, laws: Laws, rehearsed: bool) -> EffectiveForecast:
    return effective_forecast(*seen.spaces, seen.plan, laws, seen.rehearsed if rehearsed else None)


def _residual(seen: Seen, made: EffectiveForecast) -> tuple[float, float, float]:
    """log A, offset and pairs of a run against its forecast, as `Noise` has them."""
    rest, shift = seen.parted(seen.truth[-1])
    size = float(made.rest[-1].mean())
    ratio = float(rest.mean()) / size
    pairs = float((rest / ratio - made.rest[-1]).std()) / abs(size)
    return np.log(max(ratio, 1e-2)), float((shift - made.shift[-1]).abs().mean()) / abs(size), pairs


def fit(runs: Sequence[Seen], rehearsed: bool) -> Laws:
    """The constants of the effective model from `runs`."""
    ends = [seen.parted(seen.truth[-1])[0] for seen in runs]
    amplitudes = [max(1e-2, float(rest.mean())) for rest in ends]
    amplitude = fit_amplitude(
        [seen.length for seen in runs], [seen.run.batch for seen in runs], [seen.signal for seen in runs], amplitudes,
        PRIOR, runs=1.0,
    )  # fmt: skip

    def mean_rank(answers: list[Tensor]) -> float:
        return float(np.mean([_rank(answer, end) for answer, end in zip(answers, ends, strict=True)]))

    alpha = max(ALPHAS, key=lambda value: mean_rank([seen.parted(seen.shapes[value])[0] for seen in runs]))
    laws = Laws(fit_offset(runs), amplitude, alpha, RIDGE, 1.0, 1.0)
    if not rehearsed:
        return laws
    sizes = [float(seen.parted(seen.rehearsed)[0].mean()) for seen in runs]
    ratio = float(np.exp(np.median(np.log(np.array(amplitudes) / np.array(sizes)))))
    choices = [replace(laws, rehearsed=ratio, trust=trust) for trust in TRUSTS]
    return max(choices, key=lambda choice: mean_rank([_apply(seen, choice, True).rest[-1] for seen in runs]))


def fit_offset(runs: Sequence[Seen]) -> OffsetLaw:
    """Least squares over all recorded steps, each run by its own size."""

    def loss(law: OffsetLaw) -> float:
        total = 0.0
        for seen in runs:
            train, plan = seen.spaces[0], seen.plan
            path = offset_path(
                train.chosen, train.rejected, 2, plan.batches, plan.learning_rates, plan.optimizer, plan.loss,
                seen.run.beta, law,
            )[seen.steps]  # fmt: skip
            b = path[:, 1] - path[:, 0]
            yes = seen.spaces[1].chosen == 1
            shift = seen.parted(seen.truth)[1]
            true = shift[:, yes].mean(1)
            total += float((b - true).square().mean() / true.square().mean())
        return total

    return min((OffsetLaw(rate, growth) for rate in RATES for growth in GROWTHS), key=loss)


def _rank(left: Tensor, right: Tensor) -> float:
    return float(spearmanr(left.numpy(), right.numpy()).statistic)


METHODS: dict[str, Method] = {
    "persistence (pilot)": persistence,
    "power law (pilot)": power_law,
    "frozen flow": frozen,
    "ridge probe": probe,
    "ours, features only": features_only,
    "ours, rehearsal of 10%": with_rehearsal,
    "floor: other seed": floor,
}


def every() -> list[Seen]:
    global _every
    if _every is None:
        runs = [run for run in PLAN if kept(run) and rehearsal_of(run).is_file()]
        _every = [Seen(run, load(run)) for run in runs]
    return _every


_every: list[Seen] | None = None


def score(seen: Seen, answer: Answer) -> dict[str, list[float]]:
    """Errors of one answer. Accuracies in points; coverage as 0 and 1."""
    truth = seen.truth[-1]
    forecast = answer.rest + answer.shift
    rest, _ = seen.parted(truth)
    right, mean = answer.accuracy, forecast.mean() if answer.mean is None else answer.mean
    if right is None:
        right = torch.stack([(forecast[rows] > 0).double().mean() for rows in seen.concepts])
    result = {
        "accuracy": [
            100 * float(each - (truth[rows] > 0).double().mean())
            for each, rows in zip(right, seen.concepts, strict=True)
        ],
        "margin": [float(mean / truth.mean() - 1)],
        "rank": [_rank(forecast, truth)],
        "rank_rest": [_rank(answer.rest, rest)],
    }
    if answer.noise:
        sign = torch.where(seen.spaces[1].chosen == 1, 1.0, -1.0).double()
        draws = drawn_margins(answer.rest, answer.shift, sign, answer.noise)
        spans = [interval(0.0, accuracies(draws, rows)) for rows in seen.concepts]
        truths = [float((truth[rows] > 0).double().mean()) for rows in seen.concepts]
        result["cover_accuracy"] = [
            float(s.low - 1e-9 <= t <= s.high + 1e-9) for s, t in zip(spans, truths, strict=True)
        ]
        span = interval(0.0, draws.mean(1))
        result["cover_margin"] = [float(span.low <= float(truth.mean()) <= span.high)]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forecast.evaluate", description=__doc__)
    parser.add_argument("--apart", action="store_true", help="test on the sets that were put apart")
    parser.add_argument("--runs", action="store_true", help="a line for every run too")
    arguments = parser.parse_args()
    chosen = [seen for seen in every() if seen.run.apart == arguments.apart]
    open_runs = [seen for seen in every() if not seen.run.apart]
    sets = {seen.run.personas for seen in open_runs}
    from benchmarks.forecast.baselines import BASELINES  # which are written in terms of this module

    print(f"{len(chosen)} runs tested; {len(open_runs)} runs of {len(sets)} sets to fit on; intervals of {LEVEL:.0%}")
    print(
        f"{'method':24} runs  accuracy: median |error|, within 6   margin: median |error|   rank  without b   coverage"
    )
    for name, method in (METHODS | BASELINES).items():
        scores: dict[str, list[float]] = {}
        count = 0
        for seen in chosen:
            others = [other for other in open_runs if other.run.personas != seen.run.personas]
            try:
                one = score(seen, method(seen, others))
            except LookupError:
                continue
            count += 1
            for key, values in one.items():
                scores.setdefault(key, []).extend(values)
            if arguments.runs:
                print(f"    {seen.run.name:22}", {key: [round(v, 2) for v in values] for key, values in one.items()})
        if not count:
            continue
        accuracy, margin = np.abs(scores["accuracy"]), np.abs(scores["margin"])
        cover = [f"{np.mean(scores[key]):.0%}" for key in ("cover_accuracy", "cover_margin") if key in scores]
        print(
            f"{name:24} {count:4}  {np.median(accuracy):8.1f} points, {np.mean(accuracy <= 6):4.0%}"
            f"{np.median(margin):22.0%}{np.median(scores['rank']):18.2f}{np.median(scores['rank_rest']):9.2f}    "
            f"{' '.join(cover)}"
        )


if __name__ == "__main__":
    main()
