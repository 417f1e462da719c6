"""Features of a tiny model: what they hold, and when they are read back, continued or made again."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from margincast.features import extract, extract_features, extraction, features_of
from margincast.features.cache import FEATURES, MANIFEST
from margincast.models import LoadedModel
from margincast.passes.budgets import Budgets
from margincast.passes.packing import distinct_tokens
from margincast.passes.tokenize import Encoded, encode
from margincast.records import Features, PairSet
from tests.oracles import response_logp
from tests.problems import make_pairs
from tests.tiny import tiny_loaded
from tests.tolerances import TOLERANCE, error

FORWARD = TOLERANCE[torch.float32].forward
PAIRS = make_pairs(24, concepts=3)
TRAIN, HELDOUT = PairSet(PAIRS.pairs[:18]), PairSet(PAIRS.pairs[18:])


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The prompts that the extraction passed through the model, in order."""
    seen: list[tuple[int, ...]] = []
    original = extract.response_pass

    def counted(model: Any, batch: Sequence[Encoded], *more: Any, **named: Any) -> Any:
        seen.extend(pair.prompt for pair in batch)
        return original(model, batch, *more, **named)

    monkeypatch.setattr(extract, "response_pass", counted)
    return seen


def assert_same(ours: Features, theirs: Features, tolerance: float) -> None:
    for split in ("train", "heldout"):
        left, right = getattr(ours, split), getattr(theirs, split)
        for name in ("hidden", "reference_chosen", "reference_rejected"):
            assert error(getattr(left, name), getattr(right, name)) <= tolerance
        assert left.chosen_ids == right.chosen_ids
        assert left.pairs == right.pairs


def test_features_are_the_models_own_numbers(loaded: LoadedModel, tmp_path: Path) -> None:
    features = extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path, layers=False)
    assert features.logits == "linear"
    assert features.scale == 1.0
    weight = loaded.model.get_output_embeddings().weight
    assert torch.equal(features.unembedding, weight[features.tokens])
    assert features.tokens.tolist() == sorted(loaded.tokenizer(" Yes No")["input_ids"])
    for split, pairs in ((features.train, TRAIN), (features.heldout, HELDOUT)):
        assert split.single_token
        rows = encode(pairs, loaded.tokenizer).rows
        with torch.no_grad():
            for k, row in enumerate(rows):
                own = loaded.model(input_ids=torch.tensor([row.prompt])).logits[0, -1]
                assert error(weight @ split.hidden[k], own) <= FORWARD
                for reference, side in (
                    (split.reference_chosen, row.chosen),
                    (split.reference_rejected, row.rejected),
                ):
                    assert error(reference[k], response_logp(loaded.model, row.prompt, side)) <= FORWARD
        assert split.chosen_ids == tuple(row.chosen for row in rows)
        assert split.rejected_ids == tuple(row.rejected for row in rows)


def test_multi_token_responses_leave_the_token_rows_empty(loaded: LoadedModel, tmp_path: Path) -> None:
    features = extract_features(loaded, TRAIN, HELDOUT, eos=True, cache_dir=tmp_path, layers=False)
    assert not features.train.single_token
    assert features.tokens.tolist() == []
    assert features.unembedding.shape == (0, 24)


def test_of_many_tokens_inner_layers_are_means_over_one_response_less_the_other(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    features = extract_features(loaded, TRAIN, HELDOUT, eos=True, cache_dir=tmp_path)
    inner = extract.inner_layers(loaded.model)
    for split, pairs in ((features.train, TRAIN), (features.heldout, HELDOUT)):
        assert split.layers is not None
        for row, found in zip(encode(pairs, loaded.tokenizer, eos=True).rows, split.layers, strict=True):
            means = []
            for ids, response in zip(row.inputs, (row.chosen, row.rejected), strict=True):
                with torch.no_grad():
                    states = loaded.model.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
                # The last of transformers' states is after the final norm; before it they are the layers' outputs.
                means.append(torch.stack([states[layer + 1][0, -len(response) :].mean(0) for layer in inner[:-1]]))
            assert error(found[:-1], means[0] - means[1]) <= FORWARD
    plain = extract_features(loaded, TRAIN, HELDOUT, eos=True, cache_dir=tmp_path, layers=False)
    assert plain.train.layers is None
    assert_same(plain, features, 0.0)


def test_a_second_call_reads_the_cache(loaded: LoadedModel, tmp_path: Path, computed: list[Any]) -> None:
    first = extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path, layers=False)
    assert len(computed) == len(PAIRS)
    computed.clear()
    assert_same(extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path, layers=False), first, 0.0)
    assert computed == []


def test_inner_layers_are_kept_on_request_and_the_rest_need_not_be_made_again(
    loaded: LoadedModel, tmp_path: Path, computed: list[Any]
) -> None:
    deep = extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path, layers=True)
    assert deep.train.layers is not None
    assert deep.train.layers.shape == (18, len(extract.inner_layers(loaded.model)), 24)
    assert deep.train.select(PairSet(TRAIN.pairs[3:5])).layers.tolist() == deep.train.layers[3:5].tolist()  # type: ignore[union-attr]
    computed.clear()
    plain = extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path, layers=False)
    assert computed == []
    assert plain.train.layers is None
    assert_same(plain, deep, 0.0)


@pytest.mark.parametrize("change", ["model", "split", "tokens", "text"])
def test_other_inputs_are_computed_anew(change: str, loaded: LoadedModel, tmp_path: Path, computed: list[Any]) -> None:
    extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path, layers=False)
    computed.clear()
    model, train, eos = loaded, TRAIN, None
    if change == "model":
        model = tiny_loaded(seed=1)
    elif change == "split":
        train = PairSet(TRAIN.pairs[1:])
    elif change == "tokens":
        eos = True
    else:
        train = PairSet((dataclasses.replace(TRAIN[0], prompt="Another prompt?\n"), *TRAIN.pairs[1:]))
    extract_features(model, train, HELDOUT, eos=eos, cache_dir=tmp_path, layers=False)
    assert len(computed) == len(train) + len(HELDOUT)


def test_a_damaged_file_is_made_again_with_the_same_numbers(
    loaded: LoadedModel, tmp_path: Path, computed: list[Any]
) -> None:
    first = extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path, layers=False)
    computed.clear()
    (path,) = tmp_path.glob(f"features/*/{FEATURES}")
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    path.write_bytes(content)
    assert_same(extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path, layers=False), first, 0.0)
    assert len(computed) == len(PAIRS)
    assert path.read_bytes() != content


def test_a_killed_extraction_is_continued_not_repeated(
    loaded: LoadedModel, tmp_path: Path, computed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = Budgets(pack_tokens=40, save_seconds=-1.0)  # keep every pack as soon as it is done
    whole = extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path / "undisturbed", layers=False, budgets=eager)
    computed.clear()
    counted = extract.response_pass

    def killed(model: Any, batch: Sequence[Encoded], *more: Any, **named: Any) -> Any:
        if len(computed) >= 10:
            raise KeyboardInterrupt
        return counted(model, batch, *more, **named)

    with monkeypatch.context() as patch:
        patch.setattr(extract, "response_pass", killed)
        with pytest.raises(KeyboardInterrupt):
            extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path, layers=False, budgets=eager)
    before = list(computed)
    assert 10 <= len(before) < len(PAIRS)
    computed.clear()
    continued = extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path, layers=False, budgets=eager)
    assert not set(before) & set(computed)
    assert len(before) + len(computed) == len(PAIRS)
    assert_same(continued, whole, FORWARD)
    assert not list(tmp_path.glob("features/*/part-*"))


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_the_size_of_packs_leaves_the_numbers_unchanged(budget: int, loaded: LoadedModel, tmp_path: Path) -> None:
    usual = extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path / "usual", layers=False)
    small = Budgets(pack_tokens=budget)
    assert_same(
        extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path, layers=False, budgets=small), usual, FORWARD
    )


def test_a_model_that_takes_no_packs_gives_the_same_features_and_says_why(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    packed = extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path / "packed", layers=False)
    assert not recwarn.list
    monkeypatch.setattr(extraction, "packing_problem", lambda model, rows: "made up")
    padded = extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path / "padded", layers=False)
    assert_same(padded, packed, FORWARD)
    (warning,) = recwarn.list
    message = "tiny llama 0 is given padded batches, which are slower than packed ones: made up"
    assert str(warning.message) == message
    told: list[str] = []
    encoding = encode(PAIRS, loaded.tokenizer)
    features_of(loaded, encoding, TRAIN, HELDOUT, cache_dir=tmp_path / "told", say=told.append)
    assert told == [message]
    features_of(loaded, encoding, TRAIN, HELDOUT, cache_dir=tmp_path / "told", say=told.append)
    assert told == [message]  # what is kept is read, and the model not asked


def test_the_progress_bar_counts_distinct_tokens(
    loaded: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path, progress=True, layers=False)
    rows = encode(PAIRS, loaded.tokenizer).rows
    total = distinct_tokens([sequence for row in rows for sequence in row.inputs])
    last = capsys.readouterr().err.split("\r")[-1]
    assert last.startswith("features: 100%")
    assert f" {total:.0f}/{total:.0f} [" in last
    assert "token/s]" in last


WORKER = """
import sys
from datetime import timedelta
from pathlib import Path
import torch
import torch.distributed as dist
from margincast.errors import StatedFailure
from margincast.features import extract, extract_features
from margincast.passes.budgets import Budgets
from margincast.runs.store import write_tensors
from tests.features.test_extract import HELDOUT, TRAIN
from tests.tiny import tiny_loaded

rank, world, folder, cache = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
torch.set_num_threads(1)
small = Budgets(pack_tokens=40)
computed = 0
original = extract.response_pass
def counted(model, batch, packed, **more):
    global computed
    computed += len(batch)
    return original(model, batch, packed, **more)
extract.response_pass = counted
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world,
                        timeout=timedelta(seconds=60))
try:
    features = extract_features(tiny_loaded(), TRAIN, HELDOUT, cache_dir=cache, layers=False, budgets=small)
    print(computed)
    splits = {"train": features.train, "heldout": features.heldout}
    write_tensors(folder / f"result-{rank}.safetensors", {
        f"{name}_{field}": getattr(split, field).contiguous().clone()
        for name, split in splits.items() for field in ("hidden", "reference_chosen", "reference_rejected")})
except StatedFailure as error:
    print(error)
    sys.exit(1)
finally:
    dist.destroy_process_group()
"""


def launch(folder: Path, caches: list[Path]) -> list[tuple[int, str]]:
    """Exit code and output of one process per cache folder."""
    (folder / "meet").unlink(missing_ok=True)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(len(caches)), str(folder), str(cache)],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, cache in enumerate(caches)
    ]
    outputs = [worker.communicate(timeout=100) for worker in workers]
    return [(worker.returncode, out.strip() or err) for worker, (out, err) in zip(workers, outputs, strict=True)]


def test_two_processes_share_the_work_and_have_one_result(loaded: LoadedModel, tmp_path: Path) -> None:
    small = Budgets(pack_tokens=40)  # as the workers
    alone = extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path / "alone", layers=False, budgets=small)
    cache = tmp_path / "cache"
    results = launch(tmp_path, [cache, cache])
    assert [code for code, _ in results] == [0, 0], results
    counts = [int(out) for _, out in results]
    assert sum(counts) == len(PAIRS)
    assert min(counts) > len(PAIRS) // 4
    for rank in range(2):
        theirs = load_file(tmp_path / f"result-{rank}.safetensors")
        for name, split in (("train", alone.train), ("heldout", alone.heldout)):
            for field in ("hidden", "reference_chosen", "reference_rejected"):
                assert torch.equal(theirs[f"{name}_{field}"], getattr(split, field))
    (folder,) = cache.glob("features/*")
    assert {path.name for path in folder.iterdir()} == {FEATURES, MANIFEST}
    assert folder.name == next(tmp_path.glob("alone/features/*")).name  # the key does not know of processes
    assert launch(tmp_path, [cache, cache]) == [(0, "0"), (0, "0")]  # read, not computed


def test_two_runs_at_once_make_features_once(tmp_path: Path) -> None:
    """Not processes of one run: each is alone, and they do not know of each other but by the cache."""
    cache = tmp_path / "cache"
    with ThreadPoolExecutor() as pool:
        folders = [tmp_path / name for name in ("one", "other")]
        for folder in folders:
            folder.mkdir()
        results = [result for (result,) in pool.map(lambda folder: launch(folder, [cache]), folders)]
    assert [code for code, _ in results] == [0, 0], results
    assert sorted(int(out) for _, out in results) == [0, len(PAIRS)]


def test_two_processes_go_on_where_one_was_killed(
    loaded: LoadedModel, tmp_path: Path, computed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = Budgets(pack_tokens=40, save_seconds=-1.0)
    alone = extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path / "alone", layers=False, budgets=eager)
    computed.clear()
    counted = extract.response_pass

    def killed(model: Any, batch: Sequence[Encoded], *more: Any, **named: Any) -> Any:
        if len(computed) >= 10:
            raise KeyboardInterrupt
        return counted(model, batch, *more, **named)

    cache = tmp_path / "cache"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(extract, "response_pass", killed)
        extract_features(loaded, TRAIN, HELDOUT, cache_dir=cache, layers=False, budgets=eager)
    results = launch(tmp_path, [cache, cache])
    assert [code for code, _ in results] == [0, 0], results
    assert len(computed) + sum(int(out) for _, out in results) == len(PAIRS)
    theirs = load_file(tmp_path / "result-1.safetensors")
    assert error(theirs["train_hidden"], alone.train.hidden) <= FORWARD
    assert error(theirs["heldout_hidden"], alone.heldout.hidden) <= FORWARD


def test_processes_that_do_not_share_a_cache_are_told_so(tmp_path: Path) -> None:
    results = launch(tmp_path, [tmp_path / "one", tmp_path / "other"])
    assert [code for code, _ in results] == [1, 1]
    for _, out in results:
        assert "pairs that were computed are not in" in out
        assert out.endswith("the cache must be one folder that all processes of a run share")


def test_features_are_put_into_the_run_folder_on_request(loaded: LoadedModel, tmp_path: Path) -> None:
    encoding = encode(PAIRS, loaded.tokenizer)
    for _ in range(2):  # computed, then cached
        features_of(loaded, encoding, TRAIN, HELDOUT, cache_dir=tmp_path / "cache", copy_to=tmp_path / "run")
        assert {path.name for path in (tmp_path / "run").iterdir()} == {FEATURES, "features.manifest.json"}


def test_cached_features_ask_the_model_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loaded = tiny_loaded()
    first = extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path)
    assert first.train.layers is not None

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was asked")

    monkeypatch.setattr(loaded.model, "forward", refuse)
    assert_same(extract_features(loaded, TRAIN, HELDOUT, cache_dir=tmp_path), first, 0.0)
