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
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from margincast.diagnose.kernel import PairPoints
from margincast.records import PairSet, Text

BLOCK = 1024

SAME_WORDS = 0.3  # share of words that rewordings have in common


@dataclass(frozen=True)
class Neighbours:
    """score: (pairs,) in [0, 1]; partner: (pairs,) row of the nearest such pair, -1 for none; overlap: (pairs,)

    overlap is the weighted Jaccard similarity of the two prompts' words; a word weighs the more the rarer it is.
    """

    score: Tensor
    partner: Tensor
    overlap: Tensor


def duplicates(points: PairPoints, pairs: PairSet) -> Neighbours:
    """The nearest pair of the same preference."""
    return _nearest(points, pairs, opposite=False)


def conflicts(points: PairPoints, pairs: PairSet) -> Neighbours:
    """The nearest pair of the opposite preference."""
    return _nearest(points, pairs, opposite=True)


def _nearest(points: PairPoints, pairs: PairSet, opposite: bool) -> Neighbours:
    treated = points.treated
    score, partner = torch.zeros(len(points)), torch.full((len(points),), -1)
    for chosen, rejected in sorted(set(zip(points.chosen.tolist(), points.rejected.tolist(), strict=True))):
        rows = ((points.chosen == chosen) & (points.rejected == rejected)).nonzero().squeeze(1)
        if opposite:
            chosen, rejected = rejected, chosen
        others = ((points.chosen == chosen) & (points.rejected == rejected)).nonzero().squeeze(1)
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
    _same_words(points, pairs, opposite, score, partner)
    return Neighbours(score, partner, overlaps([pair.prompt for pair in pairs], partner.tolist()))


def _same_words(points: PairPoints, pairs: PairSet, opposite: bool, score: Tensor, partner: Tensor) -> None:
    """Pairs with one prompt are neighbours whatever rounding makes of their cosine."""
    # By dictionary, not by comparison: N rows, not N^2.
    earlier: dict[tuple[str, int, int], list[int]] = {}
    prompts = (json.dumps(pair.prompt, default=dict) for pair in pairs)
    keys = list(zip(prompts, points.chosen.tolist(), points.rejected.tolist(), strict=True))
    for row, key in enumerate(keys):
        earlier.setdefault(key, []).append(row)
    for row, (prompt, chosen, rejected) in enumerate(keys):
        key = (prompt, rejected, chosen) if opposite else (prompt, chosen, rejected)
        others = [other for other in earlier.get(key, [])[:2] if other != row]
        if others:
            score[row], partner[row] = 1.0, others[0]


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
