"""Held-out pairs that people have are held out, prompts stay on one side, what lies beside data is named."""

import random
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st
from tests.data.conftest import Write

from margincast.data import load_pairs
from margincast.data.splits import parts_of
from margincast.errors import InputError
from margincast.records import Pair, PairSet


def rows(*prompts: str) -> list[dict[str, str]]:
    return [{"prompt": prompt, "chosen": "a", "rejected": "b"} for prompt in prompts]


def sides(data: object, **options: object) -> tuple[list[str], list[str]]:
    train, heldout = load_pairs(data, **options).split()  # type: ignore[arg-type]
    return [pair.id for pair in train], [pair.id for pair in heldout]


@pytest.mark.parametrize("heldout", ["test", "validation", "valid", "dev", "eval", "heldout", "Test"])
def test_a_folder_with_train_and_test_is_split_and_one_concept(write: Write, heldout):
    write("d/train.jsonl", *rows("P", "Q", "R"))
    write(f"d/{heldout}.csv", b"prompt,chosen,rejected", b"S,a,b")
    pairs = load_pairs("d")
    assert pairs.concepts == ("d",)
    assert sides("d") == (["train:1", "train:2", "train:3"], [f"{heldout}:2"])
    assert f"held out as the files' names say: d/{heldout}.csv" in pairs.notes


def test_of_test_and_validation_the_one_that_is_named(write: Write):
    write("d/train.jsonl", *rows("P"))
    write("d/test.jsonl", *rows("Q"))
    write("d/validation.jsonl", *rows("R"))
    assert sides("d") == (["train:1"], ["test:1"])
    (note,) = [note for note in load_pairs("d").notes if note.startswith("not read in d")]
    assert "validation.jsonl (held-out pairs are those of test; --dataset_test_split validation takes these)" in note
    assert sides("d", dataset_test_split="validation") == (["train:1"], ["validation:1"])
    with pytest.raises(InputError, match=r"^--dataset_test_split dev: beside train there are test, validation$"):
        load_pairs("d", dataset_test_split="dev")
    with pytest.raises(InputError, match=r"^d/train.jsonl: has no split 'dev'; give held-out pairs with"):
        load_pairs("d/train.jsonl", dataset_test_split="dev")
    assert load_pairs("d/train.jsonl", dataset_test_split="test").notes[-1] == (
        "no split 'test' in d/train.jsonl: held-out pairs are drawn"
    )


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"], {"W": "train train heldout"}),
        (["data/train-00000-of-00001", "data/test-00000-of-00001"], {"data": "train heldout"}),
        (["rain_train", "rain_test", "snow.train", "snow.test"], {"rain": "train heldout", "snow": "train heldout"}),
        (["train_prefs", "test_prefs"], {"prefs": "train heldout"}),
        (["a/train", "a/test", "b/train", "b/test"], {"a": "train heldout", "b": "train heldout"}),
        (["a/train", "b/train", "z"], {"a/train": "None", "b/train": "None", "z": "None"}),
        (["part-00000-of-00002", "part-00001-of-00002"], {"part": "None None"}),
        (["test", "validation"], {"test": "None", "validation": "None"}),
        (["train/data", "test/data"], {"data": "train heldout"}),
        (["default/train/0000", "default/train/0001", "default/test/0000"], {"default": "train train heldout"}),
        (["train/train-00000-of-00001", "test/test-00000-of-00001"], {"W": "train heldout"}),
        (["train/a", "train/b", "test/a"], {"a": "train heldout", "b": "train"}),
        (["train/a", "train/b", "z"], {"train/a": "None", "train/b": "None", "z": "None"}),
        (
            ["rain", "rain_eval", "snow", "d/hail", "d/hail-test"],
            {"rain": "train heldout", "snow": "None", "d/hail": "train heldout"},
        ),
        (["rain", "rain_test", "rain_train"], {"rain": "None heldout train"}),
        (["trains", "tests"], {"trains": "None", "tests": "None"}),
    ],
)
def test_which_files_belong_together(labels, expected):
    found: dict[str, list[str]] = {}
    for part in parts_of(labels, "W").values():
        found.setdefault(part.concept, []).append(str(part.split))
    assert {concept: " ".join(splits) for concept, splits in found.items()} == expected


def test_a_split_folder_may_hold_other_concepts(write: Write):
    write("d/train.jsonl", *rows("P", "Q"))
    write("d/test.jsonl", *rows("R"))
    write("d/snow.jsonl", *rows("S", "T"))
    pairs = load_pairs("d")
    assert pairs.concepts == ("snow", "d")
    train, heldout = pairs.split()
    assert heldout.counts == {"snow": 1, "d": 1}
    assert train.counts == {"snow": 1, "d": 2}
    assert pairs.notes[-1] == (
        "neither train nor test by name, so a concept each, of which held-out pairs are drawn: d/snow.jsonl"
    )
    parts = DatasetDict({part: Dataset.from_list(rows(part)) for part in ("train", "test", "extra")})
    assert load_pairs(parts).notes[-1].endswith("drawn: extra")


def test_what_a_folder_holds_beside_data_is_named(write: Write):
    write("d/a.jsonl", *rows("P"))
    write("d/README.md", b"words")
    write("d/.cache/x.jsonl", *rows("Q"))
    write("d/dataset_info.json", {"license": "mit"})
    write("d/b.txt.gz", b"")
    write("d/tags.json", ["sea", "snow"])
    write("elsewhere/c.jsonl", *rows("R"))
    Path("d/link").symlink_to(Path("elsewhere").resolve())
    Path("d/gone").symlink_to("nowhere")
    (_, note) = load_pairs("d").notes
    assert note == (
        "not read in d: .cache (hidden), README.md (no data file by its extension), b.txt.gz (no data file by its "
        "extension), dataset_info.json (it holds no rows), gone (a link to nothing), "
        "link (a link to a folder; give that folder) and 1 more"
    )
    for k in range(4):
        write(f"d/{k}.md", b"")
    assert load_pairs("d").notes[1].endswith(" and 5 more")


def test_a_dangling_link_to_data_is_refused(write: Write):
    write("d/a.jsonl", *rows("P"))
    Path("d/b.jsonl").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"^d/b.jsonl: a link to nothing; give a file to read, or remove it$"):
        load_pairs("d")


def test_folders_of_save_to_disk(tmp_path):
    Dataset.from_list(rows("P", "Q")).save_to_disk(tmp_path / "one", num_shards=2)
    assert [(pair.id, pair.concept) for pair in load_pairs(tmp_path / "one")] == [("one:1", "one"), ("one:2", "one")]
    both = DatasetDict(train=Dataset.from_list(rows("P", "Q")), test=Dataset.from_list(rows("R")))
    both.save_to_disk(tmp_path / "both")
    assert sides(tmp_path / "both") == (["train:1", "train:2"], ["test:1"])
    assert len(load_pairs(tmp_path / "both").notes) == 2
    (tmp_path / "one" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(InputError, match=r"one/data-00001-of-00002.arrow: named in state.json, and not there"):
        load_pairs(tmp_path / "one")
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(InputError, match=r"one/state.json: does not say which files hold the data"):
        load_pairs(tmp_path / "one")


# Held-out pairs of one's own


def test_own_heldout_pairs_are_of_the_training_pairs_concept(write: Write):
    write("a/pairs.jsonl", *rows("P", "Q"))
    write("b/pairs.jsonl", *rows("R"))
    pairs = load_pairs("a/pairs.jsonl", heldout="b/pairs.jsonl")
    assert pairs.concepts == ("pairs",)
    assert sides("a/pairs.jsonl", heldout="b/pairs.jsonl") == (["pairs:1", "pairs:2"], ["heldout/pairs:1"])
    write("c/pairs.jsonl", *rows("S"))
    write("c/snow.jsonl", *rows("T"))
    assert load_pairs("c", heldout="b/pairs.jsonl").counts == {"pairs": 2, "snow": 1}
    assert len(load_pairs("traits", heldout="b/pairs.jsonl")) == 481


def test_a_persona_that_is_held_out_is_a_concept_of_its_own(write: Write):
    row = {"question": "Q", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}
    write("p/calm.jsonl", row)
    write("p/kind.jsonl", row | {"question": "R"})
    pairs = load_pairs("persona:calm", heldout="persona:kind", persona_dir="p")
    assert pairs.concepts == ("calm", "kind")
    assert [pair.id for pair in pairs.split()[1]] == ["kind:1"]


def test_data_that_are_split_take_no_other_heldout_pairs(write: Write):
    write("d/train.jsonl", *rows("P"))
    write("d/test.jsonl", *rows("Q"))
    write("e.jsonl", *rows("R"))
    with pytest.raises(InputError, match=r"^DATA has training and held-out pairs of its own \(d/test.jsonl\); name"):
        load_pairs("d", heldout="e.jsonl")
    with pytest.raises(InputError, match=r"^--heldout has training and held-out pairs of its own \(d/test.jsonl\)"):
        load_pairs("e.jsonl", heldout="d")


def test_prompts_on_both_sides_are_refused_or_allowed(write: Write):
    write("a.jsonl", *rows("Is it  Raining?", "Q", "R"))
    chat = {"prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "c"}
    write("b.jsonl", *rows("is it\nraining? ", "S"), chat)
    pairs = load_pairs("a.jsonl", heldout="b.jsonl")
    message = r"^2 of 3 held-out pairs have a prompt that training pairs have too, the first: b:1 has that of a:1; "
    with pytest.raises(InputError, match=message):
        pairs.split()
    train, heldout = pairs.split(allow_leakage=True)
    assert (len(train), len(heldout)) == (3, 3)


# The split that is drawn


def _pairs(prompts: list[tuple[str, str]]) -> PairSet:
    return PairSet(
        tuple(Pair(f"f:{k}", concept, prompt, "a", "b", "f", k) for k, (concept, prompt) in enumerate(prompts))
    )


def _split_of_distinct_prompts(pairs: PairSet, holdout: float, seed: int) -> set[str]:
    """As every pair was drawn before prompts counted."""
    held: set[str] = set()
    for concept in pairs.concepts:
        members = [pair.id for pair in pairs if pair.concept == concept]
        random.Random(f"{seed}/{concept}").shuffle(members)
        held |= set(members[: min(max(round(holdout * len(members)), 1), len(members) - 1)])
    return held


COUNTS = st.dictionaries(st.sampled_from("abc"), st.integers(1, 30), min_size=1).filter(
    lambda counts: max(counts.values()) > 1
)


@given(COUNTS, st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_distinct_prompts_are_split_as_ever(counts, holdout, seed):
    pairs = _pairs([(concept, f"{concept} {k}") for concept, count in counts.items() for k in range(count)])
    _, heldout = pairs.split(holdout, seed)
    assert {pair.id for pair in heldout} == _split_of_distinct_prompts(pairs, holdout, seed)


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from(["P", " p", "Q", "R", "s", "S\n", "T"])),
        min_size=2,
        max_size=30,
    ),
    st.floats(0.01, 0.99),
    st.integers(0, 100),
)
def test_one_prompt_is_on_one_side(prompts, holdout, seed):
    pairs = _pairs(prompts)
    try:
        train, heldout = pairs.split(holdout, seed)
    except InputError:
        distinct = {concept: {prompt.strip().lower() for of, prompt in prompts if of == concept} for concept in "ab"}
        assert all(len(each) < 2 for each in distinct.values()), "two prompts of one concept can be parted"
        return
    train_prompts, heldout_prompts = ({pair.prompt.strip().lower() for pair in part} for part in (train, heldout))
    assert not train_prompts & heldout_prompts
    assert len(train) + len(heldout) == len(pairs)


def test_repeated_prompts_leave_the_share_as_it_is():
    pairs = _pairs([("a", f"prompt {k // 2}") for k in range(200)])
    train, heldout = pairs.split(0.1)
    assert (len(train), len(heldout)) == (180, 20)
    many = _pairs([("a", "P")] * 30 + [("a", f"prompt {k}") for k in range(30)])
    assert len(many.split(0.1)[1]) == 6
    two = _pairs([("a", "P")] * 3 + [("a", "Q")] * 5)
    assert [len(part) for part in two.split(0.1)] == [5, 3]


def test_of_the_papers_personas_eight_share_prompts_across_the_split(persona_dir):
    for data, changed in (("persona:k1", False), ("persona:k4", False), ("traits", False), ("persona:k8", True)):
        pairs = load_pairs(data, persona_dir=persona_dir)
        _, heldout = pairs.split(0.1)
        assert ({pair.id for pair in heldout} != _split_of_distinct_prompts(pairs, 0.1, 1234)) == changed
