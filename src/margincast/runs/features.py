"""How does a run keep its features, so that later commands need neither the data nor the model again?

Beside `features.safetensors` (what the extraction cached): `features.head.safetensors`, W0's rows of the response
tokens, and `features.pairs.jsonl`, every pair with its token ids. `pairs.jsonl` has only pairs with recorded margins.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from margincast.errors import InputError
from margincast.records import Features, FeatureSet, Json, PairSet
from margincast.runs.layout import FEATURES, FEATURES_HEAD, FEATURES_MANIFEST, FEATURES_PAIRS, SUMMARY
from margincast.runs.load import pair_of, read_summary
from margincast.runs.save import pair_row
from margincast.runs.store import file_sha256, write_jsonl, write_tensors


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


def kept_features(folder: str | Path) -> Features:
    """The features that a run used, from its folder or, for a stage of a run made of stages, the folder above.

    Raises `InputError` when they are not there, of responses of more than one token, or damaged.
    """
    folder = Path(folder)
    where = next((each for each in (folder, folder.resolve().parent) if (each / FEATURES_HEAD).is_file()), None)
    if where is None and _kind(folder) == "positions":
        raise InputError(
            f"the responses of {folder} have more than one token, and attribution is of single-token responses; "
            "`margincast decompose DATA --all` says which pairs of long responses do harm"
        )
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
        train, heldout = (_split(rows, tensors, name) for name in ("train", "heldout"))
    except OSError as error:
        raise InputError(f"the features of {folder} are damaged: {error.filename} cannot be read") from error
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the features of {folder} are damaged: {type(error).__name__}: {error}") from error
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


def _split(rows: list[Json], tensors: dict[str, torch.Tensor], name: str) -> FeatureSet:
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


def _kind(folder: Path) -> str | None:
    try:
        kind: str = json.loads((folder / FEATURES_MANIFEST).read_text(encoding="utf-8"))["key"]["kind"]
        return kind
    except (OSError, ValueError, KeyError):
        return None
