"""Each slip listed in docs/theory/errata.md that a number can settle, settled."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tests.recipes import sigmoid
from torch import Tensor
from torch.autograd import functional

from margincast.frozen.engine.state import TokenSpace
from margincast.frozen.flow.states import gradient_flow
from margincast.theory.distribution import preference_distribution
from margincast.theory.lemmas import measure_deviations, predicted_velocity, velocity_slack
from margincast.theory.risk import population_risk
from margincast.theory.theorems import derived, largest_noise, theorem_epsilon

BETA, TAU, V, D, N, L = 0.3, 1.7, 7, 5, 4, 3


class MultiToken:
    """A small teacher-forced problem: features g(i, j, a) and targets y(i, j, a), a = 0 chosen, a = 1 rejected."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.g = torch.randn(N, L, 2, D, generator=generator, dtype=torch.float64)
        self.y = torch.randint(V, (N, L, 2), generator=generator)
        self.W0 = torch.randn(V, D, generator=generator, dtype=torch.float64)
        self.W = self.W0 + 0.5 * torch.randn(V, D, generator=generator, dtype=torch.float64)
        self.fresh = torch.randn(D, generator=generator, dtype=torch.float64)

    def token_rewards(self, W: Tensor) -> Tensor:
        """Eq. 13: per-token likelihoods, (N, L, 2)."""
        gain = (self.g @ W.T).log_softmax(-1) - (self.g @ self.W0.T).log_softmax(-1)
        return BETA * gain.gather(-1, self.y[..., None]).squeeze(-1)

    def margins(self, W: Tensor) -> Tensor:
        rewards = self.token_rewards(W).sum(1)
        return rewards[:, 0] - rewards[:, 1]

    def loss(self, W: Tensor) -> Tensor:
        return sigmoid.value(self.margins(W)).mean()

    def velocity(self) -> Tensor:
        """dW/dt of the flow by autodiff of the loss."""
        return -functional.jacobian(self.loss, self.W) / TAU

    def reward(self, W: Tensor, y: int) -> Tensor:
        """Reward of token y at the fresh feature g*."""
        return BETA * ((W @ self.fresh).log_softmax(0) - (self.W0 @ self.fresh).log_softmax(0))[y]

    def reward_rate(self, y: int, sign_of_p: float) -> Tensor:
        """dr(y)/dt by Eq. 16 and 62, with p = S(Wg)_y + sign_of_p * S(Wg*)_target."""
        weights = -sigmoid.slope(self.margins(self.W))
        outputs = (self.g @ self.W.T).softmax(-1)
        at_fresh = (self.W @ self.fresh).softmax(0)
        correlation = self.g @ self.fresh
        occurs = (self.y == y).double()
        p = outputs[..., y] + sign_of_p * at_fresh[self.y]
        overlap = outputs @ at_fresh
        total = (correlation * (occurs - p + overlap)).sum(1)
        return BETA**2 / (N * TAU) * (weights * (total[:, 0] - total[:, 1])).sum()


def test_eq_12_the_tokens_of_a_response_sum_to_it_only_with_per_token_likelihoods() -> None:
    problem = MultiToken()
    by_token = problem.token_rewards(problem.W).sum(1)
    log_likelihood = ((problem.g @ problem.W.T).log_softmax(-1)).gather(-1, problem.y[..., None]).squeeze(-1).sum(1)
    reference = ((problem.g @ problem.W0.T).log_softmax(-1)).gather(-1, problem.y[..., None]).squeeze(-1).sum(1)
    whole = BETA * (log_likelihood - reference)
    assert torch.allclose(by_token, whole)
    assert not torch.allclose(L * whole, whole)  # Eq. 12 as printed sums the whole-response term L times


def test_eq_16_and_62_the_probability_factor_is_a_sum_and_tau_stands_before_dr_dt() -> None:
    problem = MultiToken()
    for y in range(V):
        gradient = functional.jacobian(lambda W, y=y: problem.reward(W, y), problem.W)
        truth = float((gradient * problem.velocity()).sum())
        assert float(problem.reward_rate(y, +1.0)) == pytest.approx(truth, rel=1e-10)
        assert abs(float(problem.reward_rate(y, -1.0)) - truth) > 1e-4


def test_eq_60_and_61_the_gradient_has_one_over_N_both_token_factors_and_outer_products() -> None:
    problem = MultiToken()
    weights = -sigmoid.slope(problem.margins(problem.W))
    onehot = torch.eye(V, dtype=torch.float64)
    outputs = (problem.g @ problem.W.T).softmax(-1)
    total = torch.zeros(V, D, dtype=torch.float64)
    for i in range(N):
        for j in range(L):
            for a, sign in ((0, 1.0), (1, -1.0)):
                total += (
                    sign * weights[i] * torch.outer(onehot[problem.y[i, j, a]] - outputs[i, j, a], problem.g[i, j, a])
                )
    assert torch.allclose(BETA / (N * TAU) * total, problem.velocity())


def test_eq_7_the_flow_of_the_mean_loss_carries_one_over_N() -> None:
    space = preference_distribution(2, 3, 6, 0.3, 0.2).training_set(BETA, 0).space
    state = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slope = functional.jacobian(lambda W: sigmoid.value(space.margins(W)).mean(), state)
    pull = space.pull(torch.sigmoid(-space.margins(state)))
    assert torch.allclose(-slope, BETA / len(space) * pull)


def test_eq_18_minus_the_slope_replaces_sigma() -> None:
    r = torch.linspace(-5, 5, 11, dtype=torch.float64)
    assert torch.allclose(-sigmoid.slope(r), torch.sigmoid(-r))
    assert bool((sigmoid.slope(r) < 0).all())


def test_theorem_A1_the_printed_upper_envelope_is_crossed_at_once() -> None:
    """2 d v^2 beta^2/(N tau) is far below every margin; (5Q + 2dv^2) beta^2/(2 N tau), its own Eq. 42, holds."""
    it = preference_distribution(2, 40, 30, 0.3, 0.004)
    draw = it.training_set(1.0, 0)
    assert all(line.holds for line in measure_deviations(it, draw, theorem_epsilon(it)))
    reading = derived(it, 1.0)
    state = gradient_flow(draw.space, [reading.tau_1]).states[0]
    margins = draw.space.margins(state) / reading.tau_1
    assert float(margins.min()) > 100.0 * 2.0 * it.d * it.noise**2 / it.N
    assert float(margins.max()) < (5.0 * it.Q + 2.0 * it.d * it.noise**2) / (2.0 * it.N)


def test_theorem_A2_its_printed_condition_excludes_that_of_theorem_A1() -> None:
    for Q in (1, 40, 10**6):
        assert 2.5 * Q / largest_noise(Q) ** 2 > 5 * Q  # d >= 5Q/(2 v^2) against d <= 5Q, for every v <= 1/(4 sqrt Q)


def test_the_coverage_count_of_theorem_4_1_doubles_because_two_terms_add() -> None:
    """(8Z+4) K Q^2 (e^-a + e^-b) <= 16 K Q^(9/4) e^-min(a,b) at Z = Q^(1/4) - 2, and 8 K Q^(9/4) is too small."""
    root, K = 100, 1
    Q, Z = root**4, root - 2
    a = b = 3.0
    total = (8 * Z + 4) * K * Q**2 * (math.exp(-a) + math.exp(-b))
    assert 8 * K * Q**2.25 * math.exp(-3.0) < total <= 16 * K * Q**2.25 * math.exp(-3.0)


def test_Z_at_least_1_forces_Q_at_least_81() -> None:
    assert 80**0.25 - 2.0 < 1.0 <= 81**0.25 - 2.0


def test_lemma_A2_needs_the_number_of_interacting_concepts_where_it_prints_Z() -> None:
    """Z = 5 and |S_k| = 8. One point's noise leans towards every concept it shares a token with, by just 2 eps v."""
    it = preference_distribution(14, 2, 20, 0.1, 1e-9, "chain", 5)
    hub = max(range(it.K), key=lambda k: len(it.interacting[k]))
    assert (it.Z, len(it.interacting[hub])) == (5, 8)
    lean = 0.05
    draw = it.training_set(1.0, 0)
    features = it.means[draw.clusters].clone()
    point = 2 * hub * it.Q
    onehot = torch.eye(len(it.tokens), dtype=torch.float64)
    delta = onehot[draw.space.chosen] - onehot[draw.space.rejected]
    for m in it.interacting[hub]:
        concept = (it.means[2 * m] - it.means[2 * m + 1]) / 2.0
        features[point] += lean * (delta[point] @ delta[2 * m * it.Q]) * concept
    space = TokenSpace(features, draw.space.chosen, draw.space.rejected, 1.0, len(it.tokens))
    kernel = space.kernel(space)
    epsilon = lean / (2.0 * it.noise) * (1.0 + 1e-9)
    lines = measure_deviations(it, replace(draw, space=space), epsilon, kernel)
    assert all(line.holds for line in lines)  # the event of Lemma A.1
    margins = torch.zeros(it.N, dtype=torch.float64)
    velocity = kernel @ torch.sigmoid(-margins) / it.N
    gap = float((velocity - predicted_velocity(it, draw.clusters, margins, 1.0)).abs().max())
    as_printed = it.Q / it.N * ((2 * it.Z + 4) * epsilon * it.noise + it.Z * it.shared_norm**2)
    assert as_printed < gap <= velocity_slack(it, margins, 1.0, epsilon)


def test_eq_50_a_training_point_is_longer_than_the_printed_variance_allows() -> None:
    """On the event |x|^2 can exceed 1 + l_b^2 + d v^2 + eps v; 2 eps v is what Eq. 19 gives."""
    it = preference_distribution(1, 200, 10, 0.3, 0.02)
    draw = it.training_set(1.0, 0)
    lengths = draw.space.features.square().sum(1)
    centre = 1.0 + 0.3**2 + 10 * 0.02**2
    slack = float((lengths - centre).abs().max()) / 2.0  # the smallest eps v with Eq. 19 for this draw
    assert float(lengths.max()) > centre + slack
    assert float(lengths.max()) <= centre + 2.0 * slack * (1.0 + 1e-12)


def test_eq_55_the_opposite_cluster_enters_with_plus() -> None:
    it = preference_distribution(1, 50, 20, 0.3, 1e-9)
    draw = it.training_set(1.0, 0)
    new = TokenSpace(it.means[:1], draw.space.chosen[:1], draw.space.rejected[:1], 1.0, 2)
    rate = float((new.kernel(draw.space) * 0.5).sum()) / it.N
    plus, minus = (2 * 1.09 * 25 + sign * 2 * 0.91 * 25 for sign in (1, -1))
    assert rate == pytest.approx(plus / it.N) != pytest.approx(minus / it.N)


def test_growth_falls_with_K_and_at_fixed_K_does_not_rise_with_Q() -> None:
    """N = 2KQ, so Q/N = 1/(2K): the theorem's rates hold no Q. At a fixed number of pairs, larger Q means smaller K."""

    def growth(K: int, Q: int) -> float:
        it = preference_distribution(K, Q, 40, 0.3, 0.02)
        space = it.training_set(1.0, 0).space
        return float(space.margins(gradient_flow(space, [0.1]).states[0]).mean()) / 0.1

    by_K = [growth(K, 20) for K in (1, 2, 4, 8)]
    assert all(later == pytest.approx(earlier / 2.0, rel=0.1) for earlier, later in pairwise(by_K))
    by_Q = [growth(4, Q) for Q in (10, 20, 40, 80)]
    assert max(by_Q) < 1.05 * min(by_Q)
    at_fixed_N = [growth(80 // Q, Q) for Q in (10, 20, 40, 80)]
    assert all(later > 1.8 * earlier for earlier, later in pairwise(at_fixed_N))


def test_what_falls_with_Q_is_the_risk() -> None:
    risks = []
    for Q in (2, 8, 32):
        it = preference_distribution(2, Q, 40, 0.3, 0.3)
        space = it.training_set(1.0, 0).space
        risks.append(float(population_risk(it, gradient_flow(space, [1.0]).states).log10[0]))
    assert risks[0] > risks[1] > risks[2]


def test_personas_share_both_tokens_so_the_theorems_do_not_cover_them() -> None:
    it = preference_distribution(4, 100, 500, 0.4, 0.025, "shared")
    assert not derived(it, 1.0).conditions_hold
    assert derived(preference_distribution(1, 100, 500, 0.4, 0.025, "shared"), 1.0).conditions_hold
