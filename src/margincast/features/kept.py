"""How does a run keep its features, so that later commands need neither the data nor the model again?

Beside `features.safetensors` (what the extraction cached): `features.head.safetensors`, W0's rows of the response
tokens, and `features.pairs.jsonl`, every pair with its token ids. `pairs.jsonl` has only pairs with recorded margins.

For responses of many tokens the features are those of every response position, and the head is all of W0. Both lie in
the cache, once for all runs, and in the folder of a run as links where the file system can.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from margincast.errors import InputError
from margincast.features.cache import LAYOUT
from margincast.features.positions import POSITIONS, Positions, head_of, laid_out
from margincast.models.load import LoadedModel
from margincast.passes.response_pass import logit_transform
from margincast.passes.tokenize import Encoding
from margincast.records import Features, FeatureSet, PairSet
from margincast.results import Json
from margincast.runs.layout import FEATURES, FEATURES_HEAD, FEATURES_MANIFEST, FEATURES_PAIRS, SUMMARY
from margincast.runs.load import pair_of, read_summary
from margincast.runs.save import pair_row
from margincast.runs.store import file_sha256, key_of, link, write_jsonl, write_tensors

Tensors = dict[str, torch.Tensor]


def keep_features(folder: Path, features: Features) -> None:
    """Write what `features.safetensors`, which lies in `folder` already, does not say."""
    rows: list[Json] = []
    for name in ("train", "heldout"):
        split: FeatureSet = getattr(features, name)
        for pair, chosen, rejected in zip(split.pairs, split.chosen_ids, split.rejected_ids, strict=True):
            rows.append({**pair_row(pair, name), "chosen_ids": chosen, "rejected_ids": rejected})
    tensors = {"tokens": features.tokens, "unembedding": features.unembedding}
    if features.bias is not None:
        tensors["bias"] = features.bias
    metadata = {name: getattr(features, name) for name in ("model", "model_hash", "logits")}
    write_tensors(folder / FEATURES_HEAD, tensors, {**metadata, "scale": repr(features.scale)})
    write_jsonl(folder / FEATURES_PAIRS, rows)


def keep_positions(
    folder: Path, loaded: LoadedModel, encoding: Encoding, splits: tuple[PairSet, PairSet], cache_dir: Path
) -> None:
    """The same where `features.safetensors` is of every response position.

    splits: training and held-out pairs;  cache_dir: has the head of `loaded` afterwards, V x hidden numbers, which
    `folder` links to
    """
    unembedding, bias = head_of(loaded)
    dtype = str(unembedding.dtype)
    head = cache_dir / "heads" / f"{key_of([loaded.hash, dtype, LAYOUT])[:32]}.safetensors"
    if not head.is_file():
        metadata = {"model": loaded.name, "model_hash": loaded.hash, "logits": "linear"}
        tensors = {"unembedding": unembedding} if bias is None else {"unembedding": unembedding, "bias": bias}
        write_tensors(head, tensors, {**metadata, "scale": repr(logit_transform(loaded.model)[0])})
    link(head, folder / FEATURES_HEAD)
    rows = [
        {**pair_row(pair, name), "chosen_ids": row.chosen, "rejected_ids": row.rejected}
        for name, pairs in zip(("train", "heldout"), splits, strict=True)
        for pair, row in zip(pairs, encoding.select(pairs).rows, strict=True)
    ]
    write_jsonl(folder / FEATURES_PAIRS, rows)


def bytes_of_positions(loaded: LoadedModel, encoding: Encoding) -> int:
    """How much the features of every response position take, on disk and in memory."""
    weight = loaded.model.get_output_embeddings().weight
    positions = sum(len(row.chosen) + len(row.rejected) for row in encoding.rows)
    return int(positions * weight.shape[1] * weight.element_size())


def kept_features(folder: str | Path) -> Features | Positions:
    """The features that a run used, from its folder or, for a stage of a run made of stages, the folder above.

    Those of every response position, `Positions`, where the run kept them: of responses of many tokens.

    Raises `InputError` when they are not there, or damaged.
    """
    folder = Path(folder)
    where = next((each for each in (folder, folder.resolve().parent) if (each / FEATURES_HEAD).is_file()), None)
    if where is None:
        raise InputError(
            f"{folder} holds no features ({FEATURES_HEAD} is missing); run its forecast or training again with this "
            "version"
        )
    if (where / SUMMARY).is_file():
        read_summary(where)  # refuses files that are not those the run wrote
    try:
        manifest = json.loads((where / FEATURES_MANIFEST).read_text(encoding="utf-8"))
        if manifest["sha256"] != file_sha256(where / FEATURES):
            raise InputError(f"{where / FEATURES} is not the file that its manifest is about; run the run again")
        tensors, head = load_file(where / FEATURES), load_file(where / FEATURES_HEAD)
        with safe_open(where / FEATURES_HEAD, framework="pt") as file:
            said = file.metadata()
        rows = [json.loads(line) for line in (where / FEATURES_PAIRS).read_bytes().splitlines()]
        read = _positions if manifest["key"]["kind"] == POSITIONS.kind else _features
        return read(rows, tensors, head, said)
    except OSError as error:
        raise InputError(f"the features of {folder} are damaged: {error.filename} cannot be read") from error
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the features of {folder} are damaged: {type(error).__name__}: {error}") from error


def _features(rows: list[Json], tensors: Tensors, head: Tensors, said: dict[str, str]) -> Features:
    train, heldout = (_split(rows, tensors, name) for name in ("train", "heldout"))
    return Features(
        train,
        heldout,
        tokens=head["tokens"],
        unembedding=head["unembedding"],
        model=said["model"],
        model_hash=said["model_hash"],
        logits=said["logits"],
        scale=float(said["scale"]),
        bias=head.get("bias"),
    )


def _positions(rows: list[Json], tensors: Tensors, head: Tensors, said: dict[str, str]) -> Positions:
    sides = [[len(row["chosen_ids"]), len(row["rejected_ids"])] for row in rows]
    if sum(map(sum, sides)) != len(tensors["hidden"]):
        raise ValueError(f"{sum(map(sum, sides))} response tokens for {len(tensors['hidden'])} features")
    splits, start, scale = [], 0, float(said["scale"])
    for name in ("train", "heldout"):
        index = [k for k, row in enumerate(rows) if row["split"] == name]
        ids = [row[side] for row in rows if row["split"] == name for side in ("chosen_ids", "rejected_ids")]
        lines = slice(start, start + sum(map(len, ids)))
        start = lines.stop
        features = laid_out(ids, {each: tensors[each][lines] for each in tensors}, scale)
        splits.append((PairSet(tuple(pair_of(rows[k]) for k in index)), features))
    (train_pairs, train), (heldout_pairs, heldout) = splits
    if not len(train_pairs) or not len(heldout_pairs):
        raise ValueError(f"{len(train_pairs)} training pairs and {len(heldout_pairs)} held-out ones")
    return Positions(
        train,
        heldout,
        train_pairs,
        heldout_pairs,
        unembedding=head["unembedding"],
        bias=head.get("bias"),
        model=said["model"],
        model_hash=said["model_hash"],
    )


def _split(rows: list[Json], tensors: Tensors, name: str) -> FeatureSet:
    index = [k for k, row in enumerate(rows) if row["split"] == name]
    if not index or len(rows) != len(tensors["hidden"]):
        raise ValueError(f"{len(rows)} pairs for {len(tensors['hidden'])} features, {len(index)} of them {name}")
    return FeatureSet(
        pairs=PairSet(tuple(pair_of(rows[k]) for k in index)),
        hidden=tensors["hidden"][index],
        chosen_ids=tuple(tuple(rows[k]["chosen_ids"]) for k in index),
        rejected_ids=tuple(tuple(rows[k]["rejected_ids"]) for k in index),
        reference_chosen=tensors["reference_chosen"][index],
        reference_rejected=tensors["reference_rejected"][index],
        start_chosen=tensors["start_chosen"][index] if "start_chosen" in tensors else None,
        start_rejected=tensors["start_rejected"][index] if "start_rejected" in tensors else None,
    )
