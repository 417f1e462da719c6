"""The shapes of the trainers people come from give the pairs that those train on; what has no reading is refused."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
from tests.data.conftest import Write

from margincast.data import load_pairs
from margincast.data.shapes import RowError, read_texts
from margincast.errors import InputError
from margincast.records import PairSet, Text

ASKED, GOOD, BAD, SYSTEM = "Name a sea.", "The North Sea.", "Berlin.", "Be brief."


def says(role: str, content: object, **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


def from_(speaker: str, value: str) -> dict[str, str]:
    return {"from": speaker, "value": value}


USER, YES, NO = says("user", ASKED), says("assistant", GOOD), says("assistant", BAD)
BEFORE = [says("user", "Hi."), says("assistant", "Hello.")]
CHAT = {"prompt": [USER], "chosen": [YES], "rejected": [NO]}
IMPLICIT = {"chosen": [USER, YES], "rejected": [USER, NO]}
TEXT = {"prompt": ASKED, "chosen": GOOD, "rejected": BAD}
ANSWERS = {"chosen": GOOD, "rejected": BAD}
SAID_BEFORE = [from_("human", "Hi."), from_("gpt", "Hello."), from_("human", ASKED)]
LF = {"conversations": [from_("human", ASKED)], "chosen": from_("gpt", GOOD), "rejected": from_("gpt", BAD)}
ALPACA = {"instruction": ASKED, "input": "", **ANSWERS}
OPENAI = {"input": {"messages": [USER], "tools": []}, "preferred_output": [YES], "non_preferred_output": [NO]}
WRITTEN_AS = {"JSON": json.dumps, "Python": repr}
PARTS = {side: [{**each[0], "content": [{"type": "text", "text": each[0]["content"]}]}] for side, each in CHAT.items()}
COLUMNS = {"role": ["user", "assistant"], "content": ["Hi.", "Hello."]}

# A row; the shape it is of; its prompt, when it is not USER alone; and whether it is read as messages.
READ: dict[str, tuple[dict[str, Any], str, list[dict[str, object]]]] = {
    "sharegpt": (LF, "LLaMA-Factory", [USER]),
    "sharegpt of several turns": (LF | {"conversations": SAID_BEFORE}, "LLaMA-Factory", [*BEFORE, USER]),
    "sharegpt with a system column": (LF | {"system": SYSTEM}, "LLaMA-Factory", [says("system", SYSTEM), USER]),
    "sharegpt with a system turn": (
        LF | {"conversations": [from_("system", SYSTEM), from_("human", ASKED)]},
        "LLaMA-Factory",
        [says("system", SYSTEM), USER],
    ),
    "sharegpt with tools' words": (
        LF | {"conversations": [from_("human", "Hi."), from_("function_call", "f()"), from_("observation", "3")]},
        "LLaMA-Factory",
        [says("user", "Hi."), says("assistant", "f()"), says("tool", "3")],
    ),
    "sharegpt with empty tools": (LF | {"tools": "[]", "system": ""}, "LLaMA-Factory", [USER]),
    "sharegpt in role and content": (
        {"conversations": [USER], "chosen": YES, "rejected": NO},
        "LLaMA-Factory",
        [USER],
    ),
    "alpaca": (ALPACA, "LLaMA-Factory alpaca", [USER]),
    "alpaca with input": (
        ALPACA | {"instruction": "Translate.", "input": "See"},
        "LLaMA-Factory alpaca",
        [says("user", "Translate.\nSee")],
    ),
    "alpaca with history": (ALPACA | {"history": [["Hi.", "Hello."]]}, "LLaMA-Factory alpaca", [*BEFORE, USER]),
    "alpaca with written history": (
        ALPACA | {"history": '[["Hi.", "Hello."]]'},
        "LLaMA-Factory alpaca",
        [*BEFORE, USER],
    ),
    "alpaca with no history": (ALPACA | {"history": None, "input": None}, "LLaMA-Factory alpaca", [USER]),
    "alpaca with system": (ALPACA | {"system": SYSTEM}, "LLaMA-Factory alpaca", [says("system", SYSTEM), USER]),
    "orca": ({"system": SYSTEM, "question": ASKED, **ANSWERS}, "Orca", [says("system", SYSTEM), USER]),
    "orca with an empty system": ({"system": "", "question": ASKED, **ANSWERS}, "Orca", [USER]),
    "openai": (OPENAI, "OpenAI", [USER]),
    "openai, one message": (OPENAI | {"preferred_output": YES, "non_preferred_output": NO}, "OpenAI", [USER]),
    "axolotl whose messages hold the chosen one": (
        {"messages": [USER, YES], "chosen": [YES], "rejected": [NO]},
        "axolotl",
        [USER],
    ),
    "axolotl": ({"messages": [USER], "chosen": YES, "rejected": NO}, "axolotl", [USER]),
    "swift": ({"messages": [USER, YES], "rejected_response": BAD}, "ms-swift", [USER]),
    "system beside prompt": (TEXT | {"system": SYSTEM}, "TRL", [says("system", SYSTEM), USER]),
    "system beside messages": (CHAT | {"system": SYSTEM}, "TRL", [says("system", SYSTEM), USER]),
    "system said twice": (
        CHAT | {"prompt": [says("system", SYSTEM), USER], "system": SYSTEM},
        "TRL",
        [says("system", SYSTEM), USER],
    ),
    "system beside implicit messages": (IMPLICIT | {"system": SYSTEM}, "TRL", [says("system", SYSTEM), USER]),
    "text parts": (PARTS, "TRL", [USER]),
    "prompt repeated": (CHAT | IMPLICIT, "TRL", [USER]),
    "prompt repeated without its system message": (
        IMPLICIT | {"prompt": [says("system", SYSTEM), USER]},
        "TRL",
        [says("system", SYSTEM), USER],
    ),
    "prompt repeated with a system message": (
        {
            "prompt": [USER],
            "chosen": [says("system", SYSTEM), USER, YES],
            "rejected": [says("system", SYSTEM), USER, NO],
        },
        "TRL",
        [says("system", SYSTEM), USER],
    ),
    "messages by column": (CHAT | {"prompt": {k: [*COLUMNS[k], USER[k]] for k in COLUMNS}}, "TRL", [*BEFORE, USER]),
    "keys that no template uses": (
        CHAT | {"prompt": [USER | {"tool_calls": None, "id": 3}], "chosen": [YES | {"weight": 1, "tool_calls": []}]},
        "TRL",
        [USER],
    ),
    **{
        f"messages as {name}": ({side: write(each) for side, each in CHAT.items()}, "TRL", [USER])
        for name, write in WRITTEN_AS.items()
    },
    **{
        f"implicit messages as {name}": ({side: write(each) for side, each in IMPLICIT.items()}, "TRL", [USER])
        for name, write in WRITTEN_AS.items()
    },
    "messages written twice": ({side: json.dumps(json.dumps(each)) for side, each in CHAT.items()}, "TRL", [USER]),
    "ShareGPT's speakers as roles": (
        {"prompt": [says("human", ASKED)], "chosen": [says("GPT", GOOD)], "rejected": [says("gpt", BAD)]},
        "TRL",
        [USER],
    ),
    "openai as strings": ({name: json.dumps(each) for name, each in OPENAI.items()}, "OpenAI", [USER]),
    "sharegpt as strings": ({name: repr(each) for name, each in LF.items()}, "LLaMA-Factory", [USER]),
}


@pytest.mark.parametrize("name", READ)
def test_a_row_gives_the_pair_its_trainer_trains_on(name):
    row, shape, prompt = READ[name]
    texts = read_texts(row)
    assert (list(texts.prompt), list(texts.chosen), list(texts.rejected)) == (prompt, [YES], [NO])
    assert texts.shape == shape


def test_a_role_of_another_name_is_noted():
    texts = read_texts(CHAT | {"prompt": [says("human", ASKED)]})
    assert texts.notes == ("role 'human' is read as 'user'",)


def test_a_question_without_a_system_text_stays_text():
    texts = read_texts({"question": ASKED, **ANSWERS})
    assert (texts.prompt, texts.chosen, texts.rejected) == (ASKED, GOOD, BAD)


def test_first_words_that_responses_share_are_no_prompt():
    row = {"instruction": ASKED, "chosen": "The North Sea.", "rejected": "The Alps."}
    assert read_texts(row).chosen[0]["content"] == "The North Sea."  # type: ignore[index]


@pytest.mark.parametrize("text", ['{"name": "Bob"}', "[1, 2]", "[{'a': 1}]", '{"role": "user"} said', "[{]", "[]"])
def test_other_json_is_a_text_like_any_other(text):
    assert read_texts(TEXT | {"prompt": text, "chosen": text + "."}).prompt == text


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            LF | {"conversations": [from_("narrator", "x")]},
            "1 of conversations is from 'narrator'; known are human",
        ),
        (LF | {"conversations": []}, "prompt is empty"),
        (LF | {"conversations": "Hi"}, "conversations must be a list of messages"),
        (LF | {"conversations": SAID_BEFORE[:2]}, "conversations ends with a message of the assistant"),
        (LF | {"tools": '[{"name": "f"}]'}, "column 'tools' is not supported"),
        (LF | {"chosen": from_("gpt", GOOD) | {"value": None}}, "'value' in message 1 of chosen must be a string"),
        (ALPACA | {"instruction": ""}, "instruction is empty"),
        (ALPACA | {"history": "Hi"}, "history is a string"),
        (ALPACA | {"history": ["Hi"]}, "turn 1 of history must be a pair"),
        (ALPACA | {"history": [["Hi.", 1]]}, "turn 1 of history must be a string"),
        (OPENAI | {"input": {"tools": []}}, "input must hold 'messages'"),
        (OPENAI | {"input": {"messages": [USER], "tools": [{"f": 1}]}}, "column 'tools' is not supported"),
        ({"messages": [USER], "rejected_response": BAD}, "ends with the assistant's chosen response"),
        (TEXT | {"system": 3}, "system must be a string, got 3"),
        (CHAT | {"prompt": [says("system", "Be long."), USER], "system": SYSTEM}, "column 'system' says 'Be brief.'"),
        ({"chosen": "Q a", "rejected": "Q b", "system": SYSTEM}, "a 'system' column beside responses of text"),
        (
            CHAT | {"chosen": [says("assistant", [{"type": "image_url", "image_url": "x"}])]},
            "part 1 of 'content' in message 1 of chosen is of type 'image_url'",
        ),
        (CHAT | {"chosen": [YES | {"tool_calls": [{"f": 1}]}]}, "'tool_calls' in message 1 of chosen is not supported"),
        (CHAT | {"chosen": IMPLICIT["chosen"]}, "one of chosen and rejected repeats the prompt"),
        (CHAT | {"prompt": ASKED, "rejected": IMPLICIT["rejected"]}, "one of chosen and rejected repeats the prompt"),
        (CHAT | {"chosen": '[{"role": "a", "content": "b", "content": "c"}]'}, "an object has the key 'content' twice"),
        (CHAT | {"chosen": "[{'role': 'a', 'content': 'b', 'content': 'c'}]"}, "an object has the key 'content' twice"),
        (TEXT | {"chosen": "[{'role': 'assistant', 'content': 'a'}"}, "chosen is a string that begins like a list of"),
        (
            TEXT | {"chosen": "[{'role': 'a', 'content': " + "\\'" * 500_000},
            "chosen is a string that begins like a list",
        ),
        (TEXT | {"chosen": "[{'role': 'user', 'content': " + "(" * 5000}, "chosen is a string that begins like a list"),
        (TEXT | {"chosen": '[{"role": ' + "[" * 100_000}, "chosen is a string that begins like a list"),
        (
            TEXT | {"chosen": "[{'role': 'a', 'content': " + "-" * 5_000_000},
            "a written list of 5000026 characters",
        ),
    ],
)
def test_rows_without_one_reading_are_refused(row, reason):
    with pytest.raises(RowError) as error:
        read_texts(row)
    assert reason in str(error.value)
    assert len(str(error.value)) < 300


UNUSED = ["question", "Question", "instruction", "query", "input", "context", "history", "system prompt", "user_prompt"]


@pytest.mark.parametrize("name", UNUSED)
def test_a_column_like_a_prompt_is_never_ignored(write: Write, name):
    write("rows.jsonl", TEXT | {name: "In two words."})
    with pytest.raises(InputError) as error:
        load_pairs("rows.jsonl")
    assert f"column {name!r} looks like a part of the prompt and would not be used" in str(error.value)
    flags = "--prompt_column prompt --chosen_column chosen --rejected_column rejected"
    assert flags in str(error.value)
    assert load_pairs("rows.jsonl", **_options(flags))[0].prompt == ASKED


@pytest.mark.parametrize("name", ["query", "input", "context", "Prompt", "user message"])
def test_a_prompt_by_another_name_is_told_how_to_be_used(write: Write, name):
    for answers in (ANSWERS, {"chosen": "The sea.", "rejected": "The hill."}):
        write("rows.jsonl", {name: ASKED, **answers})
        with pytest.raises(InputError) as error:
            load_pairs("rows.jsonl")
        flags = str(error.value).partition("which column is the prompt: ")[2].partition(";")[0].partition(" (")[0]
        assert load_pairs("rows.jsonl", **_options(flags.removesuffix("; no usable row is left")))[0].prompt == ASKED


@pytest.mark.parametrize(
    "more",
    [
        {"question": ASKED.upper()},
        {"messages": [USER, YES]},
        {"system": None, "context": "", "history": [], "input": 7},
        {"task": "qa", "user": "u_17", "rationale": "It is a sea."},
        {"source": "x", "line": 3, "id": "7", "title": "Seas", "score_chosen": 0.5},
    ],
)
def test_a_column_that_says_nothing_more_may_stay(more):
    assert read_texts(TEXT | more).prompt == ASKED


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "What is it?", "context": "Of seas.", **ANSWERS},
        {"context": "Of seas.", "query": "What is it?", "chosen": "The sea.", "rejected": "The hill.", "score_a": 1},
    ],
)
def test_parts_of_a_prompt_are_joined_as_the_refusal_says(write: Write, tmp_path, row):
    convert(write("rows.jsonl", row).resolve(), "two lines of Python put them together")
    (pair,) = load_pairs("pairs.jsonl")
    assert sorted(said(pair.prompt).split("\n\n")) == ["Of seas.", "What is it?"]
    asked = "instruction" if "instruction" in row else "query"
    (note,) = load_pairs("rows.jsonl", prompt_column=asked).notes
    assert note.endswith("(column 'context', which looks like a part of the prompt, is not used)")


def test_without_a_prompt_any_text_could_be_one(write: Write):
    row = {"chosen": "I think 56", "rejected": "I think 54", "model": "A b", "prompt_id": "a b", "quality": "0.5"}
    write("rows.jsonl", row)
    assert load_pairs("rows.jsonl").notes == (
        "TRL shape: 1 pair of text (prompt: the opening that both responses share)",
    )
    for name in ("task", "riddle of today"):
        write("rows.jsonl", row | {name: "7x8?"})
        with pytest.raises(InputError, match=f"column '{name}' looks like a part of the prompt") as error:
            load_pairs("rows.jsonl")
        flags = str(error.value).partition("which column is the prompt: ")[2].partition(";")[0]
        assert load_pairs("rows.jsonl", **_options(flags))[0].prompt == "7x8?"
    assert read_texts(IMPLICIT | {"rationale": "It is a sea."}).prompt == (USER,)
    with pytest.raises(RowError, match="column 'background' looks like"):
        read_texts(IMPLICIT | {"background": "It is a sea."})


def test_a_column_that_names_the_concept_is_used(write: Write):
    write("rows.jsonl", TEXT | {"context": "sea"})
    assert load_pairs("rows.jsonl", concept_column="context").concepts == ("sea",)


def _options(flags: str) -> dict[str, Any]:
    words = shlex.split(flags)
    return dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))


LABELLED = {
    "safe": ({"prompt": ASKED, "response_0": BAD, "response_1": GOOD, "better_response_id": 1}, None),
    "shp": ({"history": ASKED, "human_ref_A": GOOD, "human_ref_B": BAD, "labels": 1}, None),
    "helpsteer3": (
        {"context": [USER], "response1": GOOD, "response2": BAD, "overall_preference": -2},
        {"context": [USER], "response1": GOOD, "response2": BAD, "overall_preference": 0},
    ),
}


@pytest.mark.parametrize("ending", ["jsonl", "json"])
@pytest.mark.parametrize("name", LABELLED)
def test_labelled_responses_are_refused_with_two_lines_that_convert_them(write: Write, tmp_path, name, ending):
    row, tie = LABELLED[name]
    path = tmp_path / f"{name}.{ending}"
    path.write_text("\n".join(json.dumps(each) for each in (row, tie) if each))
    convert(path)
    (pair,) = load_pairs("pairs.jsonl")
    assert (said(pair.prompt), said(pair.chosen), said(pair.rejected)) == (ASKED, GOOD, BAD)


def convert(path: Path, told: str = "two lines of Python make pairs of them") -> None:
    """Do what the refusal says."""
    with pytest.raises(InputError, match=told) as error:
        load_pairs(path)
    lines = str(error.value).split("`")[1::2]
    assert len(lines) == 2
    exec("\n".join(lines), {})


def said(text: Text) -> str:
    return text if isinstance(text, str) else "\n".join(message["content"] for message in text)


def test_other_labels_are_left_to_the_reader(write: Write):
    write("rows.jsonl", {"question": ASKED, "answer_a": GOOD, "answer_b": BAD, "preference": "a"})
    with pytest.raises(InputError, match=r"'preference' says which of 'answer_a' and 'answer_b' .*FIRST_IS_BETTER"):
        load_pairs("rows.jsonl")


def test_two_scores_say_which_response_is_better(write: Write):
    rows = [
        {"score_a": 1.0, "score_b": 3.0, "question": ASKED, "answer_a": BAD, "answer_b": GOOD},
        {"score_a": 2.0, "score_b": 2.0, "question": ASKED, "answer_a": "x", "answer_b": "y"},
    ]
    convert(write("rows.jsonl", *rows).resolve())
    (pair,) = load_pairs("pairs.jsonl")
    assert (pair.chosen, pair.rejected) == (GOOD, BAD)


def test_flags_are_written_as_a_shell_takes_them(write: Write):
    write("rows.jsonl", {"it's $x": ASKED, "winning `x`": GOOD, "losing": BAD, "prompt": ""})
    with pytest.raises(InputError, match="say which are the prompt and the responses: ") as error:
        load_pairs("rows.jsonl")
    flags = str(error.value).partition("responses: ")[2].removesuffix("; no usable row is left")
    assert shlex.split(flags)[3] == "winning `x`"


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_another_delimiter_is_named(write: Write, mark):
    write("rows.csv", mark.join(TEXT).encode(), mark.join(TEXT.values()).encode())
    with pytest.raises(InputError) as error:
        load_pairs("rows.csv")
    assert f"rows.csv: its columns are separated by {mark!r}, a .csv's by ','" in str(error.value)


@pytest.mark.parametrize(
    "names",
    [
        ("question", "response_j", "response_k"),
        ("prompt", "chosen_response", "rejected_response"),
        ("Prompt", "Chosen", "Rejected"),
        ("query", "preferred", "dispreferred"),
    ],
)
def test_pairs_by_other_names_are_refused_with_the_flags(write: Write, names):
    write("rows.jsonl", dict(zip(names, TEXT.values(), strict=True)))
    with pytest.raises(InputError, match="say which are the prompt and the responses: ") as error:
        load_pairs("rows.jsonl")
    flags = str(error.value).partition("responses: ")[2].removesuffix("; no usable row is left")
    assert flags == "--prompt_column {} --chosen_column {} --rejected_column {}".format(*names)
    (pair,) = load_pairs("rows.jsonl", **_options(flags))
    assert (pair.prompt, pair.chosen, pair.rejected) == (ASKED, GOOD, BAD)


def test_a_mapped_column_that_is_missing_is_named(write: Write):
    write("rows.jsonl", TEXT, {"prompt": ASKED, "good": GOOD, "rejected": BAD})
    with pytest.raises(InputError, match=r"^rows.jsonl, line 1: column 'good' is missing"):
        load_pairs("rows.jsonl", chosen_column="good")
    with pytest.raises(InputError, match=r"^rows.jsonl: no row has the chosen column 'best'; columns found: 'prompt'"):
        load_pairs("rows.jsonl", chosen_column="best")


def _as_numpy_prints(value: object) -> str:
    import numpy

    return str(numpy.array(value, dtype=object))


@pytest.mark.parametrize("write_as", [*WRITTEN_AS.values(), _as_numpy_prints])
@pytest.mark.parametrize("mark", [",", "\t"])
def test_messages_in_cells(tmp_path, mark, write_as):
    cells = [write_as(each).replace('"', '""') for each in CHAT.values()]
    path = tmp_path / f"rows.{'csv' if mark == ',' else 'tsv'}"
    path.write_text(mark.join(CHAT) + "\n" + mark.join(f'"{cell}"' for cell in cells) + "\n")
    (pair,) = load_pairs(path)
    assert (list(pair.prompt), list(pair.chosen), list(pair.rejected)) == ([USER], [YES], [NO])


def test_the_first_note_says_what_was_understood(write: Write):
    write("rows.jsonl", LF, LF | {"conversations": SAID_BEFORE}, TEXT | {"system": SYSTEM}, TEXT)
    assert load_pairs("rows.jsonl").notes == (
        "LLaMA-Factory shape: 2 pairs, 1 with several turns, 1 with one; "
        "TRL shape: 2 pairs, 1 with several turns (1 of them a system message and one turn), "
        "1 of text ('system' is a system message in 1)",
    )
    write("rows.jsonl", *[{side: json.dumps(each) for side, each in CHAT.items()}] * 2)
    assert load_pairs("rows.jsonl").notes == ("TRL shape: 2 pairs with one turn (messages were written as strings)",)
    write("rows.jsonl", {"prompt": ASKED, "chosen": ASKED + GOOD, "rejected": ASKED + BAD})
    assert "both responses begin with the text of the prompt again" in load_pairs("rows.jsonl").notes[0]


# The files of this kind that margincast was once found to misread.

RIGHT = [
    ("Name a river in Spain.", "The Ebro.", "Paris."),
    ("What is 7 times 8?", "56", "54"),
    (
        "Write a haiku about rain.",
        "Soft rain on the roof / the garden drinks in silence / a frog says its name",
        "I can't.",
    ),
]
BEFORE_THEM = {"orca": "Be brief.\n", "truthy": "Be truthful.\n"}
REFUSED = ("safe", "stackx", "shp", "helpsteer3")


@pytest.fixture(scope="session")
def shapes() -> Path:
    shared = Path(os.environ.get("MARGINCAST_SHARED", Path(__file__).parents[2] / "../shared"))
    folder = shared / "cases" / "shapes"
    if not folder.is_dir():
        pytest.skip(f"no files of shapes in {folder}; set MARGINCAST_SHARED")
    return folder


def check(pairs: PairSet, name: str = "") -> None:
    found = [(said(pair.prompt), said(pair.chosen), said(pair.rejected)) for pair in pairs]
    assert found == [(BEFORE_THEM.get(name, "") + asked, good, bad) for asked, good, bad in RIGHT]


def test_every_known_file_is_right(shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = sorted(shapes.iterdir())
    assert len(files) == 15
    for file in files:
        if file.stem not in REFUSED:
            check(load_pairs(file), file.stem)
        elif file.stem != "stackx":
            convert(file)
            check(load_pairs("pairs.jsonl"))


def test_the_known_file_with_pairs_by_other_names(shapes):
    flags = "--prompt_column question --chosen_column response_j --rejected_column response_k"
    with pytest.raises(InputError, match=flags):
        load_pairs(shapes / "stackx.jsonl")
    check(load_pairs(shapes / "stackx.jsonl", **_options(flags)))


def test_the_demo_of_llama_factory(shapes):
    pairs = load_pairs(shapes.parents[1] / "data" / "chat" / "dpo_en_demo.json")
    assert pairs.notes == (
        "LLaMA-Factory shape: 300 pairs, 186 with several turns (80 of them a system message and one turn), "
        "114 with one",
    )
