"""How often would a trained state misjudge a fresh pair, exactly? (Definition 3.1, Eq. 5)

Given the state dW, the margin of a fresh point of a Gaussian cluster is itself Gaussian: with w = delta^T dW, mean
beta w^T mu and standard deviation beta sqrt(w^T Sigma w). Risk is the mean over clusters of Phi(-mean/sd): no sampling,
and in log space, so that 1e-230 comes out as -230. A margin of exactly 0 counts as not learned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import log_ndtr, logsumexp
from torch import Tensor

from margincast.errors import InputError
from margincast.theory.distribution import PreferenceDistribution


@dataclass(frozen=True)
class Risk:
    """Population risk of a sequence of states, as base-10 logarithms.

    log10_clusters: (states, clusters), one value per Gaussian cluster
    log10: (states,), the average over equally likely clusters
    """

    log10_clusters: Tensor
    log10: Tensor


@dataclass(frozen=True)
class GaussianClusters:
    """Clusters fitted on features: means and square roots of covariances.

    means: (clusters, hidden)
    roots: for each cluster (m, hidden) with covariance root^T root
    chosen, rejected: (clusters,) rows of the state for the responses of the cluster's pairs
    """

    means: Tensor
    roots: tuple[Tensor, ...]
    chosen: Tensor
    rejected: Tensor


def population_risk(distribution: PreferenceDistribution, states: Tensor) -> Risk:
    """Exact risk of each state under the preference distribution, (states, T, hidden) or one (T, hidden).

    beta scales mean and standard deviation alike and drops out.
    """
    w = _directions(states, *distribution.cluster_responses)
    mean = torch.einsum("scd,cd->sc", w, distribution.means)
    return _risk(mean, distribution.noise * w.norm(dim=2))


def fitted_risk(clusters: GaussianClusters, states: Tensor) -> Risk:
    """Risk of each state, (states, T, hidden) or one (T, hidden), if every cluster were Gaussian as fitted.

    On real features this is a reading, not a fact: it replaces each cluster by the Gaussian of the same mean and
    covariance.
    """
    w = _directions(states, clusters.chosen, clusters.rejected)
    mean = torch.einsum("scd,cd->sc", w, clusters.means.double())
    sd = torch.stack([(w[:, c] @ root.double().T).norm(dim=1) for c, root in enumerate(clusters.roots)], dim=1)
    return _risk(mean, sd)


def fit_clusters(features: Tensor, chosen: Tensor, rejected: Tensor, clusters: Tensor) -> GaussianClusters:
    """Mean and covariance of each cluster of features (unbiased, over pairs - 1).

    features: (pairs, hidden); chosen, rejected: (pairs,) rows of the state; clusters: (pairs,) numbers from 0
    Raises `InputError` where a cluster has fewer than two pairs or mixes responses.
    """
    means, roots, firsts = [], [], []
    for c in range(int(clusters.max()) + 1):
        members = torch.nonzero(clusters == c).flatten()
        if len(members) < 2:
            raise InputError(f"cluster {c} has {len(members)} pairs; its covariance needs at least 2")
        first = members[0]
        if bool((chosen[members] != chosen[first]).any()) or bool((rejected[members] != rejected[first]).any()):
            raise InputError(f"the pairs of cluster {c} do not all have the same responses; split it by response")
        rows = features[members].double()
        means.append(rows.mean(dim=0))
        roots.append((rows - means[-1]) / math.sqrt(len(members) - 1))
        firsts.append(first)
    index = torch.stack(firsts)
    return GaussianClusters(torch.stack(means), tuple(roots), chosen[index], rejected[index])


def _directions(states: Tensor, chosen: Tensor, rejected: Tensor) -> Tensor:
    """delta_c^T dW for every state and cluster, (states, clusters, hidden), float64."""
    batch = states.double() if states.ndim == 3 else states.double()[None]
    return batch[:, chosen] - batch[:, rejected]


def _risk(mean: Tensor, sd: Tensor) -> Risk:
    m, s = mean.numpy(), sd.numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = log_ndtr(-m / s)
    # No spread: the margin is its mean, and a margin that is not positive is a mistake for certain.
    log_clusters = np.where(s > 0.0, spread, np.where(m > 0.0, -np.inf, 0.0))
    log_all = logsumexp(log_clusters, axis=1) - math.log(m.shape[1])
    return Risk(torch.from_numpy(log_clusters / math.log(10.0)), torch.from_numpy(log_all / math.log(10.0)))
