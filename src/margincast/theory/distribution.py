"""What is the preference distribution the theorems speak about, and what does a draw from it look like? (Section 4.1)

K concepts, each a pair of clusters N(b + c_k, v^2 I) and N(b - c_k, v^2 I) in R^d: c_k unit vectors, orthogonal to each
other and to b, |b| = l_b. Concept k has a response pair (a_k, b_k); its + cluster prefers a_k, its - cluster b_k.
Q training pairs per cluster, N = 2KQ. Z is the largest number of concepts a token occurs in, S_k the set of *other*
concepts that share a token with concept k. Clusters are numbered 2k for (k, +) and 2k + 1 for (k, -).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.frozen.engine.state import TokenSpace
from margincast.records import Check

TOKEN_ASSIGNMENTS = ("distinct", "chain", "shared")
_LARGEST = 1e12  # of l_b, v and 1/v, in units of |c_k| = 1; beyond, float64 cannot hold the formulas
_ORTHONORMAL = 1e-9  # how far float64 axes may be from orthonormal


def assign_tokens(kind: str, K: int, Z: int = 2) -> tuple[tuple[int, int], ...]:
    """Response pairs of K concepts, as token ids.

    distinct: no token is shared (Z = 1). shared: every concept has the same pair, as in persona data (Z = K; outside
    the theorems for K > 1). chain: a path of hub tokens, each in Z concepts: one that leads to it, one that leads on
    and Z - 2 side branches, so that |S_k| reaches 2(Z - 1). Z is used by "chain" only.

    Raises `InputError` for an unknown kind, K < 1, or a chain with Z < 2.
    """
    if K < 1:
        raise InputError(f"the number of concepts K must be at least 1, got {K}")
    if kind == "distinct":
        return tuple((2 * k, 2 * k + 1) for k in range(K))
    if kind == "shared":
        return ((0, 1),) * K
    if kind != "chain":
        raise InputError(f"token assignment {kind!r} is not known; use one of: {', '.join(TOKEN_ASSIGNMENTS)}")
    if Z < 2:
        raise InputError(f"a chain shares tokens, so Z must be at least 2, got {Z}; use 'distinct' for Z = 1")
    edges: list[tuple[int, int]] = []
    hub, fresh = 0, 1
    while len(edges) < K:
        edges.append((hub, fresh))
        hub, fresh = fresh, fresh + 1
        for _ in range(Z - 2):
            edges.append((hub, fresh))
            fresh += 1
    return tuple(edges[:K])


@dataclass(frozen=True)
class Draw:
    """Points of the distribution. space: float64 features and response tokens; clusters: (pairs,) cluster numbers."""

    space: TokenSpace
    clusters: Tensor


@dataclass(frozen=True, eq=False)
class PreferenceDistribution:
    """The mixture of Section 4.1.

    Q: training pairs per cluster;  d: hidden width;  shared_norm: l_b;  noise: v, standard deviation per coordinate
    responses: for each concept the token its + cluster prefers, then the token its - cluster prefers
    axes: (K + 1, d) orthonormal rows, the direction of b and then c_1 ... c_K; the standard basis when not given

    Raises `InputError` for parameters outside the model. Concepts with the same response pair are let in, because
    persona data has them, and reported by `assumptions`.
    """

    Q: int
    d: int
    shared_norm: float
    noise: float
    responses: tuple[tuple[int, int], ...]
    axes: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.responses:
            raise InputError("a preference distribution needs at least one concept (K >= 1)")
        if not 1 <= self.Q <= 10**18:
            raise InputError(f"the number of pairs per cluster Q must be at least 1 and at most 1e18, got {self.Q}")
        if self.d < self.K + 1:
            raise InputError(
                f"K = {self.K} concepts and b cannot be orthogonal in d = {self.d} dimensions; K may be at most d - 1"
            )
        if not 0.0 <= self.shared_norm <= _LARGEST:
            raise InputError(f"shared_norm (l_b) must lie between 0 and {_LARGEST:g}, got {self.shared_norm}")
        if not 1.0 / _LARGEST <= self.noise <= _LARGEST:
            raise InputError(f"noise (v) must lie between {1.0 / _LARGEST:g} and {_LARGEST:g}, got {self.noise}")
        for k, (preferred, other) in enumerate(self.responses):
            if preferred == other or min(preferred, other) < 0:
                raise InputError(f"concept {k} needs two different token ids >= 0, got {(preferred, other)}")
        if self.axes is not None:
            self._refuse_bad_axes(self.axes)

    def _refuse_bad_axes(self, axes: Tensor) -> None:
        if axes.shape != (self.K + 1, self.d):
            raise InputError(f"axes must have shape {(self.K + 1, self.d)}, got {tuple(axes.shape)}")
        gram = axes.double() @ axes.double().T
        if float((gram - torch.eye(self.K + 1, dtype=torch.float64)).abs().max()) > _ORTHONORMAL:
            raise InputError("the rows of axes (direction of b, then concepts) must be unit vectors, all orthogonal")

    @property
    def K(self) -> int:
        return len(self.responses)

    @property
    def N(self) -> int:
        return 2 * self.K * self.Q

    @cached_property
    def Z(self) -> int:
        """The largest number of concepts whose response pair contains one and the same token."""
        return max(Counter(token for pair in self.responses for token in pair).values())

    @cached_property
    def interacting(self) -> tuple[frozenset[int], ...]:
        """S_k: for each concept the other concepts that share a token with it."""
        users: dict[int, set[int]] = {}
        for k, pair in enumerate(self.responses):
            for token in pair:
                users.setdefault(token, set()).add(k)
        return tuple(frozenset((users[a] | users[b]) - {k}) for k, (a, b) in enumerate(self.responses))

    @cached_property
    def S(self) -> int:
        """max_k |S_k|."""
        return max(len(members) for members in self.interacting)

    @cached_property
    def means(self) -> Tensor:
        """Cluster means b +- c_k, (2K, d), float64."""
        axes = torch.eye(self.K + 1, self.d, dtype=torch.float64) if self.axes is None else self.axes.double()
        signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
        return self.shared_norm * axes[0] + (axes[1:, None, :] * signs[None, :, None]).reshape(2 * self.K, self.d)

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """The distinct response tokens, ascending; the rows of the state."""
        return tuple(sorted({token for pair in self.responses for token in pair}))

    @cached_property
    def cluster_responses(self) -> tuple[Tensor, Tensor]:
        """Rows of the state of the chosen and of the rejected token of every cluster, each (2K,)."""
        row = {token: index for index, token in enumerate(self.tokens)}
        chosen = torch.tensor([row[token] for pair in self.responses for token in pair])
        return chosen, chosen.view(-1, 2).flip(1).flatten()

    def assumptions(self) -> tuple[Check, ...]:
        """What Section 4.1 asks of the responses; the geometry holds by construction."""
        repeated = len(self.responses) - len({frozenset(pair) for pair in self.responses})
        return (Check("concepts that repeat another's response pair", float(repeated), 0.0, "=="),)

    def training_set(self, beta: float, seed: int) -> Draw:
        """Q points of every cluster, ordered by cluster: the training pairs of one run, N = 2KQ."""
        return self._points(torch.arange(2 * self.K).repeat_interleave(self.Q), beta, seed)

    def fresh_points(self, count: int, beta: float, seed: int) -> Draw:
        """`count` new points, each from a cluster drawn uniformly: what the population risk averages over."""
        generator = torch.Generator().manual_seed(seed)
        return self._points(torch.randint(2 * self.K, (count,), generator=generator), beta, seed + 1)

    def _points(self, clusters: Tensor, beta: float, seed: int) -> Draw:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(clusters), self.d, generator=generator, dtype=torch.float64)
        chosen, rejected = self.cluster_responses
        features = self.means[clusters] + self.noise * noise
        space = TokenSpace(features, chosen[clusters], rejected[clusters], beta, len(self.tokens))
        return Draw(space, clusters)


def preference_distribution(
    K: int,
    Q: int,
    d: int,
    shared_norm: float,
    noise: float,
    tokens: str | Sequence[tuple[int, int]] = "distinct",
    Z: int = 2,
) -> PreferenceDistribution:
    """The distribution with K concepts and a token assignment by name (see `assign_tokens`) or given explicitly.

    Raises `InputError` for parameters outside the model, or an explicit assignment that does not name K pairs.
    """
    responses = assign_tokens(tokens, K, Z) if isinstance(tokens, str) else tuple(tokens)
    if len(responses) != K:
        raise InputError(f"the token assignment names {len(responses)} response pairs for K = {K} concepts")
    return PreferenceDistribution(Q, d, shared_norm, noise, responses)
