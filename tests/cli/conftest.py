"""What the tests of the command line share: a tiny model, tiny persona-shaped data, an empty folder to work in."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.helpers import CONCEPTS, persona_rows, write_rows


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers and a byte-level tokenizer in which " Yes" and " No" are single tokens."""
    from transformers.utils.logging import disable_progress_bar

    from margincast.models.tiny import save_tiny

    # The command line asks for this by an environment variable, which is read when transformers is first imported.
    disable_progress_bar()
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three persona-shaped files of 24 rows, one concept each."""
    folder = tmp_path_factory.mktemp("data") / "personas"
    for concept in CONCEPTS:
        write_rows(folder / f"{concept}.jsonl", persona_rows(concept))
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[None]:
    """An empty current folder, a cache of the tests' own, and the environment put back afterwards."""
    before = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MARGINCAST_")]:
            patch.delenv(name)
        patch.setenv("MARGINCAST_CACHE_DIR", str(cache))
        patch.setenv("OMP_NUM_THREADS", "1")  # of subprocesses: a busy machine is not made busier
        patch.chdir(tmp_path_factory.mktemp("here"))
        yield
    # The command line sets defaults for the libraries that it calls.
    for name in set(os.environ) - set(before):
        del os.environ[name]
