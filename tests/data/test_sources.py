"""Each form of DATA finds its files, and names concepts, ids and sources after them."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from margincast.data import load_pairs
from margincast.data.persona import paper_lists
from margincast.errors import InputError, StatedFailure

ROW = {"prompt": "Is it raining?", "chosen": " No", "rejected": " Yes"}
OTHER = {"prompt": "Is it snowing?", "chosen": " Yes", "rejected": " No"}
PERSONA = {"question": "Q?", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}


def test_traits_are_packaged():
    pairs = load_pairs("traits")
    assert len(pairs.concepts) >= 8
    assert min(pairs.counts.values()) >= 40
    assert {(pair.chosen, pair.rejected) for pair in pairs} == {(" Yes", " No"), (" No", " Yes")}
    assert all(pair.source == f"traits/{pair.concept}.jsonl" for pair in pairs)


def test_the_three_formats_hold_the_same_pairs(write):
    write("a/rows.jsonl", ROW, b"", OTHER)
    write("b/rows.csv", b"chosen,rejected,prompt", b" No, Yes,Is it raining?", b" Yes, No,Is it snowing?")
    path = write("c/rows.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROW, OTHER]), path)
    expected = [(pair.prompt, pair.chosen, pair.rejected) for pair in load_pairs("a/rows.jsonl")]
    assert expected == [tuple(ROW.values()), tuple(OTHER.values())]
    for other in ("b/rows.csv", "c/rows.parquet"):
        assert [(pair.prompt, pair.chosen, pair.rejected) for pair in load_pairs(other)] == expected
    assert [pair.line for pair in load_pairs("a/rows.jsonl")] == [1, 3]
    assert [pair.line for pair in load_pairs("b/rows.csv")] == [2, 3]
    assert [pair.line for pair in load_pairs("c/rows.parquet")] == [1, 2]


def test_several_data_are_read_one_after_the_other(write):
    write("a/train.jsonl", ROW)
    write("b/train.jsonl", OTHER)
    write("c.csv", b"chosen,rejected,prompt", b" No, Yes,Q")
    pairs = load_pairs("a/train.jsonl + b/train.jsonl + c.csv")
    assert [pair.prompt for pair in pairs] == [ROW["prompt"], OTHER["prompt"], "Q"]
    assert [pair.id for pair in pairs] == ["a/train.jsonl:1", "b/train.jsonl:1", "c:2"]
    assert pairs.concepts == ("a/train.jsonl", "b/train.jsonl", "c")
    write("d + e.jsonl", ROW)
    assert load_pairs("d + e.jsonl").concepts == ("d + e",)
    with pytest.raises(InputError, match="two of these are the same"):
        load_pairs("c.csv + c.csv")
    with pytest.raises(InputError, match=r"d\.csv.*no such file"):
        load_pairs("c.csv + d.csv")


def test_messages_in_parquet(write):
    user, yes, no = ({"role": role, "content": text} for role, text in [("user", "Q"), ("assistant", "Y"), ("a", "N")])
    path = write("rows.parquet")
    table = pyarrow.Table.from_pylist([{"chosen": [user, yes], "rejected": [user, no]}])
    pyarrow.parquet.write_table(table, path)
    (pair,) = load_pairs("rows.parquet")
    assert (pair.prompt, pair.chosen, pair.rejected) == ((user,), (yes,), (no,))


def test_byte_order_mark_and_windows_line_ends(write):
    write("rows.jsonl", b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r")
    write("rows.csv", b"\xef\xbb\xbfchosen,rejected,prompt\r", b" No, Yes,Q\r")
    assert load_pairs("rows.jsonl")[0].prompt == ROW["prompt"]
    assert (load_pairs("rows.csv")[0].chosen, load_pairs("rows.csv")[0].prompt) == (" No", "Q")


def test_csv_cells_keep_their_line_breaks(write):
    write("rows.csv", b'prompt,chosen,rejected\n"Q\r\nR",a,"say ""b"""\nQ,a,b')
    pairs = load_pairs("rows.csv")
    assert (pairs[0].prompt, pairs[0].rejected) == ("Q\r\nR", 'say "b"')
    assert [pair.line for pair in pairs] == [2, 4]


def test_single_file_is_one_concept_named_after_it(write):
    write("sub/weather.jsonl", ROW, OTHER)
    pairs = load_pairs("sub/weather.jsonl")
    assert pairs.concepts == ("weather",)
    assert [pair.id for pair in pairs] == ["weather:1", "weather:2"]
    assert pairs[0].source == "sub/weather.jsonl"


def test_folder_is_a_concept_per_file_wherever_it_lies_in_it(write):
    write("d/z.jsonl", ROW)
    write("d/a/train.jsonl", OTHER)
    write("d/b/train.jsonl", ROW)
    write("d/README.md", b"not data")
    write("d/.cache/x.jsonl", b"not data")
    pairs = load_pairs("d")
    assert pairs.concepts == ("a/train", "b/train", "z")
    assert [pair.id for pair in pairs] == ["a/train:1", "b/train:1", "z:1"]
    assert [pair.source for pair in pairs] == ["d/a/train.jsonl", "d/b/train.jsonl", "d/z.jsonl"]
    assert pairs.duplicates == (("b/train:1", "z:1"),)


def test_content_is_named_the_same_wherever_it_is_read_from(write, monkeypatch):
    write("d/weather.jsonl", ROW, OTHER)
    outside = load_pairs("d")
    monkeypatch.chdir("d")
    assert load_pairs("weather.jsonl").fingerprint == load_pairs(".").fingerprint == outside.fingerprint


def test_twins_in_a_folder_are_refused(write):
    write("d/rows.csv", b"chosen,rejected,prompt", b"a,b,c")
    write("d/rows.jsonl", ROW)
    with pytest.raises(InputError) as error:
        load_pairs("d")
    assert str(error.value) == "d: rows.csv and rows.jsonl differ only in their extension; give the one to be read"


def test_folder_without_data_and_empty_file_in_a_folder(write):
    write("d/README.md", b"not data")
    with pytest.raises(InputError) as error:
        load_pairs("d")
    assert str(error.value) == (
        "d: no .jsonl, .json, .parquet, .arrow, .csv, .tsv files in this folder; it holds README.md "
        "(no data file by its extension)"
    )
    write("d/a.jsonl", ROW)
    write("d/b.jsonl")
    with pytest.raises(InputError, match=r"^d/b\.jsonl: no rows$"):
        load_pairs("d")


def test_concept_column_groups_pairs(write):
    write("rows.jsonl", ROW | {"topic": "rain"}, OTHER | {"topic": 7}, ROW | {"topic": "rain"})
    pairs = load_pairs("rows.jsonl", concept_column="topic")
    assert pairs.counts == {"rain": 2, "7": 1}
    assert [pair.id for pair in pairs] == ["rows:1", "rows:2", "rows:3"]
    assert pairs.duplicates == (("rows:1", "rows:3"),)


def test_pairs_that_differ_in_one_part_are_no_duplicates(write):
    write("rows.jsonl", ROW, ROW | {"chosen": "No"}, ROW | {"prompt": "Q"}, ROW | {"rejected": "y"})
    assert load_pairs("rows.jsonl").duplicates == ()


@pytest.mark.parametrize("data", ["", " ", "nowhere", "data/rows.jsonl", "a/b/c", "/nowhere/x.csv", "x" * 5000, "\0"])
def test_data_that_is_nothing_is_told_what_it_could_be(write, data):
    with pytest.raises(InputError, match=r"no such file or folder; data are 'traits', 'persona:NAME\[,NAME…\]'"):
        load_pairs(data)


# Persona files in a folder


def test_persona_names_from_a_folder(write):
    for name in ("calm", "bold", "kind"):
        write(f"p/{name}.jsonl", PERSONA)
    pairs = load_pairs("persona:kind, calm,kind", persona_dir=Path("p"))
    assert pairs.concepts == ("kind", "calm")
    assert [(pair.id, pair.source, pair.prompt) for pair in pairs] == [
        ("kind:1", "kind.jsonl", "Q?\n"),
        ("calm:1", "calm.jsonl", "Q?\n"),
    ]
    assert load_pairs("persona:all", persona_dir=Path("p")).concepts == ("bold", "calm", "kind")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("persona:knid,calm", "persona folder p: no file for 'knid' (closest: 'kind')"),
        ("persona:../p/kind", "persona folder p: no file for '../p/kind' (closest: 'kind')"),
        ("persona:", "persona: holds an empty name; write persona:NAME[,NAME…]"),
        ("persona:kind,", "persona:kind, holds an empty name; write persona:NAME[,NAME…]"),
    ],
)
def test_unknown_persona_names(write, data, message):
    write("p/kind.jsonl", PERSONA)
    write("p/calm.jsonl", PERSONA)
    with pytest.raises(InputError) as error:
        load_pairs(data, persona_dir=Path("p"))
    assert str(error.value) == message


def test_persona_folder_must_be_one(write):
    write("p/README.md", b"no personas")
    with pytest.raises(InputError, match=r"^persona folder p: holds no \.jsonl files$"):
        load_pairs("persona:kind", persona_dir=Path("p"))
    with pytest.raises(InputError, match=r"^persona folder q: no such folder$"):
        load_pairs("persona:kind", persona_dir=Path("q"))


@pytest.mark.parametrize("k", [1, 2, 4, 8, 16])
def test_papers_lists_on_the_real_files(persona_dir, k):
    pairs = load_pairs(f"persona:k{k}", persona_dir=persona_dir)
    assert pairs.concepts == tuple(paper_lists()[f"k{k}"])
    assert len(pairs.concepts) == k
    assert all(500 <= count <= 1000 for count in pairs.counts.values())
    assert {(pair.chosen, pair.rejected) for pair in pairs} == {(" Yes", " No"), (" No", " Yes")}
    assert all(
        pair.prompt == f'Is the following statement something you would say?\n"{pair.statement}"\n' for pair in pairs
    )


def test_every_real_persona_file(persona_dir):
    pairs = load_pairs("persona:all", persona_dir=persona_dir)
    assert len(pairs.concepts) == 105
    assert len(pairs) == 103204
    assert len({pair.id for pair in pairs}) == len(pairs)
    assert pairs.skipped == ()
    first, repeated = pairs.duplicates[0]
    by_id = {pair.id: pair for pair in pairs}
    assert by_id[first].prompt == by_id[repeated].prompt


# The Hub, which tests do not reach


def test_hub_persona_files_come_by_name(write, monkeypatch):
    path = write("cache/calm.jsonl", PERSONA)
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: asked.append((a, k)) or str(path))
    pairs = load_pairs("persona:calm", revision="v1")
    assert asked == [
        (("Anthropic/model-written-evals", "persona/calm.jsonl"), {"repo_type": "dataset", "revision": "v1"})
    ]
    assert (pairs[0].id, pairs[0].source) == ("calm:1", "calm.jsonl")


def test_hub_persona_all_lists_the_repository(write, monkeypatch):
    write("cache/calm.jsonl", PERSONA)
    files = ["README.md", "persona/calm.jsonl", "persona/README.md", "sycophancy/other.jsonl"]
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, *a, **k: files)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda _, file, **k: file.replace("persona", "cache"))
    assert load_pairs("persona:all").concepts == ("calm",)


@pytest.mark.parametrize("data", ["persona:calm", "persona:k1", "persona:all"])
def test_hub_out_of_reach_says_how_to_give_a_folder(monkeypatch, tmp_path, data):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(StatedFailure) as error:
        load_pairs(data)
    assert str(error.value).endswith(
        "; give a folder that holds the persona files with --persona-dir or $MARGINCAST_PERSONA_DIR"
    )
    assert "Anthropic/model-written-evals" in str(error.value)
    assert "\n" not in str(error.value)


def test_hub_persona_that_is_not_there(monkeypatch):
    from huggingface_hub.errors import EntryNotFoundError

    def missing(*args, **kwargs):
        raise EntryNotFoundError("404 Client Error")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", missing)
    with pytest.raises(InputError, match=r"^no persona file 'clam' in Anthropic/model-written-evals on the Hub$"):
        load_pairs("persona:clam")
    with pytest.raises(InputError, match=r"^'\.\./secret' is not the name of a persona$"):
        load_pairs("persona:../secret")


def _fake_load_dataset(monkeypatch, outcome):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return asked


def test_hub_data_set_is_one_concept_and_its_rows_are_numbered(write, monkeypatch):
    import datasets

    asked = _fake_load_dataset(monkeypatch, datasets.Dataset.from_list([ROW, OTHER]))
    pairs = load_pairs("someone/weather", revision="abc")
    assert asked == [(("someone/weather",), {"split": "train", "revision": "abc"})]
    assert pairs.concepts == ("someone/weather",)
    assert [(pair.id, pair.source, pair.line) for pair in pairs] == [
        ("someone/weather:1", "someone/weather:train", 1),
        ("someone/weather:2", "someone/weather:train", 2),
    ]
    load_pairs("someone/weather:test[:10%]")
    assert asked[-1] == (("someone/weather",), {"split": "test[:10%]", "revision": None})


def test_hub_bad_rows_are_named_by_row(write, monkeypatch):
    _fake_load_dataset(monkeypatch, [ROW, ROW | {"chosen": ""}])
    with pytest.raises(InputError, match=r"^someone/weather:train, row 2: chosen is empty; "):
        load_pairs("someone/weather")


def test_hub_failures_are_told_apart(write, monkeypatch):
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    _fake_load_dataset(monkeypatch, DatasetNotFoundError("no"))
    with pytest.raises(InputError, match=r"^someone/weather: neither a file or folder here nor a data set on the Hub"):
        load_pairs("someone/weather")
    _fake_load_dataset(monkeypatch, ValueError("Unknown split \"dev\". Should be one of ['train'].\nmore"))
    with pytest.raises(InputError, match=r"^someone/weather:dev: Unknown split \"dev\"[^\n]*$"):
        load_pairs("someone/weather:dev")
    for error in (ConnectionError("Couldn't reach the Hub"), DatasetGenerationError("broken")):
        _fake_load_dataset(monkeypatch, error)
        with pytest.raises(StatedFailure, match=r"^someone/weather:train could not be fetched from the Hub: "):
            load_pairs("someone/weather")


def test_what_exists_here_is_read_here(write):
    write("someone/weather/rain.jsonl", ROW)
    assert load_pairs("someone/weather").concepts == ("rain",)
