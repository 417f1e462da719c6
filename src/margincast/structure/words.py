"""What is a group of prompts about? The words that tell it from the other groups.

Telling: the log-odds of a word in the group against the rest, shrunk towards the word's share in all prompts, in
standard errors (Monroe, Colaresi and Quinn 2008, "Fightin' Words", eq. 22, informative Dirichlet prior). Prompts that
hold a word are counted, not its repetitions.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby, pairwise

from margincast.records import Text

PRIOR = 0.3  # of all words of all prompts: how many the share in all prompts counts for
EVERYWHERE = 0.5  # a word that more than this part of the prompts outside a group hold does not name it
LEAST, PART = 2, 0.05  # prompts of a group that hold a word which names it: at least so many, and this part of them
CERTAIN = 1.64  # standard errors; below, a word does not tell
# Scripts that write no spaces between words: pairs of neighbouring characters stand for words there.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


def prompt_text(prompt: Text) -> str:
    """The words of a prompt: itself, or what its messages hold, one after the other."""
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def words(text: str) -> Iterator[str]:
    """The words of `text` in any script, without numbers; pairs of characters where no spaces part them."""
    # NFKC joins letters with their accents and makes full-width letters plain; an apostrophe is no end of a word.
    plain = unicodedata.normalize("NFKC", text).casefold().replace("'", "").replace("’", "")
    for kind, run in groupby(plain, _kind):
        letters = "".join(run)
        if kind == "word" and len(letters) > 1:
            yield letters
        elif kind == "unspaced":
            yield from map("".join, pairwise(letters))


@cache
def _kind(character: str) -> str:
    if character.isascii():
        return "word" if character.isalpha() else ""
    if unicodedata.category(character)[0] not in "LM":
        return ""
    return "unspaced" if unicodedata.name(character, "").startswith(UNSPACED) else "word"


# They can differ between groups by style. In other languages only `EVERYWHERE` keeps such words out.
STOP = frozenset(
    words(
        """a about above after again against all also am an and another any anything are as at be because been before
        being below between both but by can cannot could did do does doing done down during each either else even
        ever every few for from further get gets getting give given go going got had has have having he her here
        hers herself him himself his how however i if in into is it its itself just know let like made make makes
        many may me might more most much must my myself need no nor not now of off ok okay on once one only or other
        our ours out over own please put really same say see shall she should so some someone something still such
        sure than thank thanks that the their theirs them themselves then there these they thing things think this
        those through to too try under until up upon us use used using very want was way we well were what when
        where which while who whom why will with within without would yes yet you your yours yourself assistant
        human user dont doesnt didnt cant couldnt wont wouldnt isnt arent wasnt shouldnt im ive id ill youre youve
        hes shes theyre thats theres whats lets"""
    )
)


def telling_words(prompts: Sequence[Text], group: Sequence[int], count: int) -> list[list[tuple[str, float]]]:
    """For each of `count` groups its words with their scores (standard errors), the most telling first.

    group: of every prompt.  A word belongs to the one group that it tells most about. Words of equal scores come by
    their spelling. A group of prompts without telling words has none.
    """
    inside = [Counter[str]() for _ in range(count)]
    sizes = Counter(group)
    for prompt, number in zip(prompts, group, strict=True):
        inside[number].update(set(words(prompt_text(prompt))) - STOP)
    every = sum(inside, Counter[str]())
    best: dict[str, tuple[float, int]] = {}
    for number, counts in enumerate(inside):
        for word, score in _scores(counts, every, sizes[number], len(prompts)):
            if score > max(CERTAIN, best.get(word, (0.0, 0))[0]):
                best[word] = (score, number)
    found: list[list[tuple[str, float]]] = [[] for _ in range(count)]
    for word, (score, number) in sorted(best.items(), key=lambda item: (-item[1][0], item[0])):
        found[number].append((word, score))
    return found


def _scores(counts: Counter[str], every: Counter[str], size: int, total: int) -> Iterator[tuple[str, float]]:
    """Log-odds of the words of one group of `size` among `total` prompts against the others, in standard errors."""
    mine, all_of_them = counts.total(), every.total()
    others = all_of_them - mine
    if len(every) < 2:
        return  # odds are against other words
    for word, here in counts.items():
        there = every[word] - here
        if here < max(LEAST, PART * size) or there > EVERYWHERE * (total - size):
            continue
        prior = PRIOR * every[word]
        odds = math.log((here + prior) / (mine - here + PRIOR * all_of_them - prior))
        odds -= math.log((there + prior) / (others - there + PRIOR * all_of_them - prior))
        yield word, odds / math.sqrt(1 / (here + prior) + 1 / (there + prior))
