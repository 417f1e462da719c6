"""Where the prompt ends: the same tokens as TRL's DPOTrainer, and one-line refusals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from margincast.errors import InputError
from margincast.passes.tokenize import Encoded, encode
from margincast.records import Pair, PairSet, Text
from tests.tiny import tiny_tokenizer


def pair(prompt: Text, chosen: Text, rejected: Text, number: int = 0) -> Pair:
    return Pair(f"p{number}", "c", prompt, chosen, rejected, source="pairs.jsonl", line=number + 7)


def pair_set(*rows: tuple[Text, Text, Text]) -> PairSet:
    return PairSet(tuple(pair(*row, number) for number, row in enumerate(rows)))


STANDARD = pair_set(
    ("Is the weather good?\n", " Yes", " No"),
    ("Is the weather good? ", "Yes", "No"),  # " Yes" is one token: the space is taken back from the prompt
    ("What would you sa", "y to a friend?", "id"),  # merges across the boundary, in the middle of a word
    ("The question is", " that", " that the weather is good"),  # one response opens the other
    ("A prompt", " with its own ending</s>", " without"),  # no second end-of-sequence token
    ("Zahlen: äöü ", "ß€", "日本"),
)


def chat(*turns: str) -> Text:
    return tuple({"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(turns))


def answer(text: str) -> Text:
    return ({"role": "assistant", "content": text},)


CONVERSATIONAL = pair_set(
    (chat("What would you say?"), answer("The weather is good"), answer("No")),
    (chat("What would you say?", "Yes", "And to a friend?"), answer(" words"), answer("words")),
)


def trl_rows(pairs: PairSet, tokenizer: Any, max_length: int = 1024) -> list[Encoded]:
    """The rows that TRL's own preparation makes, cut as its collator cuts them."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    def plain(text: Text) -> Any:
        return text if isinstance(text, str) else [dict(message) for message in text]

    rows = [{name: plain(getattr(row, name)) for name in ("prompt", "chosen", "rejected")} for row in pairs]
    arguments = SimpleNamespace(dataset_num_proc=None, max_length=max_length, truncation_mode="keep_start")
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    prepared = trl.DPOTrainer._prepare_dataset(trainer, Dataset.from_list(rows), tokenizer, arguments, "train")
    collate = DataCollatorForPreference(pad_token_id=0, max_length=max_length)
    made = []
    for row in prepared:
        batch = collate([row])
        sides = [
            [int(token) for token, used in zip(batch["input_ids"][k], batch["completion_mask"][k], strict=True) if used]
            for k in range(2)
        ]
        made.append(Encoded(tuple(row["prompt_ids"]), tuple(sides[0]), tuple(sides[1])))
    return made


@pytest.mark.parametrize("bos", [False, True], ids=["no bos", "bos"])
def test_standard_rows_are_trls(bos: bool) -> None:
    tokenizer = tiny_tokenizer(bos=bos)
    encoding = encode(STANDARD, tokenizer, eos=True)
    assert list(encoding.rows) == trl_rows(STANDARD, tokenizer)
    assert encoding.eos
    assert encoding.truncated == 0


def test_conversational_rows_are_trls() -> None:
    tokenizer = tiny_tokenizer()
    assert list(encode(CONVERSATIONAL, tokenizer).rows) == trl_rows(CONVERSATIONAL, tokenizer)


def test_rows_cut_at_max_length_are_trls() -> None:
    tokenizer = tiny_tokenizer()
    longest = max(len(row.prompt) for row in encode(STANDARD, tokenizer, eos=True).rows)
    encoding = encode(STANDARD, tokenizer, eos=True, max_length=longest + 1)
    assert list(encoding.rows) == trl_rows(STANDARD, tokenizer, longest + 1)
    assert encoding.truncated > 0


def test_a_space_at_the_boundary_moves_into_the_response() -> None:
    tokenizer = tiny_tokenizer()
    row = encode(PairSet((STANDARD[1],)), tokenizer, eos=False).rows[0]
    assert tokenizer.convert_ids_to_tokens(row.chosen) == ["ĠYes"]
    assert tokenizer.decode(row.prompt) == "Is the weather good?"


def test_single_tokens_get_no_ending_unless_asked_and_longer_responses_do() -> None:
    tokenizer = tiny_tokenizer()
    short, long = PairSet(STANDARD[:2]), PairSet(STANDARD[:3])
    assert (encode(short, tokenizer).eos, encode(short, tokenizer).single_token) == (False, True)
    assert (encode(long, tokenizer).eos, encode(long, tokenizer).single_token) == (True, False)
    assert encode(short, tokenizer, eos=True).rows[0].chosen[1:] == (tokenizer.eos_token_id,)
    assert tokenizer.eos_token_id not in encode(long, tokenizer, eos=False).rows[2].chosen


def test_inputs_hold_all_but_the_last_response_token() -> None:
    assert Encoded((1, 2), (3, 4), (5,)).inputs == ((1, 2, 3), (1, 2))


def test_select_gives_the_rows_of_some_pairs_in_their_order() -> None:
    encoding = encode(STANDARD, tiny_tokenizer(), eos=True)
    some = PairSet((STANDARD[3], STANDARD[0]))
    assert encoding.select(some).rows == (encoding.rows[3], encoding.rows[0])
    assert encoding.select(some).pairs is some


GOOD = ("Is the weather good?\n", " Yes", " No")
REFUSALS: dict[str, tuple[tuple[Text, Text, Text], dict[str, Any], str]] = {
    "prompt fills max_length": (("good " * 30, " Yes", " No"), {"max_length": 20}, "fills the limit of 20 (the"),
    "prompt fills the context": (("good " * 30, " Yes", " No"), {"context": 20}, "fills the limit of 20 (the"),
    "no prompt": (("", " Yes", " No"), {}, "the prompt has no tokens, so nothing predicts the response"),
    "no chosen": (("A", "", " No"), {}, "the chosen response has no tokens of its own after the prompt"),
    "no rejected": (("A", " No", ""), {}, "the rejected response has no tokens of its own after the prompt"),
    "equal": (("A", " No", " No"), {}, "chosen and rejected are the same in tokens"),
    "equal once cut": (
        ("A", " good words and good words", " good words and other words"),
        {"max_length": 4},
        "chosen and rejected are the same in tokens once cut at 4 tokens",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_rows_that_cannot_be_used_are_refused_with_file_line_and_reason(name: str) -> None:
    row, options, reason = REFUSALS[name]
    bad = pair_set(row)
    with pytest.raises(InputError) as caught:
        encode(bad, tiny_tokenizer(), eos=False, **options)
    assert str(caught.value).startswith("pairs.jsonl, line 7: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_bad_rows_are_counted_and_can_be_skipped() -> None:
    pairs = pair_set(("A", " No", " No"), GOOD, ("", " Yes", " No"))
    with pytest.raises(InputError, match=r"line 7: .* \(and 1 more rows\); or .* --on-bad-row skip$"):
        encode(pairs, tiny_tokenizer(), eos=False)
    encoding = encode(pairs, tiny_tokenizer(), eos=False, on_bad_row="skip")
    assert [kept.id for kept in encoding.pairs] == ["p1"]
    assert len(encoding.rows) == 1
    assert [reason.split(": ")[0] for reason in encoding.pairs.skipped] == [
        "pairs.jsonl, line 7",
        "pairs.jsonl, line 9",
    ]
    with pytest.raises(InputError, match="no usable pairs are left"):
        encode(pair_set(("A", " No", " No")), tiny_tokenizer(), eos=False, on_bad_row="skip")


def test_a_skipped_row_does_not_decide_about_the_ending() -> None:
    """A row that is left out must not turn the single-token setting of the others off."""
    pairs = pair_set(GOOD, ("A", " good words", " good words"))
    encoding = encode(pairs, tiny_tokenizer(), on_bad_row="skip")
    assert not encoding.eos
    assert encoding.single_token


def test_a_prompt_longer_than_max_length_is_refused_with_its_length() -> None:
    with pytest.raises(InputError, match="the prompt has 31 tokens"):
        encode(pair_set(("good " * 30, "Yes", " No")), tiny_tokenizer(), eos=False, max_length=20)


def test_tokenizers_that_cannot_do_it_are_refused() -> None:
    with pytest.raises(InputError, match="no end-of-sequence token; pass --no-eos"):
        encode(STANDARD, tiny_tokenizer(eos=None), eos=True)
    with pytest.raises(InputError, match="the tokenizer has no chat template"):
        encode(CONVERSATIONAL, tiny_tokenizer(chat=False))


REFUSING = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SYSTEM: Text = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "What would you say?"})
CHATS = pair_set(
    (chat("What would you say?"), answer(" Yes"), answer(" No")),
    (SYSTEM, answer(" Yes"), answer(" No")),
    (SYSTEM, answer(" good"), answer(" No")),
)


def test_a_row_that_the_chat_template_refuses_is_named_in_its_words_and_can_be_skipped() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = REFUSING
    says = r"^pairs\.jsonl, line 8: the chat template refuses these messages: System role not supported"
    with pytest.raises(InputError, match=says + r" \(and 1 more rows\); or .* --on-bad-row skip$"):
        encode(CHATS, tokenizer)
    encoding = encode(CHATS, tokenizer, on_bad_row="skip")
    assert [kept.id for kept in encoding.pairs] == ["p0"]
    assert len(encoding.pairs.skipped) == 2
    assert encoding.rows == encode(PairSet(CHATS.pairs[:1]), tokenizer).rows


@pytest.mark.parametrize(
    "template, words",
    [
        ("{{ messages[0]['nothing'].strip() }}", "nothing"),  # undefined
        ("{{ messages[0]['content'] + 1 }}", "str"),  # a TypeError of Python's
        ("{{ messages[", "unexpected|expected"),  # a syntax error
    ],
)
def test_a_template_that_fails_is_a_refusal_too(template: str, words: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=rf"line 7: the chat template refuses these messages: .*({words})") as caught:
        encode(CHATS, tokenizer)
    assert "\n" not in str(caught.value)


def test_a_beginning_that_is_there_twice_is_said() -> None:
    rows = pair_set(("<s>The weather", " Yes", " No"), ("The weather", " Yes", " No"))
    assert encode(rows, tiny_tokenizer()).notices == ()
    encoding = encode(rows, tiny_tokenizer(bos=True))
    assert encoding.rows[0].prompt[:2] == (1, 1)
    (notice,) = encoding.notices
    assert notice.startswith("1 of 2 prompts begin with <s> twice")


def test_a_template_that_writes_no_end_is_said() -> None:
    tokenizer = tiny_tokenizer()
    assert encode(CONVERSATIONAL, tokenizer).notices == ()
    tokenizer.chat_template = tokenizer.chat_template.replace("</s>", "")
    (notice,) = encode(CONVERSATIONAL, tokenizer).notices
    assert notice.startswith("2 of 2 conversations end without </s>, the end-of-sequence token")


COUNTING = "{{ messages | length }} messages. "
LONG = chat("What would you say to a friend? " * 3)


@pytest.mark.parametrize("where", ["first", "last"])
def test_a_prompt_that_is_written_otherwise_before_a_response_is_said_or_refused(where: str) -> None:
    """What counts messages makes all of the prompt response where it comes first, and its end where it comes last."""
    tokenizer = tiny_tokenizer()
    written = tokenizer.chat_template
    pairs = pair_set((LONG, answer("Yes"), answer("No")), ("The weather", " Yes", " No"))
    assert encode(pairs, tokenizer).notices == ()
    if where == "first":
        tokenizer.chat_template = COUNTING + written
        with pytest.raises(
            InputError, match=r"^pairs\.jsonl, line 7: the chat template writes \d+ of the prompt's \d+"
        ):
            encode(pairs, tokenizer)
        assert [each.id for each in encode(pairs, tokenizer, on_bad_row="skip").pairs] == ["p1"]
        return
    tokenizer.chat_template = written.replace("<|assistant|>{% endif %}", f"{COUNTING}<|assistant|>{{% endif %}}")
    encoding = encode(pairs, tokenizer)
    assert encoding.rows[0].prompt == tuple(tokenizer.apply_chat_template([dict(each) for each in LONG])["input_ids"])
    (notice,) = encoding.notices
    assert notice.startswith("the chat template writes the end of 1 prompts otherwise once a response follows, the fi")
    assert "p0" in notice


def test_an_opening_of_the_answer_is_no_matter() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<|assistant|>{% endif", "<|assistant|>\n{% endif")
    assert encode(CONVERSATIONAL, tokenizer).notices == ()


@pytest.mark.parametrize(
    "system, left_out",
    [
        ("", False),
        ("{% if message['role'] == 'system' %}{% continue %}{% endif %}", True),
        ("{% if message['role'] == 'system' %}{{ 'Be brief.' }}{% continue %}{% endif %}", True),
    ],
)
def test_a_template_without_system_messages_is_said_once(system: str, left_out: bool) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("messages %}", "messages %}" + system, 1)
    said = ("the chat template leaves system messages out; 2 pairs have one",) if left_out else ()
    assert encode(CHATS, tokenizer).notices == said


def test_conversations_without_an_ending_to_look_for_are_said() -> None:
    (notice,) = encode(CONVERSATIONAL, tiny_tokenizer(eos=None)).notices
    assert notice.startswith("the tokenizer has no end-of-sequence token, so nobody can say whether 2 conversations")


def test_an_ending_that_is_no_token_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer._special_tokens_map["eos_token"] = "<end>"  # as a config names one that the tokenizer never got
    with pytest.raises(InputError, match=r"the end-of-sequence text '<end>' is \d tokens to this tokenizer"):
        encode(STANDARD, tokenizer, eos=True)


def test_pairs_that_are_cut_are_counted_as_pairs_and_as_responses() -> None:
    long, longer = " good words and good words", " weather and good words"
    rows = pair_set(("A", long, " No"), ("A", long, longer), ("A", " Yes", " No"))
    encoding = encode(rows, tiny_tokenizer(), eos=False, max_length=5)
    lost = [
        [len(row.prompt) + len(side) > 5 for side in (row.chosen, row.rejected)]
        for row in encode(rows, tiny_tokenizer(), eos=False).rows
    ]
    assert (encoding.truncated, encoding.cut_pairs) == (sum(map(sum, lost)), sum(map(any, lost)))
    assert 0 < encoding.cut_pairs < len(rows)
    with pytest.raises(InputError, match=r"where sequences are cut at their end: nothing of the responses is left"):
        encode(pair_set(("good " * 30, "Yes", " No")), tiny_tokenizer(), max_length=20)
