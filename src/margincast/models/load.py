"""Which model, and what multiplies its last hidden state? Loading, hashing and the unembedding."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from margincast.errors import InputError, StatedFailure
from margincast.models.smollm2 import MANIFEST, smollm2_folder
from margincast.models.tiny import tiny_folder
from margincast.processes import by_first
from margincast.runs.store import file_sha256

MADE = {"smollm2": smollm2_folder, "tiny": tiny_folder}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def default_cache_dir() -> Path:
    return Path.home() / ".cache" / "margincast"


@dataclass
class LoadedModel:
    """A causal language model in evaluation mode, its tokenizer, and a hash that names its weights.

    Training changes `model` in place, and `hash` with it.
    """

    name: str
    hash: str
    model: Any
    tokenizer: Any

    @property
    def context(self) -> int | None:
        """How many tokens fit, where the configuration says."""
        return getattr(self.model.config, "max_position_embeddings", None) or getattr(
            self.model.config, "n_positions", None
        )


def load_model(
    name: str | Path = "smollm2",
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    trust_remote_code: bool = False,
    cache_dir: str | Path | None = None,
) -> LoadedModel:
    """Load `smollm2`, `tiny` (random weights, to try things with), a local folder, or a Hub id, with dropout off.

    Raises `InputError` for a folder or dtype that cannot be used, `StatedFailure` for a model that cannot be fetched.
    """
    from transformers import AutoModelForCausalLM

    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not known; use one of: {', '.join(DTYPES)}")
    name = str(name)
    place = locate(name, None if cache_dir is None else Path(cache_dir))
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        tokenizer = _tokenizer(place, options)
        loading: Any = AutoModelForCausalLM.from_pretrained(
            place, dtype=DTYPES[dtype], output_loading_info=True, **options
        )
        model, found = loading
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        message = f"model {name!r} cannot be loaded: {first_line(error)}"
        raise InputError(message) if Path(place).is_dir() else StatedFailure(message) from error
    refuse_other_weights(name, found)
    keep_softcap(model)
    if model.get_output_embeddings() is None:
        raise InputError(f"model {name!r} has no unembedding (output embeddings); margincast needs a causal LM")
    disable_dropout(model)
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used: {first_line(error)}") from error
    return LoadedModel(name, _hash(place, model), model.eval(), tokenizer)


def _tokenizer(place: str, options: Mapping[str, Any]) -> Any:
    """The tokenizer at `place`, also where transformers 4 finds the class name that transformers 5 writes."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        return AutoTokenizer.from_pretrained(place, **options)
    except ValueError as error:
        if "TokenizersBackend" not in str(error):
            raise
        return PreTrainedTokenizerFast.from_pretrained(place, **options)


def keep_softcap(model: Any) -> None:
    """Take the attention that caps its logits where the configuration asks for it.

    Up to 5.15, at least, transformers gives such models (Gemma 2) `sdpa`, which leaves the cap out without a word.
    """
    capped = getattr(model.config, "attn_logit_softcapping", None)
    if capped is not None and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")


def refuse_other_weights(name: str, found: Mapping[str, Any]) -> None:
    """Raises `InputError` for a checkpoint that lacks weights, which would be random, or has others than its
    configuration says. found: transformers' loading info"""
    for kind, what in (("missing_keys", "has no"), ("unexpected_keys", "has weights its config does not know:")):
        names = sorted(found.get(kind) or ())
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise InputError(f"model {name!r} {what} {', '.join(names[:3])}{more}; it is not the model of its config")


def locate(name: str, cache_dir: Path | None = None) -> str:
    """A folder or Hub id for `name`. Raises `InputError` when `name` is a path that holds no model."""
    if name in MADE:
        # Of several processes transformers lets the first alone write a model.
        return by_first(lambda: str(MADE[name](cache_dir or default_cache_dir())))
    folder = Path(name).expanduser()
    if name.strip() and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"model folder {name!r} has no config.json; give a folder written by save_pretrained")
        return str(folder)
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or not name.strip():
        raise InputError(f"model folder {name!r} does not exist; give smollm2, a local folder or a Hub id")
    return name


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout to zero: reference and policy then agree at step 0 in training mode too.

    TRL sets the `nn.Dropout` modules. Many models drop in functions, by a number they keep: attention_dropout (Llama),
    hidden_dropout (Bloom), dropout and layerdrop (OPT), attn_dropout (GPT-BigCode).
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def untie(model: Any) -> nn.Linear:
    """Give the unembedding its own copy of the weights, so that it can move without the input embedding."""
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    assert isinstance(head, nn.Linear)
    return head


def _hash(place: str, model: Any) -> str:
    """Hub models are named by their commit; local ones by the content of their files."""
    commit = getattr(model.config, "_commit_hash", None)
    if commit:
        return str(commit)
    folder = Path(place)
    digest = hashlib.sha256()
    kinds = {".safetensors", ".bin", ".json", ".jinja", ".model", ".txt"}
    for path in sorted(folder.iterdir()):
        if path.suffix in kinds and path.name != MANIFEST:
            digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()
