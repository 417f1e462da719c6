"""How does `attribute` get the features of a run that kept none of its response positions? From data and model again.

A fitted forecast of responses of many tokens has no use for them. They are made, and kept in the cache, where somebody
asks which pairs did it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from margincast.cli.inputs import Reading, read_inputs
from margincast.cli.job import Job
from margincast.cli.options import InputOptions, PairOptions
from margincast.errors import InputError
from margincast.recipe.fields import options_of, plain_types
from margincast.results import Json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from margincast.features.positions import Positions

T = TypeVar("T", bound="DataclassInstance")


def positions_again(job: Job, folder: Path, summary: Json, cache_dir: Path | None) -> Positions:
    """Features of every response position of the run in `folder`, of which `summary` is.

    Raises `InputError` where its data or its model are gone, or are others by now, and what `token_features` raises.
    """
    from margincast.features.positions import Positions, head_of, token_features

    config = summary["config"]
    job.say(f"{folder} keeps no features of its response positions; they are taken from {config['data']} again.")
    inputs = _as_given(InputOptions, config, cache_dir=cache_dir)
    pairs = _as_given(PairOptions, config)
    read = read_inputs(job, Reading(config["data"], inputs, pairs, config["seed"], config["max_length"]))
    for name, part in (("train", read.train), ("heldout", read.heldout)):
        if part.fingerprint != summary["data"]["fingerprint"][name]:
            raise InputError(f"{config['data']} has other pairs than when {folder} was made of it; run it again")
    loaded = read.loaded
    before, *_ = summary["model"]["hash"].split(", ")  # a run of `train` adds what it was trained in
    if loaded.hash != before:
        raise InputError(f"{loaded.name} has other weights than when {folder} was made with it; run it again")
    features = token_features(
        loaded, read.encoding, read.train, read.heldout, cache_dir=inputs.cache, progress=job.progress, say=job.say
    )
    return Positions(*features, read.train, read.heldout, *head_of(loaded), loaded.name, loaded.hash, loaded.device)


def _as_given(kind: type[T], config: Mapping[str, Any], **more: Any) -> T:
    """The options of a run, read back from what `config_of` made of them."""
    types = plain_types(kind)
    given = {
        name: Path(config[name]) if types[name][0] is Path and config[name] is not None else config[name]
        for name, each in options_of(kind).items()
        if each.setting and name in config
    }
    return kind(**given, **more)
