"""The theorems' numbers: a row per reading, and the folder of `bounds`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from margincast.report.bounds import PROMISE_HEADER, bound_tables
from margincast.report.saving import Contents, saving
from margincast.report.tables import number
from margincast.results import PRESENTERS, Json, Presenter
from margincast.runs.store import plain
from margincast.theory.bounds import Bounds
from margincast.theory.guarantee import Guarantee


def _rows(bounds: Bounds) -> list[Json]:
    return [
        {
            "form": form,
            "conditions_hold": reading.conditions_hold,
            "lower": reading.lower_rate * reading.tau_1,
            "upper": reading.upper_rate * reading.tau_1,
            "log10_failure": reading.log_failure / math.log(10.0),
            "failure_vacuous": reading.failure_vacuous,
            "log10_risk": reading.log_risk / math.log(10.0),
            "risk_vacuous": reading.risk_vacuous,
        }
        for form, reading in bounds.readings.items()
    ]


def _summary(bounds: Bounds) -> tuple[str, Sequence[str], Sequence[Sequence[str]]]:
    it = bounds.distribution
    title = (
        f"K={it.K}, Q={it.Q}, d={it.d}, l_b={it.shared_norm:g}, v={it.noise:g}, Z={it.Z}: training margins at "
        f"tau_1 = {number(bounds.tau_1)}"
    )
    return title, PROMISE_HEADER, bound_tables(_results(bounds))[1].rows


def _leave(bounds: Bounds, folder: Path) -> Contents:
    it = bounds.distribution
    names = ("K", "Q", "d", "shared_norm", "noise", "Z")
    config = {**{name: getattr(it, name) for name in names}, "beta": bounds.beta, "tau": bounds.tau}
    return Contents("bounds", _results(bounds), config)


def _results(bounds: Bounds) -> Json:
    """`derived` gives the envelope; a vacuous bound is given all the same."""
    readings, derived = bounds.readings, bounds.readings["derived"]
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
        "tau_1": bounds.tau_1,
        "epsilon": bounds.epsilon,
        "max_token_count": bounds.distribution.Z,
        "interacting_concepts": bounds.distribution.S,
        "envelope_at_tau_1": {
            **_envelope(derived),
            "forms": {form: _envelope(reading) for form, reading in readings.items()},
        },
        "failure_probability": _by_form({f: (r.log_failure, r.failure_vacuous) for f, r in readings.items()}),
        "risk_bound": _by_form({f: (r.log_risk, r.risk_vacuous) for f, r in readings.items()}),
        "explicit_trade_off": [
            {
                "failure_probability": each.failure,
                **(_envelope(each.guarantee) if each.guarantee else {"lower": None, "upper": None}),
                "log10_risk": each.guarantee and each.guarantee.log_risk / math.log(10.0),
            }
            for each in bounds.trade_off
        ],
        "smallest_Q": {
            where: {line.form: {"training": line.training, "risk": line.risk} for line in lines}
            for where, lines in (
                ("at_widest_noise", bounds.smallest_at_widest_noise),
                ("at_this_noise", bounds.smallest_at_this_noise),
            )
        },
    }
    cleaned: Json = plain(results)
    return cleaned


def _envelope(reading: Guarantee) -> Json:
    return {"lower": reading.lower_rate * reading.tau_1, "upper": reading.upper_rate * reading.tau_1}


def _by_form(bounds: dict[str, tuple[float, bool]]) -> Json:
    """A bound of every form as a number, as a power of ten, and whether it says nothing."""
    values: Json = {form: math.exp(log) if log < 700.0 else math.inf for form, (log, _) in bounds.items()}
    values["log10"] = {form: log / math.log(10.0) for form, (log, _) in bounds.items()}
    values["vacuous"] = {form: vacuous for form, (_, vacuous) in bounds.items()}
    return values


PRESENTERS.register("bounds")(Presenter(_rows, _summary, saving(_leave)))
