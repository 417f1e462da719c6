"""Which texts and pairs does an `--eval_data` argument mean, and what is refused, in one line?"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from margincast import InputError, PairSet, load_eval_data, load_pairs
from margincast.evaldata.passages import PASSAGE
from margincast.evaldata.tokens import MOST_PAIRS, TEXT_TOKENS, encode_eval
from margincast.splitting import prompt_key
from tests.problems import make_pairs
from tests.tiny import tiny_tokenizer


def written(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_builtin_is_what_it_says_and_no_training_set_has_it() -> None:
    (builtin,) = load_eval_data("builtin").sets
    assert len(builtin.texts) == len({prompt_key(text.text) for text in builtin.texts}) == 200
    assert all(text.prompt for text in builtin.texts)
    assert builtin.pairs is not None
    names = ("frankness", "generosity", "love-of-cooking", "patience", "sense-of-humour")
    assert Counter(pair.concept for pair in builtin.pairs) == dict.fromkeys(names, 40)
    assert Counter(pair.chosen for pair in builtin.pairs) == {" Yes": 100, " No": 100}
    traits = load_pairs("traits")
    assert not {*traits.concepts} & {*builtin.pairs.concepts}
    assert builtin.overlap(traits) == 0
    assert not {pair.statement for pair in traits} & {pair.statement for pair in builtin.pairs}


def test_lines_become_passages_that_hold_all_of_the_text(tmp_path: Path) -> None:
    lines = ["A heading", "", "Some words. " * 10, "More of them. " * 100, "  ", "the end"]
    path = tmp_path / "words.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    data = load_eval_data(path)
    texts = [str(text.text) for text in data.sets[0].texts]
    assert all(0 < len(text) <= PASSAGE for text in texts)
    assert " ".join(texts).split() == " ".join(lines).split()
    assert "1 of them longer and cut in windows" in data.notes[0]
    assert [text.line for text in data.sets[0].texts][:2] == [1, 4]


@pytest.mark.parametrize("text", ["x" * 5000, "字" * 5000, "слово " * 900], ids=["letters", "Chinese", "Russian"])
def test_one_enormous_line_is_cut_and_said(text: str, tmp_path: Path) -> None:
    path = tmp_path / "line.txt"
    path.write_text(text, encoding="utf-8")
    data = load_eval_data(f"line={path}")
    pieces = [str(each.text) for each in data.sets[0].texts]
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")
    assert len(pieces) > 5
    assert "1 line" in data.notes[0]
    assert "cut in windows" in data.notes[0]
    encoded = encode_eval(data, tiny_tokenizer(), context=96)
    scored = encoded.sets[0].texts
    assert all(len(each.ids) <= 96 and each.targets for each in scored)
    assert sum(len(each.targets) for each in scored) <= TEXT_TOKENS + 96
    assert len(scored) == len(pieces) or "texts are measured" in encoded.notes[0]


def test_columns_say_what_rows_are(tmp_path: Path) -> None:
    """RewardBench's rows are pairs by subset; a text, a conversation and a prompt are none."""
    rewardbench = written(
        tmp_path / "bench.jsonl",
        [
            {
                "id": k,
                "prompt": f"question {k}",
                "chosen": "a",
                "rejected": "b",
                "subset": f"s{k % 2}",
                "chosen_model": "m",
            }
            for k in range(6)
        ],
    )
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day to you"}]
    chat = written(tmp_path / "chat.jsonl", [{"messages": messages}, {"messages": messages[:1]}])
    plain = written(tmp_path / "plain.jsonl", [{"text": "words " * 200}, {"text": "few"}])
    asked = written(tmp_path / "asked.jsonl", [{"prompt": "why?"}])
    data = load_eval_data([rewardbench, f"talk={chat}", plain, asked])
    bench, talk, texts, prompts = data.sets
    assert [each.name for each in data.sets] == ["bench", "talk", "plain", "asked"]
    assert bench.pairs is not None
    assert bench.pairs.counts == {"s0": 3, "s1": 3}
    assert [text.prompt for text in talk.texts] == [False, True]
    assert len(texts.texts) == 1 + -(-len("words " * 200) // PASSAGE)
    assert [text.prompt for text in prompts.texts] == [True]
    tokenizer = tiny_tokenizer()
    scored = encode_eval(data, tokenizer).sets[1].texts[0]
    assert tokenizer.decode(scored.targets).startswith("good day to you")  # the answer alone is predicted


def test_what_cannot_be_used_is_refused_in_a_line(tmp_path: Path) -> None:
    empty, bad, rows = tmp_path / "empty.txt", tmp_path / "latin.txt", tmp_path / "rows.jsonl"
    empty.write_text(" \n\n\t\n", encoding="utf-8")
    bad.write_bytes("caf\xe9".encode("latin-1"))
    written(rows, [{"text": "fine"}, {"text": " "}, {"other": "x"}])
    none = written(tmp_path / "none.jsonl", [{"score": 1}])
    for given, reason in [
        (empty, "no text in it"),
        (bad, "not UTF-8 at byte 3"),
        (rows, "rows.jsonl, line 2: text is empty (and 1 more)"),
        (none, "line 1: columns missing: found 'score'"),
        (tmp_path / "missing.txt", "cannot be read"),
        (["builtin", "builtin"], "two sets are called builtin"),
        ("my name=builtin", "a name is of letters"),
    ]:
        with pytest.raises(InputError) as refused:
            load_eval_data(given)  # type: ignore[arg-type]
        assert reason in str(refused.value)
        assert "\n" not in str(refused.value)
    kept = load_eval_data(rows, on_bad_row="skip")
    assert len(kept.sets[0].texts) == 1
    assert "left out 2 rows" in kept.notes[1]


def test_overlap_with_training_is_counted(tmp_path: Path) -> None:
    train = make_pairs(8, 2)
    path = tmp_path / "texts.txt"
    path.write_text(str(train[3].prompt), encoding="utf-8")
    data = load_eval_data({"mine": PairSet(train.pairs[:3]), "others": make_pairs(4, 2, start=20), "texts": path})
    lines = data.overlaps(train)
    assert [line.partition(" items")[0] for line in lines] == ["eval data mine: 3", "eval data texts: 1"]


def test_of_many_pairs_some_of_every_concept_are_measured() -> None:
    data = load_eval_data({"many": make_pairs(300, 3)})
    encoded = encode_eval(data, tiny_tokenizer())
    measured = encoded.sets[0].pairs
    assert measured is not None
    assert len(measured.rows) == MOST_PAIRS
    assert max(measured.pairs.counts.values()) - min(measured.pairs.counts.values()) <= 1
    assert encoded.notes == ("eval data many: 50 of 300 pairs are measured",)
