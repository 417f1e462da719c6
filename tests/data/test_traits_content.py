"""Does the shipped data set have the promised shape, and must a statement be understood to be labelled?

Both sides of a concept should look alike in everything but meaning: length, openings, punctuation, negation. Otherwise
a model could learn " Yes" or " No" from a function word, and held-out accuracy would say nothing about the concepts.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from importlib.resources import files
from statistics import mean
from typing import NamedTuple

import pytest

CONCEPTS = (
    "caution",
    "curiosity",
    "love-of-music",
    "love-of-nature",
    "punctuality",
    "sociability",
    "thrift",
    "tidiness",
)
NEGATION_LIST = "no not never nothing nobody none nor without hardly rarely seldom cannot n't"
WORD_LIST = """
a about all always an and any anything are as at be because been before but by can could do each even ever every
everything few find first for from get give gives go had happy hate have however i if in into is it it's just know
leave like little long love make makes many me mine more most much my of off often on one only or other others out
over people prefer rather same see simply since so some sometimes something than that the them then there they things
this though to too until up usually want was way when whatever where whenever which while who why will with would you
"""
NEGATIONS = frozenset(NEGATION_LIST.split())
FUNCTION_WORDS = NEGATIONS | frozenset(WORD_LIST.split())


class Row(NamedTuple):
    concept: str
    question: str
    statement: str
    matching: str
    not_matching: str

    @property
    def matches(self) -> bool:
        return self.matching == " Yes"

    @property
    def words(self) -> list[str]:
        """Lower-case words; the ending n't is a word of its own."""
        return re.findall(r"n't|[a-z']+?(?=n't)|[a-z']+", self.statement.lower())


@cache
def rows() -> tuple[Row, ...]:
    folder = files("margincast.data") / "traits"
    found = []
    for concept in CONCEPTS:
        for line in (folder / f"{concept}.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            assert list(record) == ["question", "statement", "answer_matching_behavior", "answer_not_matching_behavior"]
            found.append(Row(concept, *record.values()))
    return tuple(found)


def side(concept: str, matches: bool) -> list[Row]:
    return [row for row in rows() if row.concept == concept and row.matches == matches]


def balanced_accuracy(word: str, first_only: bool = False) -> float:
    """Accuracy over all statements of the best rule that looks only at whether `word` is there; chance is 0.5."""
    present = Counter(row.matches for row in rows() if word in (row.words[:1] if first_only else row.words))
    return 0.5 + abs(present[True] - present[False]) / len(rows())


def test_the_folder_holds_these_concepts_and_no_others() -> None:
    folder = files("margincast.data") / "traits"
    assert sorted(file.name for file in folder.iterdir() if file.name.endswith(".jsonl")) == [
        f"{concept}.jsonl" for concept in CONCEPTS
    ]


@pytest.mark.parametrize("concept", CONCEPTS)
def test_thirty_statements_match_and_thirty_do_not(concept: str) -> None:
    assert len(side(concept, True)) == len(side(concept, False)) == 30


def test_rows_have_the_persona_shape() -> None:
    for row in rows():
        assert row.question == f'Does the following sentence describe you?\n"{row.statement}"'
        assert {row.matching, row.not_matching} == {" Yes", " No"}
        assert row.statement.isascii()
        assert '"' not in row.statement
        assert row.statement == row.statement.strip()
        assert row.statement.endswith(".")
        assert 6 <= len(row.statement.split()) <= 22, row.statement


def test_statements_are_distinct() -> None:
    counts = Counter(" ".join(row.words) for row in rows())
    assert [statement for statement, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("concept", CONCEPTS)
def test_matching_and_not_matching_statements_are_mixed_in_the_file(concept: str) -> None:
    labels = [row.matches for row in rows() if row.concept == concept]
    assert 10 <= sum(labels[:30]) <= 20


@pytest.mark.parametrize("concept", CONCEPTS)
def test_both_sides_have_about_the_same_length(concept: str) -> None:
    matching, other = (mean(len(row.statement.split()) for row in side(concept, label)) for label in (True, False))
    assert matching / other == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("concept", CONCEPTS)
def test_no_statement_mirrors_one_of_the_other_label(concept: str) -> None:
    """A statement and its mirror ("When a drawer gets messy, I ...") teach a model the wrong label for each other."""
    openings = [{tuple(row.words[:4]) for row in side(concept, label)} for label in (True, False)]
    assert openings[0] & openings[1] == set()


def test_no_single_function_word_or_opening_gives_the_label_away() -> None:
    words = {word: balanced_accuracy(word) for word in FUNCTION_WORDS}
    firsts = {row.words[0]: balanced_accuracy(row.words[0], first_only=True) for row in rows()}
    assert max(words.values()) <= 0.62, max(words, key=words.__getitem__)
    assert max(firsts.values()) <= 0.62, max(firsts, key=firsts.__getitem__)


def test_negation_and_commas_are_shared_out_over_both_sides() -> None:
    negated = Counter(row.matches for row in rows() if NEGATIONS & set(row.words))
    commas = Counter(row.matches for row in rows() if "," in row.statement)
    for counts in (negated, commas):
        assert abs(counts[True] - counts[False]) / len(rows()) <= 0.12  # the 62% of a single word, as a difference / 2


def test_function_words_together_do_not_give_the_label_away() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is needed for the cross-validated giveaway check")
    import numpy as np
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
    from sklearn.model_selection import StratifiedKFold, cross_val_score  # type: ignore[import-untyped]

    labels = np.array([row.matches for row in rows()])
    firsts = sorted({row.words[0] for row in rows()})
    counted = np.array(
        [
            [row.words.count(word) for word in sorted(FUNCTION_WORDS)]
            + [row.words[0] == word for word in firsts]
            + [row.statement.count(","), len(row.words) / 10]
            for row in rows()
        ],
        dtype=float,
    )
    folds = StratifiedKFold(10, shuffle=True, random_state=0)
    accuracy = cross_val_score(LogisticRegression(max_iter=2000), counted, labels, cv=folds).mean()
    assert accuracy < 0.65, f"function words, openings, commas and length give the label with accuracy {accuracy:.3f}"
