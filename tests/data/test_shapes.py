"""Each shape of row gives the texts TRL would train on, and mixed shapes are corrected or refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.data_utils import extract_prompt

from margincast.data.shapes import RowError, Texts, read_texts

USER = {"role": "user", "content": "What colour is the sky?"}
BLUE = {"role": "assistant", "content": "Blue."}
GREEN = {"role": "assistant", "content": "Green."}


def test_explicit_strings_stay_as_they_are():
    row = {"prompt": "Q: ", "chosen": " a", "rejected": " b", "extra": 3}
    assert read_texts(row) == Texts("Q: ", " a", " b")


def test_explicit_messages_stay_as_they_are():
    row = {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}
    assert read_texts(row) == Texts((USER,), (BLUE,), (GREEN,))


def test_persona_row_gets_a_line_break_after_the_question():
    row = {
        "question": "Would you say this?",
        "answer_matching_behavior": " Yes",
        "answer_not_matching_behavior": " No",
        "statement": "this",
        "label_confidence": 0.9,
    }
    assert read_texts(row) == Texts("Would you say this?\n", " Yes", " No", "this")


def test_persona_statement_may_be_absent_or_null():
    row = {"question": "Q", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}
    assert read_texts(row).statement is None
    assert read_texts(row | {"statement": None}).statement is None


def test_string_prompt_before_messages_becomes_a_user_message():
    row = {"prompt": USER["content"], "chosen": [BLUE], "rejected": [GREEN]}
    assert read_texts(row) == Texts((USER,), (BLUE,), (GREEN,))


def test_string_prompt_that_the_messages_repeat_is_not_said_twice():
    """The layout of UltraFeedback: the prompt as a string, and again as the first message of both responses."""
    row = {"prompt": USER["content"], "chosen": [USER, BLUE], "rejected": [USER, GREEN]}
    assert read_texts(row) == Texts((USER,), (BLUE,), (GREEN,))
    system = {"role": "system", "content": "Be brief."}
    row = {"prompt": USER["content"], "chosen": [system, USER, BLUE], "rejected": [system, USER, GREEN]}
    assert read_texts(row).prompt == (system, USER)


def test_string_prompt_beside_another_shared_opening_is_refused():
    row = {"prompt": "Something else?", "chosen": [USER, BLUE], "rejected": [USER, GREEN]}
    with pytest.raises(RowError, match="open with the same messages, but 'prompt' is not one of them"):
        read_texts(row)


def test_responses_that_open_with_the_same_assistant_message_keep_it():
    row = {"prompt": USER["content"], "chosen": [BLUE, USER, BLUE], "rejected": [BLUE, USER, GREEN]}
    assert read_texts(row) == Texts((USER,), (BLUE, USER, BLUE), (BLUE, USER, GREEN))


def test_string_responses_after_messages_become_assistant_messages():
    row = {"prompt": [USER], "chosen": "Blue.", "rejected": "Green."}
    assert read_texts(row) == Texts((USER,), (BLUE,), (GREEN,))


def test_null_keys_of_messages_are_absence():
    """Parquet fills a key that one message has into all of them."""
    named = USER | {"name": "Ann"}
    row = {"prompt": [named], "chosen": [BLUE | {"name": None}], "rejected": [GREEN | {"name": None}]}
    assert read_texts(row) == Texts((named,), (BLUE,), (GREEN,))


def test_implicit_strings_split_where_trl_splits():
    """The space before the difference goes to the responses; letters they share go to the prompt."""
    row = {"chosen": "Human: hi Assistant: The cat", "rejected": "Human: hi Assistant: Then no"}
    assert read_texts(row) == Texts("Human: hi Assistant: The", " cat", "n no")


def test_implicit_messages_split_after_the_shared_ones():
    row = {"chosen": [USER, BLUE], "rejected": [USER, GREEN]}
    assert read_texts(row) == Texts((USER,), (BLUE,), (GREEN,))


def _trl_split(chosen, rejected):
    """TRL's own split, or None where what it returns is no longer the row it was given, or lacks a part."""
    split = extract_prompt({"chosen": chosen, "rejected": rejected})
    parts = (split["prompt"], split["chosen"], split["rejected"])
    whole = (parts[0] + parts[1], parts[0] + parts[2])
    return parts if all(parts) and whole == (chosen, rejected) and chosen != rejected else None


@given(
    opening=st.text("ab ", max_size=4),
    chosen=st.text("abc ", min_size=1, max_size=4),
    rejected=st.text("abd ", min_size=1, max_size=4),
)
def test_implicit_strings_split_as_in_trl(opening, chosen, rejected):
    row = {"chosen": opening + chosen, "rejected": opening + rejected}
    expected = _trl_split(**row)
    if expected is None:
        with pytest.raises(RowError):
            read_texts(row)
    else:
        assert read_texts(row) == Texts(*expected)


MESSAGES = st.lists(st.sampled_from([USER, BLUE, GREEN]), min_size=1, max_size=3)


@given(opening=st.lists(st.sampled_from([USER, BLUE]), max_size=3), chosen=MESSAGES, rejected=MESSAGES)
def test_implicit_messages_split_as_in_trl(opening, chosen, rejected):
    row = {"chosen": opening + chosen, "rejected": opening + rejected}
    expected = _trl_split(**row)
    if expected is None:
        with pytest.raises(RowError):
            read_texts(row)
    else:
        assert read_texts(row) == Texts(*map(tuple, expected))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"chosen": "xa", "rejected": "yb"},
            "no 'prompt', and chosen and rejected share no beginning that could be one",
        ),
        ({"chosen": [BLUE], "rejected": [GREEN]}, "share no opening message that could be one"),
        ({"prompt": "", "chosen": [BLUE], "rejected": [GREEN]}, "prompt is empty"),
        ({"prompt": [], "chosen": [BLUE], "rejected": [GREEN]}, "prompt is empty"),
        ({"prompt": [USER], "chosen": [], "rejected": [GREEN]}, "chosen is empty"),
        ({"prompt": [USER], "chosen": [BLUE], "rejected": [BLUE | {"content": ""}]}, "rejected is empty"),
        ({"prompt": [USER], "chosen": "", "rejected": "Green."}, "chosen is empty"),
        ({"prompt": [USER], "chosen": [BLUE], "rejected": "Green."}, "one of chosen and rejected is a string"),
        ({"prompt": [USER], "chosen": [BLUE], "rejected": [BLUE]}, "chosen and rejected are the same"),
        (
            {"prompt": [USER], "chosen": ["Blue."], "rejected": [GREEN]},
            "message 1 of chosen must hold 'role' and 'content'",
        ),
        ({"prompt": [{"role": "user"}], "chosen": [BLUE], "rejected": [GREEN]}, "message 1 of prompt must hold"),
        (
            {"prompt": [USER], "chosen": [BLUE | {"content": None}], "rejected": [GREEN]},
            "'content' in message 1 of chosen",
        ),
        ({"prompt": [USER], "chosen": [BLUE | {"role": ""}], "rejected": [GREEN]}, "message 1 of chosen has no role"),
        ({"prompt": [USER], "chosen": [BLUE | {"tool_calls": [1]}], "rejected": [GREEN]}, "'tool_calls' in message 1"),
        (
            {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN], "tools": [{"a": 1}]},
            "column 'tools' is not supported",
        ),
    ],
)
def test_rows_without_one_reading_are_refused(row, reason):
    with pytest.raises(RowError) as error:
        read_texts(row)
    assert reason in str(error.value)
