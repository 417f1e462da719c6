"""Is a run on features that stay in their file the run on features in memory, and is a damaged file noticed?"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from margincast.errors import InputError
from margincast.frozen.engine.step import simulate
from margincast.frozen.engine.stream import map_features, write_features
from margincast.recipe.batches import batch_order, full_batch
from margincast.recipe.optimizers import AdamW
from tests.problems import random_space

TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", TYPES)
def test_a_run_from_the_file_is_the_run_from_memory(tmp_path: Path, dtype: torch.dtype) -> None:
    space = random_space(70, 33, 3, 0.3, 0)
    space = dataclasses.replace(space, features=space.features.to(dtype))
    path = tmp_path / "features.safetensors"
    save_file({"other": torch.zeros(3), "hidden": space.features}, path)
    mapped = dataclasses.replace(space, features=map_features(path))
    assert torch.equal(mapped.features, space.features)
    for batches in (lambda: full_batch(70, 5), lambda: batch_order(70, 8, 5, 0)):
        runs = [list(simulate(s, AdamW(0.1), batches(), unembedding=space.zeros())) for s in (space, mapped)]
        assert torch.equal(torch.stack(runs[0]), torch.stack(runs[1]))


@pytest.mark.parametrize("dtype", TYPES)
def test_blocks_are_written_as_safetensors(tmp_path: Path, dtype: torch.dtype) -> None:
    features = torch.randn(10, 7).to(dtype)
    path = tmp_path / "features.safetensors"
    write_features(path, features.split(4), 10)
    assert torch.equal(load_file(path)["hidden"], features)
    assert torch.equal(map_features(path), features)


def test_writing_to_the_tensor_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    write_features(path, [torch.ones(2, 2)], 2)
    map_features(path).zero_()
    assert map_features(path).tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_a_wrong_number_of_rows_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    with pytest.raises(InputError, match="10 rows were announced and 4 came"):
        write_features(path, [torch.ones(4, 2)], 10)
    with pytest.raises(InputError, match="another width"):
        write_features(path, [torch.ones(4, 2), torch.ones(4, 3)], 8)
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    with pytest.raises(InputError, match="cannot be read"):
        map_features(path)
    write_features(path, [torch.ones(4, 2)], 4)
    with pytest.raises(InputError, match="no matrix 'g'"):
        map_features(path, "g")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="cut short"):
        map_features(path)
    path.write_bytes(whole[:20])
    with pytest.raises(InputError, match="cannot be read"):
        map_features(path)
