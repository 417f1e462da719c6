"""How alike are the embeddings of personas, of bare statements and of what training sees? (Figures 1, 3)

The authors' scripts embed bare statements, those that match the persona alone, and take the last token. A pair whose
prompt is its statement has just that feature. The scripts apply the model's last norm to `hidden_states[-1]`, which
transformers has normed already; `normed_again` is that, to show what it does to the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from margincast.errors import InputError
from margincast.records import Features, PairSet
from margincast.results import Json
from margincast.structure import inspect_features
from margincast.structure.cosines import centred, mean_cosines, membership, sides
from margincast.theory.measured import measured_conditions

SIDES = {"matching": 1, "both": 0}
INPUTS = ("statement", "question")
RESAMPLES = 50
NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


@dataclass(frozen=True)
class Cosines:
    """Average cosines between concepts, of one figure and one way to embed.

    input: what the model reads, "statement" or "question";  side: "matching" statements or "both"
    raw, centred: (concepts, concepts); centred by the mean of the embeddings that are in the figure
    double_norm: whether the last norm was applied twice, as in the authors' scripts
    """

    figure: str
    input: str
    side: str
    double_norm: bool
    concepts: tuple[str, ...]
    statements: int
    raw: Tensor
    centred: Tensor

    @property
    def name(self) -> str:
        return f"{self.figure}-{self.input}-{self.side}{'-double-norm' if self.double_norm else ''}"

    def row(self) -> Json:
        """As a row of `cosines.jsonl`, at four digits after the point."""
        plain = {name: value for name, value in vars(self).items() if not isinstance(value, Tensor)}
        matrices = {name: getattr(self, name).double().numpy().round(4).tolist() for name in ("raw", "centred")}
        return {**plain, "concepts": list(self.concepts), **matrices}

    @staticmethod
    def from_row(row: Json) -> Cosines:
        def matrix(lines: list[list[float | None]]) -> Tensor:
            nothing = float("nan")
            return torch.tensor([[nothing if x is None else x for x in line] for line in lines], dtype=torch.float64)

        values = {**row, "concepts": tuple(row["concepts"])}
        return Cosines(**values | {name: matrix(row[name]) for name in ("raw", "centred")})


def as_statements(pairs: PairSet) -> PairSet:
    """The pairs with their bare statement as the prompt. Raises `InputError` for a pair that has none."""
    for pair in pairs:
        if pair.statement is None:
            raise InputError(f"{pair.source}, line {pair.line}: no statement to embed; Figures 1 and 3 need one")
    return PairSet(tuple(replace(pair, prompt=pair.statement or "") for pair in pairs))


def figure_cosines(figure: str, shown: str, features: Features, double_norm: bool = False) -> list[Cosines]:
    """Cosines of every side of the training pairs of `features`, whose prompts are the inputs called `shown`."""
    pairs = features.train.pairs
    found = []
    for name, side in SIDES.items():
        index = [k for k, sign in enumerate(sides(pairs).tolist()) if side in (0, sign)]
        part = PairSet(tuple(pairs[k] for k in index))
        embeddings = features.train.hidden[index]
        member = membership(part, pairs.concepts)
        found.append(
            Cosines(
                figure=figure,
                input=shown,
                side=name,
                double_norm=double_norm,
                concepts=pairs.concepts,
                statements=len(index),
                raw=mean_cosines(embeddings, member),
                centred=mean_cosines(centred(embeddings), member),
            )
        )
    return found


@torch.no_grad()
def normed_again(features: Features, model: Any) -> Features:
    """`features` with the model's last norm applied to the training pairs' once more.

    Raises `InputError` for a model whose last norm is not found.
    """
    body = model.base_model
    norm = next((getattr(body, name) for name in NORMS if isinstance(getattr(body, name, None), nn.Module)), None)
    if norm is None:
        raise InputError(f"the last norm of {features.model} is under none of the names {', '.join(NORMS)}")
    hidden = norm(features.train.hidden.to(model.device, model.dtype)).cpu()
    return replace(features, train=replace(features.train, hidden=hidden))


def condition_rows(features: Features, data: str) -> list[Json]:
    """The theorems' conditions on the training pairs of `features`, with 95% intervals of their left sides.

    Intervals are 1.96 standard deviations over resamples of every cluster's pairs, about the value: pairs drawn twice
    make clusters look tighter, which moves the resamples' own quantiles away from it.
    """
    pairs = features.train.pairs
    values = measured_conditions(inspect_features(features))
    generator = torch.Generator().manual_seed(0)
    draws = [
        [check.left for check in measured_conditions(inspect_features(_resampled(features, groups, generator)))]
        for groups in [_clusters(pairs)] * (RESAMPLES if values else 0)
    ]
    half = 1.96 * torch.tensor(draws, dtype=torch.float64).std(dim=0)
    return [
        {
            "name": check.name,
            "left": check.left,
            "low": check.left - float(half[k]),
            "high": check.left + float(half[k]),
            "relation": check.relation,
            "right": check.right,
            "holds": check.holds,
            "data": data,
        }
        for k, check in enumerate(values)
    ]


def _clusters(pairs: PairSet) -> list[Tensor]:
    groups: dict[tuple[str, int], list[int]] = {}
    for k, (pair, side) in enumerate(zip(pairs, sides(pairs).tolist(), strict=True)):
        groups.setdefault((pair.concept, side), []).append(k)
    return [torch.tensor(members) for members in groups.values()]


def _resampled(features: Features, groups: Sequence[Tensor], generator: torch.Generator) -> Features:
    index = torch.cat(
        [members[torch.randint(len(members), (len(members),), generator=generator)] for members in groups]
    )
    rows = index.tolist()
    split = features.train
    drawn = replace(
        split,
        pairs=PairSet(tuple(split.pairs[k] for k in rows)),
        hidden=split.hidden[index],
        chosen_ids=tuple(split.chosen_ids[k] for k in rows),
        rejected_ids=tuple(split.rejected_ids[k] for k in rows),
    )
    return replace(features, train=drawn)
