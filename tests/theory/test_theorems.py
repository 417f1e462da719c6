"""The theorems as objects: what is printed, what follows, what each says and from which Q on."""

from __future__ import annotations

import math

import pytest
import torch
from benchmarks.gain import QS, gain_table
from draws import realised_slack
from hypothesis import given, settings
from hypothesis import strategies as st

from margincast.errors import InputError
from margincast.frozen.flow.states import gradient_flow
from margincast.theory.distribution import PreferenceDistribution, preference_distribution
from margincast.theory.explicit import explicit, largest_slack
from margincast.theory.guarantee import tau_1
from margincast.theory.risk import population_risk
from margincast.theory.smallest import smallest_informative_Q, smallest_where
from margincast.theory.theorems import (
    FORMS,
    derived,
    guarantees,
    largest_noise,
    printed,
    printed_appendix,
    theorem_epsilon,
)
from margincast.theory.trade_off import explicit_at, slack_for_failure

REFERENCE = preference_distribution(4, 100, 500, 0.4, 0.025)  # K, Q, d, l_b, v = 1/(4 sqrt Q)


def distributions() -> st.SearchStrategy[PreferenceDistribution]:
    return st.builds(
        preference_distribution,
        K=st.integers(1, 6),
        Q=st.integers(1, 10**6),
        d=st.integers(7, 2000),
        shared_norm=st.floats(0.0, 2.0),
        noise=st.floats(1e-4, 1.0),
        tokens=st.sampled_from(["distinct", "chain", "shared"]),
        Z=st.integers(2, 4),
    )


@given(distributions(), st.floats(1e-3, 10.0), st.floats(0.1, 10.0))
@settings(deadline=None)
def test_tau_1_depends_on_K_and_beta_but_not_on_Q(it: PreferenceDistribution, beta: float, tau: float) -> None:
    assert tau_1(it, beta, tau) == pytest.approx(it.K * tau * math.log(3.0) / (5.0 * beta**2))


@given(distributions(), st.floats(1e-3, 10.0), st.floats(0.1, 10.0))
@settings(deadline=None)
def test_the_theorems_envelopes_end_at_log_3_over_40_and_log_3(
    it: PreferenceDistribution, beta: float, tau: float
) -> None:
    reading = printed(it, beta, tau)
    assert reading.envelope(reading.tau_1) == pytest.approx((math.log(3.0) / 40.0, math.log(3.0)))
    assert reading.envelope(0.0) == (0.0, 0.0)
    with pytest.raises(InputError, match="tau_1"):
        reading.envelope(1.01 * reading.tau_1)


@given(distributions())
@settings(deadline=None)
def test_the_corrected_upper_rate_is_that_of_Eq_42_while_no_more_than_Z_concepts_interact(
    it: PreferenceDistribution,
) -> None:
    reading = derived(it, 1.0)
    eq_42 = (5.0 * it.Q + 2.0 * it.d * it.noise**2) / (2.0 * it.N)
    assert reading.upper_rate >= eq_42 * (1.0 - 1e-12)
    if reading.conditions_hold and it.S <= it.Z:
        assert reading.upper_rate == pytest.approx(eq_42)
        assert reading.upper_rate <= printed(it, 1.0).upper_rate


@given(Z=st.integers(1, 10**6), fill=st.floats(0.0, 1.0))
def test_the_lower_envelope_survives_the_most_interaction_Z_allows(Z: int, fill: float) -> None:
    """|S_k| = 2(Z - 1), l_b^2 <= 1/(4Z), eps v = 1/(16(Z + 2)): below the 3/4 that the proof can spare."""
    S, shared = 2 * (Z - 1), fill / (4.0 * Z)
    assert (2 * S + 4) / (16.0 * (Z + 2)) + S * shared < 0.75


@given(distributions())
@settings(deadline=None)
def test_a_failed_hypothesis_makes_a_guarantee_vacuous(it: PreferenceDistribution) -> None:
    for form, reading in guarantees(it, 1.0).items():
        assert reading.form == form
        if not all(check.holds for check in reading.conditions):
            assert reading.failure_vacuous and reading.risk_vacuous
    assert tuple(guarantees(it, 1.0)) == FORMS


def test_every_reading_at_the_reference_point() -> None:
    readings = guarantees(REFERENCE, 1.0)
    assert readings["printed"].conditions_hold and readings["derived"].conditions_hold
    # 8 K Q^(9/4) exp(-min(sqrt(100)/5, 100^(3/4)/256)) and 2 K Q^2 exp(-100^(1/4)/6)
    assert math.exp(readings["printed"].log_failure) == pytest.approx(32 * 100**2.25 * math.exp(-(100**0.75) / 256))
    assert math.exp(readings["printed"].log_risk) == pytest.approx(8e4 * math.exp(-(100**0.25) / 6))
    # Theorem A.2's printed condition d >= 5Q/(2 v^2) = 400000 contradicts d <= 5Q
    assert not readings["printed_appendix"].conditions_hold
    for form in ("printed", "printed_appendix", "derived"):
        assert readings[form].failure_vacuous and readings[form].risk_vacuous
    assert readings["explicit"].log_failure < math.log(1e-20)
    assert readings["explicit"].log_risk < math.log(1e-4)
    assert not readings["explicit"].risk_vacuous


def test_the_appendix_exponents_with_the_stated_epsilon() -> None:
    """At v = 1/(4 sqrt Q), d = 5Q, Z + 2 = Q^(1/4): eps^2/16 is sqrt(Q)/256, the risk exponent about sqrt(Q)/75."""
    for root in (4, 6, 8):
        Q = root**4
        it = preference_distribution(2 * root, Q, 5 * Q, 0.0, largest_noise(Q), "chain", root - 2)
        assert root - it.Z == 2
        epsilon = theorem_epsilon(it)
        assert epsilon**2 / 16.0 == pytest.approx(math.sqrt(Q) / 256.0)
        bernstein = epsilon / it.noise * min(1.0, epsilon / (it.d * it.noise))
        assert bernstein == pytest.approx(math.sqrt(Q) / 5.0)
        exponent = math.log(2.0 * it.K * Q**2) - printed_appendix(it, 1.0).log_risk
        assert exponent == pytest.approx(math.sqrt(Q) / 75.0, rel=0.02)
        assert (exponent < Q**0.25 / 6.0) == (Q < 2.4e4)


@given(distributions(), st.floats(0.0, 0.9), st.floats(0.0, 0.9))
@settings(deadline=None)
def test_a_smaller_slack_buys_tighter_envelopes_and_risk_for_a_larger_failure(
    it: PreferenceDistribution, one: float, two: float
) -> None:
    small, large = sorted((one, two))
    a, b = explicit(it, 1.0, slack=small), explicit(it, 1.0, slack=large)
    assert a.lower_rate >= b.lower_rate and a.upper_rate <= b.upper_rate
    assert a.log_failure >= b.log_failure
    if b.conditions_hold:
        assert a.conditions_hold and a.log_risk <= b.log_risk


@given(distributions())
@settings(deadline=None)
def test_the_largest_slack_just_meets_the_conditions(it: PreferenceDistribution) -> None:
    slack = largest_slack(it)
    responses_differ = all(check.holds for check in it.assumptions())
    if slack > 0.0:
        assert explicit(it, 1.0, slack=slack).conditions_hold == responses_differ
    assert not explicit(it, 1.0, slack=slack * (1.0 + 1e-9) + 1e-12).conditions_hold


def test_the_explicit_trade_off_meets_the_failure_it_was_asked_for() -> None:
    for failure in (0.05, 1e-3, 1e-6):
        reading = explicit_at(REFERENCE, 1.0, 1.0, failure)
        assert reading is not None
        assert reading.log_failure == pytest.approx(math.log(failure), abs=1e-6)
    wide = preference_distribution(4, 100, 500, 0.4, 1.0)
    assert slack_for_failure(wide, 0.05) is None and explicit_at(wide, 1.0, 1.0, 0.05) is None
    with pytest.raises(InputError, match="between 0 and 1"):
        slack_for_failure(REFERENCE, 1.0)


@pytest.mark.parametrize("seed", range(5))
def test_the_explicit_risk_bound_is_never_below_the_exact_risk_on_its_event(seed: int) -> None:
    for tokens, shared in (("distinct", 0.4), ("chain", 0.25)):
        it = preference_distribution(3, 30, 60, shared, 0.03, tokens)
        draw = it.training_set(1.0, seed)
        reading = explicit(it, 1.0, slack=realised_slack(it, draw.space.features, draw.clusters))
        assert reading.conditions_hold
        state = gradient_flow(draw.space, [reading.tau_1]).states
        exact = population_risk(it, state).log10_clusters.max()
        assert float(exact) <= reading.log_risk / math.log(10.0)


def test_the_printed_theorems_say_something_only_at_astronomical_Q_and_the_explicit_one_at_once() -> None:
    by_form = {line.form: line for line in smallest_informative_Q(preference_distribution(1, 1, 5, 0.4, 0.1), None)}
    assert by_form["printed"].risk is not None and 4e9 < by_form["printed"].risk < 1e10
    assert by_form["derived"].risk is not None and 1e4 < by_form["derived"].risk < 1e5
    assert by_form["explicit"].risk is not None and by_form["explicit"].risk <= 10
    fixed = {line.form: line for line in smallest_informative_Q(REFERENCE, 0.025)}
    # At fixed v the theorems need Q <= 1/(16 v^2) = 100, far too few.
    assert fixed["printed"].training is None and fixed["derived"].training is None


@given(st.integers(1, 10**9))
def test_the_search_finds_the_first_Q(threshold: int) -> None:
    assert smallest_where(lambda Q: threshold <= Q) == threshold
    assert smallest_where(lambda Q: False, largest=1000) is None


@pytest.mark.parametrize(("beta", "tau"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (float("nan"), 1.0), (math.inf, 1.0)])
def test_beta_and_tau_must_be_positive(beta: float, tau: float) -> None:
    with pytest.raises(InputError, match="must lie between"):
        tau_1(REFERENCE, beta, tau)


def test_the_measured_slack_of_a_draw_is_within_the_explicit_one() -> None:
    draw = REFERENCE.training_set(1.0, 0)
    torch.testing.assert_close(draw.clusters.bincount(), torch.full((8,), 100))
    assert realised_slack(REFERENCE, draw.space.features, draw.clusters) < largest_slack(REFERENCE)


def test_the_table_of_what_is_gained_has_the_explicit_form_below_the_printed_one_at_every_Q() -> None:
    _, _, *rows = gain_table().splitlines()
    assert len(rows) == len(QS)
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert float(cells[3]) < min(0.0, float(cells[1])) and float(cells[7]) < min(0.0, float(cells[5]))
