"""margincast bounds"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from margincast.cli.job import Job, open_job
from margincast.cli.options import OutputOptions, same
from margincast.recipe.fields import option
from margincast.recipe.recipe import Recipe
from margincast.records import Json
from margincast.report.tables import number

if TYPE_CHECKING:
    from margincast.theory.distribution import PreferenceDistribution
    from margincast.theory.guarantee import Guarantee

DISTRIBUTION = "Preference distribution"
ACCEPTED_FAILURES = (0.05, 1e-3, 1e-6)
TOKENS = ("distinct", "chain", "shared")


@dataclass(frozen=True, kw_only=True)
class DistributionOptions:
    """The preference distribution of the theorems, and the flow on it."""

    K: int = option(4, "Concepts", DISTRIBUTION)
    Q: int = option(100, "Training pairs per cluster; N = 2KQ", DISTRIBUTION)
    d: int = option(500, "Hidden width", DISTRIBUTION)
    shared_norm: float = option(0.4, "l_b, length of the component all share", DISTRIBUTION)
    noise: float = option(0.025, "v, standard deviation per coordinate", DISTRIBUTION)
    tokens: str = option(
        "distinct", "Which concepts share response tokens: {choices}", DISTRIBUTION, choices=lambda: TOKENS
    )
    Z: int = option(2, "Concepts per token, for --tokens chain", DISTRIBUTION)
    beta: float = same(Recipe, "beta")
    tau: float = option(1.0, "Time constant of the flow")

    def distribution(self) -> PreferenceDistribution:
        """Raises `InputError` for numbers that make none, a bad beta or tau among them."""
        from margincast.theory.distribution import preference_distribution
        from margincast.theory.guarantee import tau_1

        distribution = preference_distribution(
            self.K, self.Q, self.d, self.shared_norm, self.noise, self.tokens, self.Z
        )
        tau_1(distribution, self.beta, self.tau)
        return distribution


def bounds(options: DistributionOptions, output: OutputOptions) -> None:
    """Theorems 4.1 and 4.2 for given K, Q, d, l_b, v: conditions, envelopes, probabilities, printed and corrected.

    Example: margincast bounds --K 4 --Q 100 --d 500 --shared_norm 0.4 --noise 0.025
    """
    distribution = options.distribution()
    job = open_job("bounds", output, options)
    job.done(run_bounds(job, distribution, options))


def run_bounds(job: Job, distribution: PreferenceDistribution, options: DistributionOptions) -> Json:
    """Evaluate the theorems, save the summary, print the tables."""
    from margincast.runs.save import write_summary
    from margincast.theory.theorems import guarantees

    readings = guarantees(distribution, options.beta, options.tau)
    results = bounds_results(distribution, readings, options.beta, options.tau)
    summary = write_summary(job.out, "bounds", job.config, results)
    rows = [
        [line["form"], line["name"], number(line["left"]), number(line["right"]), "yes" if line["holds"] else "no"]
        for line in results["conditions"]
    ]
    job.table("Conditions", ("form", "condition", "left", "right", "holds"), rows)
    rows = [
        [
            form,
            number(reading.lower_rate * reading.tau_1),
            number(reading.upper_rate * reading.tau_1),
            power_of_ten(reading.log_failure),
            "says nothing" if reading.failure_vacuous else "holds",
            power_of_ten(reading.log_risk),
            "says nothing" if reading.risk_vacuous else "holds",
        ]
        for form, reading in readings.items()
    ]
    title = f"At tau_1 = {number(results['tau_1'])}: every training margin lies in [lower, upper]"
    job.table(title, ("form", "lower", "upper", "failure prob. <=", "verdict", "risk <=", "verdict"), rows)
    rows = [
        [
            number(line["failure_probability"]),
            number(line["lower"], 4),
            number(line["upper"], 4),
            f"1e{line['log10_risk']:.1f}",
        ]
        for line in results["explicit_trade_off"]
        if line["lower"] is not None
    ]
    job.table(
        "Explicit form, for an accepted probability of failure", ("failure prob.", "lower", "upper", "risk <="), rows
    )
    smallest = results["smallest_Q"]
    rows = [
        [form, *(_count(smallest[where][form][what]) for where in smallest for what in ("training", "risk"))]
        for form in smallest["at_widest_noise"]
    ]
    header = ("form", "v = 1/(4 sqrt Q): training", "risk", "this v and d: training", "risk")
    job.table("Smallest Q that says anything", header, rows)
    return summary


def bounds_results(
    distribution: PreferenceDistribution, readings: dict[str, Guarantee], beta: float, tau: float
) -> Json:
    """The `results` of `summary.json`. `derived` gives the envelope; a vacuous bound is given all the same."""
    from margincast.runs.store import plain
    from margincast.theory.smallest import smallest_informative_Q
    from margincast.theory.theorems import theorem_epsilon
    from margincast.theory.trade_off import explicit_at

    derived = readings["derived"]
    trade_off = []
    for failure in ACCEPTED_FAILURES:
        reading = explicit_at(distribution, beta, tau, failure)
        trade_off.append(
            {
                "failure_probability": failure,
                "lower": reading and reading.lower_rate * reading.tau_1,
                "upper": reading and reading.upper_rate * reading.tau_1,
                "log10_risk": reading and reading.log_risk / math.log(10.0),
            }
        )
    results = {
        "conditions": [
            {
                "form": form,
                "name": check.name,
                "left": check.left,
                "relation": check.relation,
                "right": check.right,
                "holds": check.holds,
                "note": check.note,
            }
            for form, reading in readings.items()
            for check in reading.conditions
        ],
        "tau_1": derived.tau_1,
        "epsilon": theorem_epsilon(distribution),
        "max_token_count": distribution.Z,
        "interacting_concepts": distribution.S,
        "envelope_at_tau_1": {
            "lower": derived.lower_rate * derived.tau_1,
            "upper": derived.upper_rate * derived.tau_1,
            "forms": {
                form: {"lower": reading.lower_rate * reading.tau_1, "upper": reading.upper_rate * reading.tau_1}
                for form, reading in readings.items()
            },
        },
        "failure_probability": _by_form({f: (r.log_failure, r.failure_vacuous) for f, r in readings.items()}),
        "risk_bound": _by_form({f: (r.log_risk, r.risk_vacuous) for f, r in readings.items()}),
        "explicit_trade_off": trade_off,
        "smallest_Q": {
            where: {
                line.form: {"training": line.training, "risk": line.risk}
                for line in smallest_informative_Q(distribution, noise)
            }
            for where, noise in (("at_widest_noise", None), ("at_this_noise", distribution.noise))
        },
    }
    cleaned: Json = plain(results)
    return cleaned


def _by_form(bounds: dict[str, tuple[float, bool]]) -> Json:
    """A bound of every form as a number, as a power of ten, and whether it says nothing."""
    values: Json = {form: math.exp(log) if log < 700.0 else math.inf for form, (log, _) in bounds.items()}
    values["log10"] = {form: log / math.log(10.0) for form, (log, _) in bounds.items()}
    values["vacuous"] = {form: vacuous for form, (_, vacuous) in bounds.items()}
    return values


def power_of_ten(log: float) -> str:
    """A bound given by its natural logarithm, in powers of ten where floats would not do."""
    return f"{math.exp(log):.3g}" if -20.0 < log < 20.0 else f"1e{log / math.log(10.0):.1f}"


def _count(value: int | None) -> str:
    return "none" if value is None else f"{value:,}"
