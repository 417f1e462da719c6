"""How are features used that do not fit in memory? As a tensor that lies in a safetensors file.

The operating system reads the rows that the kernel walks over and drops them again when memory is needed. Nothing else
changes: a `TokenSpace` takes the tensor as its features, and visits rows nearly in the order of the file.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from margincast.errors import InputError
from margincast.runs.store import atomic_path

# Names that safetensors gives types, with the type that numpy maps and the one torch sees.
_TYPES = {
    "F64": (np.float64, torch.float64),
    "F32": (np.float32, torch.float32),
    "BF16": (np.uint16, torch.bfloat16),
    "F16": (np.float16, torch.float16),
}


def map_features(path: Path, name: str = "hidden") -> Tensor:
    """The matrix `name` of the safetensors file `path`, (rows, hidden), read from the file as it is used.

    Writing to the tensor changes neither the file nor another mapping of it.

    Raises `InputError` for a file that is not there, is cut short or has no such matrix.
    """
    try:
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            entry = json.loads(file.read(length)).get(name)
    except (OSError, struct.error, ValueError, MemoryError, OverflowError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}") from error
    if entry is None or len(entry["shape"]) != 2 or entry["dtype"] not in _TYPES:
        raise InputError(f"{path} has no matrix {name!r} of {', '.join(_TYPES)}")
    start, stop = (8 + length + offset for offset in entry["data_offsets"])
    if path.stat().st_size < stop:
        raise InputError(f"{path} is cut short: {name} ends at byte {stop}, the file at {path.stat().st_size}")
    stored, seen = _TYPES[entry["dtype"]]
    if start == stop:
        return torch.empty(*entry["shape"], dtype=seen)
    return torch.from_numpy(np.memmap(path, stored, "c", start, tuple(entry["shape"]))).view(seen)


def write_features(path: Path, blocks: Iterable[Tensor], rows: int, name: str = "hidden") -> None:
    """Write `rows` x hidden features that arrive as blocks of rows, (any, hidden), without holding them all.

    Raises `InputError` when the blocks disagree in shape or type, or do not sum to `rows`; no file is left then.
    """
    names = {seen: kind for kind, (_, seen) in _TYPES.items()}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        done, first = 0, None
        for block in blocks:
            if first is None:
                first = block
                size = rows * block.shape[1] * block.element_size()
                entry = {"dtype": names[block.dtype], "shape": [rows, block.shape[1]], "data_offsets": [0, size]}
                header = json.dumps({name: entry}).encode()
                header += b" " * (-len(header) % 64)  # numbers start where a cache line does, after 8 bytes of length
                header += b" " * 56
                file.write(struct.pack("<Q", len(header)) + header)
            if block.shape[1] != first.shape[1] or block.dtype != first.dtype:
                raise InputError(f"rows {done} and on have another width or type than the rows before")
            file.write(block.contiguous().view(torch.uint8).numpy().data)
            done += len(block)
        if done != rows:
            raise InputError(f"{rows} rows were announced and {done} came")
