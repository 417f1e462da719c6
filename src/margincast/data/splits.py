"""Which files of a folder (or splits of a data set) belong together? Shards are one; train and test are one, split.

Without this a folder with train.jsonl and test.jsonl would be two concepts, trained on together.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from margincast.errors import InputError

_TRAIN = ("train", "training")
# In this order: of test and validation the first is held out, as TRL's dataset_test_split has it.
_HELDOUT = ("test", "testing", "heldout", "validation", "valid", "val", "dev", "eval", "evaluation")
# The name that files for `trl dpo` give where nobody chose one; data need not have it.
TRL_DEFAULT = "test"
_NAMED = 6  # files, one by one
_SHARD = re.compile(r"[-_.]\d{5}-of-\d{5}$")
_HUB_SHARD = re.compile(r"0\d{3}")  # `default/train/0000.parquet`, as the Hub exports data sets


# Files by the word in their names, "" for none, each with the concept that it would be of.
_Words: TypeAlias = dict[str, list[tuple[str, str]]]


@dataclass(frozen=True)
class Part:
    """What a file is: of which concept, of which side where the names say so, and why it is not read, if so."""

    concept: str
    split: Literal["train", "heldout"] | None = None
    left_out: str = ""


def parts_of(labels: Sequence[str], whole: str, test_split: str | None = None) -> dict[str, Part]:
    """What each of the files `labels` (paths within the folder, without extension) is.

    Files whose names differ in one word, `train` in one and `test` or `validation` in another, are one split concept,
    named by what the names share: the folder, and the rest of the name, or `whole` where there is neither. So are files
    of one name in folders that differ so (`train/0000` and `test/0000`), and `rain` beside `rain_test`.

    whole: the folder's own name;  test_split: the held-out part to take, by its word or its name
    Raises `InputError` where `test_split` is given and training files are without it.
    """
    parts = {label: Part(_SHARD.sub("", label)) for label in labels}
    left = list(labels)
    deepest = max((label.count("/") for label in labels), default=0)
    for depth in range(deepest + 1):  # the file's own name, then the folder it lies in, and so on outwards
        for words in _groups(left, depth):
            training = [word for word in words if word in (*_TRAIN, "")]
            heldout = [word for word in _HELDOUT if word in words]
            if not training or not heldout:
                continue
            taken = _taken(words, heldout, test_split, words[training[0]][0][0])
            for word, members in words.items():
                left_out = word in heldout and word != taken
                why = f"held-out pairs are those of {taken}; --dataset_test_split {word} takes these"
                for label, concept in members:
                    side: Literal["train", "heldout"] = "heldout" if word in heldout else "train"
                    parts[label] = Part(concept or whole, side, why if left_out else "")
        left = [label for label in left if parts[label].split is None]
    return parts


def _groups(labels: Sequence[str], depth: int) -> Iterable[_Words]:
    """Files that may be parts of one whole: by the word of each, the file and the concept that it would be of.

    depth: where the word stands: 0 is the file's name, 1 the folder in which it lies, and so on. Of files (not of
    folders) those without a word are entered as "" where their name is what the others share.
    """
    groups: dict[tuple[str, str], _Words] = defaultdict(lambda: defaultdict(list))
    plain: list[tuple[str, tuple[str, str]]] = []
    for label in labels:
        *folders, stem = _SHARD.sub("", label).split("/")
        path = [*folders, stem]
        if depth >= len(path):
            continue
        place = len(path) - 1 - depth
        found = _word_of(path[place])
        before = "/".join(path[:place])
        if found:
            concept = [*path[:place], found[1], *path[place + 1 :]]
            if depth:  # `train/train` and `train/0000` say no more than `train`
                inner = _word_of(stem)
                concept[-1] = inner[1] if inner else "" if _HUB_SHARD.fullmatch(stem) else stem
            groups[before, found[1]][found[0]].append((label, "/".join(filter(None, concept))))
        elif not depth:
            plain.append((label, (before, stem)))
    for label, key in plain:
        if key in groups and not set(_TRAIN) & groups[key].keys():
            groups[key][""].append((label, "/".join(filter(None, key))))
    return groups.values()


def _word_of(stem: str) -> tuple[str, str] | None:
    """The word of a file's name that says which side it is, and the rest of the name."""
    pieces = re.split(r"([^0-9A-Za-z]+)", stem)
    place = next((k for k in reversed(range(len(pieces))) if pieces[k].lower() in (*_TRAIN, *_HELDOUT)), None)
    if place is None:
        return None
    rest = [*pieces[: max(place - 1, 0)], *pieces[place + 1 :]]
    return pieces[place].lower(), "".join(rest).strip("-_. ")


def _taken(words: _Words, heldout: list[str], test_split: str | None, beside: str) -> str:
    for word in heldout:
        names = {_SHARD.sub("", label).rpartition("/")[2].lower() for label, _ in words[word]}
        if test_split is not None and test_split.lower() in (word, *names):
            return word
    if test_split in (None, TRL_DEFAULT):
        return heldout[0]
    raise InputError(f"--dataset_test_split {test_split}: beside {beside} there are {', '.join(heldout)}")


def note_of_drawn(named: Mapping[str, Part]) -> tuple[str, ...]:
    """A note of what lies beside a split that the names give, and has no side by its own name."""
    drawn = [name for name, part in named.items() if part.split is None]
    if not drawn or len(drawn) == len(named):
        return ()
    return (f"neither train nor test by name, so a concept each, of which held-out pairs are drawn: {listed(drawn)}",)


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
