"""Draw the preference distribution, run the flow to tau_1, and set it against everything the theory promises."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.frozen.flow.states import gradient_flow
from margincast.theory.certificates import Certificate, certify
from margincast.theory.distribution import PreferenceDistribution
from margincast.theory.guarantee import Guarantee
from margincast.theory.lemmas import Deviation, measure_deviations
from margincast.theory.risk import Risk, population_risk
from margincast.theory.theorems import guarantees, theorem_epsilon

_FRESH = 200  # new points whose margins are followed beside the exact risk


@dataclass(frozen=True)
class Simulation:
    """One draw and its run.

    times: (times,) from 0 to tau_1;  train: (times, N) margins;  fresh: (times, new points) margins
    risk: exact population risk at each time;  deviations: Lemma A.1 measured on this draw
    certificate: brackets of the training and of the new points' margins;  guarantees: by form
    """

    distribution: PreferenceDistribution
    beta: float
    tau: float
    seed: int
    times: Tensor
    train: Tensor
    fresh: Tensor
    risk: Risk
    deviations: tuple[Deviation, ...]
    certificate: Certificate
    guarantees: dict[str, Guarantee]

    def envelope_held(self, form: str) -> bool:
        """Whether every training margin stayed between r^L and r^U of one form up to tau_1.

        The room of 1e-9 (relative) is for rounding where a margin runs along the envelope.
        """
        guarantee = self.guarantees[form]
        room = 1e-9 * (1.0 + self.train.abs())
        low, high = (self.times[:, None] * rate for rate in (guarantee.lower_rate, guarantee.upper_rate))
        return bool(((self.train >= low - room) & (self.train <= high + room)).all())

    @property
    def event_held(self) -> bool:
        """Whether this draw lies in the event of Lemma A.1 at the theorem's epsilon."""
        return all(line.holds for line in self.deviations)


def simulate(
    distribution: PreferenceDistribution, beta: float, tau: float = 1.0, seed: int = 0, points: int = 41
) -> Simulation:
    """Sample a training set with `seed`, run gradient flow to tau_1 and record `points` times on the way.

    Raises `InputError` for points < 2, or beta or tau that are not positive.
    """
    if points < 2:
        raise InputError(f"a simulation needs at least 2 recorded times, got {points}")
    readings = guarantees(distribution, beta, tau)
    training = distribution.training_set(beta, seed)
    # Seeds of the new points are far from those of training sets, so neighbouring seeds share no noise.
    fresh = distribution.fresh_points(_FRESH, beta, seed + 2**32)
    times = torch.linspace(0.0, readings["derived"].tau_1, points, dtype=torch.float64)
    states = gradient_flow(training.space, times.tolist(), tau=tau).states
    return Simulation(
        distribution=distribution,
        beta=beta,
        tau=tau,
        seed=seed,
        times=times,
        train=torch.stack([training.space.margins(state) for state in states]),
        fresh=torch.stack([fresh.space.margins(state) for state in states]),
        risk=population_risk(distribution, states),
        deviations=measure_deviations(distribution, training, theorem_epsilon(distribution)),
        certificate=certify(training.space, fresh.space, times.tolist(), tau),
        guarantees=readings,
    )


@dataclass(frozen=True)
class Job:
    """The arguments of one `simulate`, to be sent to another process."""

    distribution: PreferenceDistribution
    beta: float
    tau: float
    seed: int


def sweep(jobs: Sequence[Job], processes: int | None = None) -> Iterator[tuple[int, Simulation]]:
    """Run the jobs in parallel processes; yields (index of the job, its simulation) as each finishes.

    processes: how many at once; the processors of this machine when not given. The numbers do not depend on it.
    """
    workers = min(len(jobs), processes or os.cpu_count() or 1)
    # Spawned, not forked: a fork of a process whose torch has started threads can hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        futures = {pool.submit(_run, job): index for index, job in enumerate(jobs)}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _one_thread() -> None:
    torch.set_num_threads(1)


def _run(job: Job) -> Simulation:
    return simulate(job.distribution, job.beta, job.tau, job.seed)
