"""Draw the preference distribution, run the flow to tau_1, and set it against everything the theory promises."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import ClassVar

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.frozen.flow.states import gradient_flow
from margincast.results import Result
from margincast.theory.certificates import Certificate, certify
from margincast.theory.distribution import PreferenceDistribution
from margincast.theory.guarantee import Guarantee, tau_1
from margincast.theory.lemmas import Deviation, measure_deviations
from margincast.theory.risk import Risk, population_risk
from margincast.theory.theorems import guarantees, theorem_epsilon

_FRESH = 200  # new points whose margins are followed beside the exact risk
_LARGEST = 10**9  # numbers of a draw


@dataclass(frozen=True)
class Simulation(Result):
    """One draw and its run.

    times: (times,) from 0 to tau_1;  train: (times, N) margins;  fresh: (times, new points) margins
    risk: exact population risk at each time;  deviations: Lemma A.1 measured on this draw
    certificate: brackets of the training and of the new points' margins;  guarantees: by form
    """

    presenter: ClassVar[str] = "simulation"

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
    def growth(self) -> float:
        """The mean training margin at tau_1 over the time until then, in beta^2/tau: of any run beside any other."""
        return float(self.train[-1].mean()) / float(self.times[-1]) * self.tau / self.beta**2

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
class Setup:
    """What one simulation is of: a distribution, beta, tau and the seed of the draw.

    Raises `InputError` for a bad beta or tau, and for a draw of more than 1e9 numbers.
    """

    distribution: PreferenceDistribution
    beta: float
    tau: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        tau_1(self.distribution, self.beta, self.tau)
        it = self.distribution
        if it.N * it.d > _LARGEST:
            raise InputError(
                f"K, Q and d ask for {it.N:,} features of width {it.d:,}, more than 1e9 numbers; lower Q or d"
            )


@dataclass(frozen=True)
class Sweep(Result):
    """Simulations beside one another. values: what was varied, called `name`, (runs,);  runs: in their order"""

    presenter: ClassVar[str] = "sweep"

    name: str
    values: tuple[float, ...]
    runs: tuple[Simulation, ...]


def sweep(name: str, setups: Mapping[float, Setup], *, processes: int | None = None, progress: bool = False) -> Sweep:
    """Simulate every setup, by the value of what `name` calls, several in parallel processes.

    processes: how many at once; the processors of this machine when not given. The numbers do not depend on it.
    """
    jobs = list(setups.values())
    if len(jobs) == 1:
        return Sweep(name, tuple(setups), (_run(jobs[0]),))
    from tqdm import tqdm

    workers = min(len(jobs), processes or os.cpu_count() or 1)
    # Spawned, not forked: a fork of a process whose torch has started threads can hang.
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool,
        tqdm(total=len(jobs), desc="simulating", disable=not progress) as bar,
    ):
        futures = [pool.submit(_run, job) for job in jobs]
        for future in as_completed(futures):
            future.result()  # its failure, when it fails
            bar.update()
    return Sweep(name, tuple(setups), tuple(future.result() for future in futures))


def _one_thread() -> None:
    torch.set_num_threads(1)


def _run(setup: Setup) -> Simulation:
    return simulate(setup.distribution, setup.beta, setup.tau, setup.seed)
