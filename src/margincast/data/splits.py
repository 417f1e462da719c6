"""Which files of a folder (or splits of a data set) belong together? Shards are one; train and test are one, split.

Without this a folder with train.jsonl and test.jsonl would be two concepts, trained on together.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from margincast.errors import InputError

_TRAIN = ("train", "training")
# In this order: of test and validation the first is held out, as TRL's dataset_test_split has it.
_HELDOUT = ("test", "testing", "heldout", "validation", "valid", "val", "dev", "eval", "evaluation")
# The name that files for `trl dpo` give where nobody chose one; data need not have it.
TRL_DEFAULT = "test"
_SHARD = re.compile(r"[-_.]\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class Part:
    """What a file is: of which concept, of which side where the names say so, and why it is not read, if so."""

    concept: str
    split: Literal["train", "heldout"] | None = None
    left_out: str = ""


def parts_of(labels: Sequence[str], whole: str, test_split: str | None = None) -> dict[str, Part]:
    """What each of the files `labels` (paths within the folder, without extension) is.

    Files whose names differ in one word, `train` in one and `test` or `validation` in another, are one split concept,
    named by what the names share: the folder, and the rest of the name, or `whole` where there is neither.

    whole: the folder's own name;  test_split: the held-out part to take, by its word or its name
    Raises `InputError` where `test_split` is given and training files are without it.
    """
    groups: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    parts: dict[str, Part] = {}
    for label in labels:
        plain = _SHARD.sub("", label)
        parts[label] = Part(plain)
        folder, _, stem = plain.rpartition("/")
        found = _word_of(stem)
        if found:
            groups[folder, found[1]][found[0]].append(label)
    for (folder, base), words in groups.items():
        training = [word for word in words if word in _TRAIN]
        heldout = [word for word in _HELDOUT if word in words]
        if not training or not heldout:
            continue
        taken = _taken(words, heldout, test_split, words[training[0]][0])
        concept = "/".join(filter(None, (folder, base))) or whole
        for word in training:
            parts |= {label: Part(concept, "train") for label in words[word]}
        for word in heldout:
            why = (
                "" if word == taken else f"held-out pairs are those of {taken}; --dataset_test_split {word} takes these"
            )
            parts |= {label: Part(concept, "heldout", why) for label in words[word]}
    return parts


def _word_of(stem: str) -> tuple[str, str] | None:
    """The word of a file's name that says which side it is, and the rest of the name."""
    pieces = re.split(r"([^0-9A-Za-z]+)", stem)
    place = next((k for k in reversed(range(len(pieces))) if pieces[k].lower() in (*_TRAIN, *_HELDOUT)), None)
    if place is None:
        return None
    rest = [*pieces[: max(place - 1, 0)], *pieces[place + 1 :]]
    return pieces[place].lower(), "".join(rest).strip("-_. ")


def _taken(words: dict[str, list[str]], heldout: list[str], test_split: str | None, beside: str) -> str:
    for word in heldout:
        names = {_SHARD.sub("", label).rpartition("/")[2].lower() for label in words[word]}
        if test_split is not None and test_split.lower() in (word, *names):
            return word
    if test_split in (None, TRL_DEFAULT):
        return heldout[0]
    raise InputError(f"--dataset_test_split {test_split}: beside {beside} there are {', '.join(heldout)}")
