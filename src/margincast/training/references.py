"""How does TRL get the reference log-probabilities that the extraction pass has already computed? As two columns."""

from __future__ import annotations

from pathlib import Path

from margincast.errors import InputError, needed
from margincast.passes.tokenize import Encoding
from margincast.records import Features
from margincast.results import Json
from margincast.runs.save import pair_row
from margincast.runs.store import atomic_path, write_jsonl

FORMATS = (".jsonl", ".parquet")
COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")  # as TRL calls them


def check_references(path: Path, eos: bool | None) -> None:
    """Raise `InputError` where `write_references` would, before any work is done."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: reference log-probabilities are written to {' or '.join(FORMATS)} files")
    if not eos:
        raise InputError(
            f"{path}: TRL appends the end-of-sequence token, so log-probabilities for it need that token too; add --eos"
        )


def write_references(path: Path, features: Features, encoding: Encoding) -> None:
    """Write the pairs of `features` as a data set for TRL, in the order of `encoding`, which they were extracted from.
    `PackedDPOTrainer` reads it as it is.

    Every row has `prompt`, `chosen`, `rejected`, where the pair comes from, its `split` ("train" or "heldout"), and
    `ref_chosen_logps` and `ref_rejected_logps`, the summed log-probabilities of the responses as TRL defines them.

    Raises `InputError` for another file than .jsonl and .parquet, and for an encoding without end-of-sequence tokens.
    """
    check_references(path, encoding.eos)
    rows: dict[str, Json] = {}
    for name, split in (("train", features.train), ("heldout", features.heldout)):
        logps = zip(split.pairs, split.reference_chosen.tolist(), split.reference_rejected.tolist(), strict=True)
        for pair, chosen, rejected in logps:
            rows[pair.id] = {**pair_row(pair, name), **dict(zip(COLUMNS, (chosen, rejected), strict=True))}
    ordered = [rows[pair.id] for pair in encoding.pairs]
    if path.suffix.lower() == ".jsonl":
        write_jsonl(path, ordered)
        return
    table = needed("datasets", f"writing {path}").Dataset
    with atomic_path(path) as temporary:
        table.from_list(ordered).to_parquet(str(temporary))
