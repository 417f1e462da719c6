"""Which weights are these? A hash of what is in memory, whatever it came from and whatever was done to it since."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from margincast.runs.store import key_of

# Where a model was, and by which version written: no matter for its numbers.
OF_NO_MATTER = ("_name_or_path", "_commit_hash", "transformers_version", "dtype", "torch_dtype", "architectures")


def weights_digest(model: Any) -> str:
    """SHA-256 of every weight and buffer that the model keeps, an adapter's included: names, dtypes, shapes, bytes.

    Half a second for 135 million weights on two cores.
    """
    state = model.state_dict()
    names = sorted(state)
    # hashlib lets other threads run while it reads.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        parts = list(threads.map(lambda name: _digest(state[name]), names))
    return key_of(list(zip(names, parts, strict=True)))


def _digest(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    held = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(held.numpy().data).hexdigest()}"


def config_digest(model: Any) -> str:
    """SHA-256 of what besides weights decides a model's numbers: its class, its configuration, its adapters'."""
    inner = getattr(model, "base_model", model) if hasattr(model, "peft_config") else model
    adapters = getattr(model, "peft_config", {})
    active = getattr(model, "active_adapters", None) if adapters else None
    said = {name: each for name, each in model.config.to_dict().items() if name not in OF_NO_MATTER}
    return key_of(
        [
            type(inner).__qualname__,
            _plain(said),
            {name: _plain(each.to_dict()) for name, each in adapters.items()},
            str(active() if callable(active) else active),
        ]
    )


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer in memory: its pieces, special tokens and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    pieces = backend.to_str() if backend is not None else _plain(tokenizer.get_vocab())
    special = {name: str(each) for name, each in tokenizer.special_tokens_map.items()}
    return key_of([pieces, special, _plain(getattr(tokenizer, "chat_template", None))])


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it, the same in every process: sets are sorted, anything else is its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
