"""What does the frozen model know about every response token? The features g that predict it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from margincast.errors import InputError
from margincast.features.packing import PACK_TOKENS, plan_packs
from margincast.features.passes import check_logits, hidden_states, logit_transform, packing_problem
from margincast.features.tokenize import Encoded
from margincast.models.load import LoadedModel


@dataclass(frozen=True)
class TokenFeatures:
    """Every response position of some pairs, laid end to end: P of them, a chosen response before the rejected one.

    hidden: (P, hidden) the features g, already times the factor that the model puts on its logits
    target: (P,) the token that comes there;  response: (P,) ascending, 2i for the chosen, 2i + 1 for the rejected
    response of pair i;  pairs: how many pairs there are
    """

    hidden: Tensor
    target: Tensor
    response: Tensor
    pairs: int

    @property
    def pair(self) -> Tensor:
        """(P,) the pair of every position."""
        return self.response // 2

    @property
    def sign(self) -> Tensor:
        """(P,) +1 at positions of chosen responses, -1 at those of rejected ones."""
        return 1 - 2 * (self.response % 2)

    def of(self, response: int) -> TokenFeatures:
        """One response alone, as pair 0's of the same side. response: 2i or 2i + 1."""
        mine = self.response == response
        return TokenFeatures(self.hidden[mine], self.target[mine], self.response[mine] % 2, 1)

    def per_response(self, values: Tensor) -> Tensor:
        """Sums of `values`, (P, ...), over the tokens of each response: (pairs, 2, ...), chosen first."""
        sums = values.new_zeros(2 * self.pairs, *values.shape[1:]).index_add(0, self.response, values)
        return sums.reshape(self.pairs, 2, *values.shape[1:])


def head_of(loaded: LoadedModel) -> tuple[Tensor, Tensor | None]:
    """(unembedding (V, hidden), bias (V,) or None) that make the model's logits from `TokenFeatures.hidden`."""
    head = loaded.model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    scaled = None if bias is None else bias.detach().cpu() * logit_transform(loaded.model)[0]
    return head.weight.detach().cpu(), scaled


@torch.no_grad()
def token_features(loaded: LoadedModel, rows: Sequence[Encoded], *, progress: bool = False) -> TokenFeatures:
    """Features at every response position of `rows`, in packed passes where the model takes them.

    Raises `InputError` for a model whose logits are not linear in the unembedding.
    """
    logits = check_logits(loaded.model, rows)
    if logits != "linear":
        raise InputError(f"the logits of {loaded.name} are {logits}: the decomposition is of logits linear in W")
    packed = packing_problem(loaded.model, rows) is None
    parts: list[TokenFeatures] = []
    plan = plan_packs([row.inputs for row in rows], PACK_TOKENS, packed)
    for members in tqdm(plan, desc="response positions", unit="pack", disable=not progress):
        hidden, where = hidden_states(loaded.model, [rows[index] for index in members], packed)
        response = 2 * torch.tensor(members)[where.response // 2] + where.response % 2
        parts.append(TokenFeatures(hidden[where.row].cpu(), where.target, response, len(rows)))
    response = torch.cat([part.response for part in parts])
    order = torch.argsort(response, stable=True)
    hidden = torch.cat([part.hidden for part in parts])[order] * logit_transform(loaded.model)[0]
    return TokenFeatures(hidden, torch.cat([part.target for part in parts])[order], response[order], len(rows))
