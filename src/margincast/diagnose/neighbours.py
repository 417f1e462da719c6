"""Which pairs say the same thing twice, and which contradict one another? Nearest neighbours in treated features.

Of pairs with the same two response tokens, preferred the same way round (duplicates) or the other way round
(conflicts), the nearest one in treated features, and its cosine; 0 where there is none on the same side of the mean.
A neighbour with the same prompt word for word scores 1.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from margincast.diagnose.points import Neighbours
from margincast.records import PairSet, Text

BLOCK = 1024

SAME_WORDS = 0.3  # share of words that rewordings have in common


def nearest_single(
    treated: Tensor, chosen_ids: Tensor, rejected_ids: Tensor, pairs: PairSet, *, opposite: bool
) -> Neighbours:
    """The nearest pair of the same preference, or of the opposite one, of pairs of one token a response.

    treated: (pairs, hidden) features of unit length;  chosen_ids, rejected_ids: (pairs,) tokens
    """
    count = len(treated)
    score, partner = torch.zeros(count), torch.full((count,), -1)
    for chosen, rejected in sorted(set(zip(chosen_ids.tolist(), rejected_ids.tolist(), strict=True))):
        rows = ((chosen_ids == chosen) & (rejected_ids == rejected)).nonzero().squeeze(1)
        if opposite:
            chosen, rejected = rejected, chosen
        others = ((chosen_ids == chosen) & (rejected_ids == rejected)).nonzero().squeeze(1)
        if not len(others):
            continue
        candidates = treated[others]
        for part in rows.split(BLOCK):
            cosines = treated[part] @ candidates.T
            cosines[part[:, None] == others] = -1.0
            best = cosines.max(dim=1)
            found = best.values > 0
            score[part[found]] = best.values[found].clamp(max=1.0)
            partner[part[found]] = others[best.indices[found]]
    prompts = (json.dumps(pair.prompt, default=dict) for pair in pairs)
    same_words(list(zip(prompts, chosen_ids.tolist(), rejected_ids.tolist(), strict=True)), opposite, score, partner)
    return Neighbours(score, partner, overlaps([pair.prompt for pair in pairs], partner.tolist()))


def nearest_sequences(
    prompts: Tensor, chosen: Tensor, rejected: Tensor, pairs: PairSet, *, opposite: bool
) -> Neighbours:
    """The same of responses of many tokens, which are never quite the same: how near two pairs are is the least of the
    three cosines between their prompts and between the responses that would have to be alike.

    prompts, chosen, rejected: (pairs, hidden) treated features of unit length, of the responses their means
    """
    score, partner = torch.zeros(len(prompts)), torch.full((len(prompts),), -1)
    like = (rejected, chosen) if opposite else (chosen, rejected)
    for part in torch.split(torch.arange(len(prompts)), BLOCK):
        cosines = prompts[part] @ prompts.T
        for mine, other in zip((chosen, rejected), like, strict=True):
            cosines = torch.minimum(cosines, mine[part] @ other.T)
        cosines[torch.arange(len(part)), part] = -1.0
        best = cosines.max(dim=1)
        found = best.values > 0
        score[part[found]] = best.values[found].clamp(max=1.0).float()
        partner[part[found]] = best.indices[found]
    keys = [(folded(pair.prompt), folded(pair.chosen), folded(pair.rejected)) for pair in pairs]
    same_words(keys, opposite, score, partner)
    texts = ["\n".join(map(_plain, (pair.prompt, pair.chosen, pair.rejected))) for pair in pairs]
    return Neighbours(score, partner, overlaps(texts, partner.tolist()))


def same_words(keys: Sequence[tuple[str, Hashable, Hashable]], opposite: bool, score: Tensor, partner: Tensor) -> None:
    """Pairs with one prompt and the same responses are neighbours whatever rounding makes of their cosine.

    keys: prompt, chosen and rejected of every pair;  score, partner: of `Neighbours`, put right in place
    """
    # By dictionary, not by comparison: N rows, not N^2.
    earlier: dict[tuple[str, Hashable, Hashable], list[int]] = {}
    for row, key in enumerate(keys):
        earlier.setdefault(key, []).append(row)
    for row, (prompt, chosen, rejected) in enumerate(keys):
        key = (prompt, rejected, chosen) if opposite else (prompt, chosen, rejected)
        others = [other for other in earlier.get(key, [])[:2] if other != row]
        if others:
            score[row], partner[row] = 1.0, others[0]


def folded(text: Text) -> str:
    """As people read it: white space and case make no other text."""
    return " ".join(_plain(text).split()).casefold()


def overlaps(prompts: Sequence[Text], partners: Sequence[int]) -> Tensor:
    """Weighted Jaccard similarity of the words of each prompt and its partner's, (prompts,); 0 for no partner.

    A word in n of N prompts weighs log((1 + N)/n), so that words which every prompt has weigh nothing.
    """
    words = [frozenset(re.findall(r"\w+", _plain(prompt).lower())) for prompt in prompts]
    frequency = Counter(word for prompt in words for word in prompt)
    weight = {word: math.log((1 + len(words)) / count) for word, count in frequency.items()}
    result = torch.zeros(len(prompts))
    for row, partner in enumerate(partners):
        if partner >= 0:
            either = sum(weight[word] for word in words[row] | words[partner])
            both = sum(weight[word] for word in words[row] & words[partner])
            result[row] = both / either if either else 1.0
    return result


def _plain(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
