"""Is this the model that its configuration says, whole and finite? Asked before hours of work."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from margincast.errors import InputError

if TYPE_CHECKING:
    from margincast.models.load import LoadedModel

# Buffers that old checkpoints hold and models now make themselves.
BUFFERS = re.compile(r"(rotary_emb\.inv_freq|attn\.(masked_)?bias)$")
HALF_LARGEST = torch.finfo(torch.float16).max


PAIR = "give a name or path, or (model, tokenizer) with a causal language model of transformers and its tokenizer"


def in_memory_pair(given: Any) -> tuple[Any, Any]:
    """`given` as model and tokenizer. Raises `InputError`, with what to give, for anything else."""
    if not isinstance(given, (tuple, list)):
        raise InputError(f"the model is {_kind(given)}; {PAIR}")
    if len(given) != 2:
        raise InputError(f"the model is a {type(given).__name__} of {len(given)}; {PAIR}")
    model, tokenizer = given
    if not (hasattr(model, "config") and hasattr(model, "get_output_embeddings")):
        if _tokenizes(model) and hasattr(tokenizer, "get_output_embeddings"):
            raise InputError(f"the model is (tokenizer, model), the wrong way round; {PAIR}")
        raise InputError(f"the first of (model, tokenizer) is {_kind(model)}, which is no model; {PAIR}")
    if not _tokenizes(tokenizer):
        raise InputError(f"the second of (model, tokenizer) is {_kind(tokenizer)}, which is no tokenizer; {PAIR}")
    bare = next((name for name, weight in model.named_parameters() if weight.is_meta), None)
    if bare is not None:
        raise InputError(
            f"the model's {bare} is on the device meta, where weights have no numbers; load the model whole "
            "onto one device, without init_empty_weights and without offloading"
        )
    return model, tokenizer


def _kind(given: Any) -> str:
    return "None" if given is None else f"of type {type(given).__name__}"


def _tokenizes(given: Any) -> bool:
    return callable(given) and hasattr(given, "get_vocab") and hasattr(given, "special_tokens_map")


def refuse_other_weights(name: str, found: Mapping[str, Any]) -> None:
    """Raises `InputError` for a checkpoint that lacks weights, which would be random, has others than its configuration
    says, or some of another shape. found: transformers' loading info"""
    hint = "it is not the model of its config"
    for key, own, wanted in sorted(found.get("mismatched_keys") or ()):
        raise InputError(
            f"model {name!r} has {key} of shape {_shape(own)}, and its config says {_shape(wanted)}; {hint}"
        )
    for kind, what in (("missing_keys", "has no"), ("unexpected_keys", "has weights its config does not know:")):
        names = sorted(key for key in found.get(kind) or () if not BUFFERS.search(key))
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise InputError(f"model {name!r} {what} {', '.join(names[:3])}{more}; {hint}")


def _shape(size: Iterable[int]) -> str:
    return " x ".join(map(str, size))


def refuse_infinite_weights(name: str, model: Any) -> None:
    """Raises `InputError`, naming the first weight with an entry that is not finite."""
    for where, weight in model.named_parameters():
        if weight.is_floating_point() and weight.numel() and not _finite(weight):
            bad = int((~weight.isfinite()).sum())
            cause = "the checkpoint is damaged, or its training diverged"
            if weight.dtype == torch.float16 and not bool(weight.isnan().any()):
                cause = f"float16 holds nothing above {HALF_LARGEST:,.0f}: read it with --dtype float32"
            raise InputError(f"model {name!r}: {bad} of {weight.numel()} numbers in {where} are not finite; {cause}")


def _finite(weight: Tensor) -> bool:
    # Least and largest need no mask of the weight's size, and either is NaN where an entry is.
    least, largest = weight.detach().aminmax()
    return bool(least.isfinite()) and bool(largest.isfinite())


def refuse_unknown_ids(loaded: LoadedModel, rows: Iterable[Sequence[Sequence[int]]]) -> None:
    """Raises `InputError` for a token at or beyond the rows of the embedding, before it meets the model.

    rows: sequences of token ids, a few for every pair
    """
    model = loaded.model
    size = min(len(each.weight) for each in (model.get_input_embeddings(), model.get_output_embeddings()))
    largest = max((max(ids) for row in rows for ids in row if len(ids)), default=0)
    if largest >= size:
        token = loaded.tokenizer.convert_ids_to_tokens(int(largest))
        raise InputError(
            f"the token {token!r} has the id {largest}, and the embedding of {loaded.name} has {size} rows, 0 to "
            f"{size - 1}: the tokenizer has grown and the model has not; give the model's own tokenizer, or call "
            "model.resize_token_embeddings(len(tokenizer)) and train it"
        )
