"""Which model, and what multiplies its last hidden state? Loading, hashing and the unembedding."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from margincast.errors import InputError, StatedFailure
from margincast.models.adapter import has_adapter, open_adapter, refuse_adapter
from margincast.models.checks import in_memory_pair, refuse_infinite_weights, refuse_other_weights
from margincast.models.device import AUTO, DTYPES, resolve_device, resolve_dtype
from margincast.models.digest import config_digest, tokenizer_digest, weights_digest
from margincast.models.gguf import MANIFEST
from margincast.models.place import Place, adapter_on_hub, default_cache_dir, fetching, locate
from margincast.models.quantised import four_bits, is_quantised, refuse_4bit
from margincast.results import Json
from margincast.runs.store import file_sha256, key_of

__all__ = ["LoadedModel", "default_cache_dir", "load_model", "opened"]

LOADING = (OSError, ValueError, KeyError, ImportError, SafetensorError, AttributeError, TypeError, RuntimeError)


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

    @property
    def device(self) -> str:
        return str(next(self.model.parameters()).device)

    @property
    def dtype(self) -> str:
        """What the weights are held in, by its short name."""
        return str(self.model.dtype).removeprefix("torch.")


def load_model(
    name: str | Path | tuple[Any, Any] = "smollm2",
    *,
    revision: str | None = None,
    dtype: str = AUTO,
    device: str = AUTO,
    merge_adapter: bool = False,
    trust_remote_code: bool = False,
    cache_dir: str | Path | None = None,
    load_in_4bit: bool = False,
) -> LoadedModel:
    """Load a model, with dropout off, in evaluation mode.

    name: `smollm2`, `tiny` (random weights, to try things with), a folder of a model or of a LoRA adapter, a GGUF file,
    a Hub id; or (model, tokenizer) in memory, which stay where and what they are and have their dropout turned off
    dtype: float32, bfloat16, float16; `auto` is float32 where the weights then take at most half of the memory, else
    the checkpoint's own. A quantised model stays as it is
    device: as torch names it; `auto` is cuda, mps or cpu, the first there is
    merge_adapter: add an adapter to the weights: the reference then has it too
    load_in_4bit: put the weights but the unembedding into 4 bits, by bitsandbytes on a CUDA device; dtype is then what
    is computed in, `auto` bfloat16

    Raises `InputError` for a folder or dtype that cannot be used and for a model that is not whole and finite,
    `StatedFailure` for a model that cannot be fetched.
    """
    if not isinstance(name, (str, Path)):
        if load_in_4bit:
            raise InputError("a model in memory has the bits that it has; give load_in_4bit with a folder or a Hub id")
        loaded = _in_memory(name, merge_adapter)
        disable_dropout(loaded.model)
        loaded.model.eval()
        return loaded
    if dtype not in (AUTO, *DTYPES):
        raise InputError(f"dtype {dtype!r} is not known; use one of: {', '.join((AUTO, *DTYPES))}")
    device = resolve_device(device)
    if load_in_4bit:
        refuse_4bit(device, merge_adapter)
    name = str(name)
    cache = None if cache_dir is None else Path(cache_dir)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    place = locate(name, cache, revision)
    with fetching(place):
        place, config, tokenizer = _described(name, place, options, cache)
        model = _weights(name, place, config, dtype, device, options, four_bits(dtype) if load_in_4bit else None)
    commit = getattr(model.config, "_commit_hash", None)
    identity = str(commit) if commit else _files_hash(Path(place.base))
    if load_in_4bit:
        identity = key_of([identity, "4 bits"])
    if place.adapter is not None:
        model = open_adapter(model, place.adapter, name, merge_adapter).to(device)
        identity = key_of([identity, weights_digest(model), config_digest(model)])
    _refuse_unreadable(name, model)
    disable_dropout(model)
    return LoadedModel(name, identity, model.eval(), tokenizer)


def opened(model: str | Path | LoadedModel | tuple[Any, Any], cache_dir: Path) -> LoadedModel:
    """What a reader of features was given, as a `LoadedModel`. A model in memory is left as it is.

    Raises what `load_model` raises.
    """
    if isinstance(model, LoadedModel):
        return model
    return load_model(model, cache_dir=cache_dir) if isinstance(model, (str, Path)) else _in_memory(model)


def _in_memory(given: Any, merge_adapter: bool = False) -> LoadedModel:
    model, tokenizer = in_memory_pair(given)
    if has_adapter(model) and merge_adapter:
        raise InputError("a model in memory is merged by its own model.merge_and_unload(), which changes it")
    name = str(getattr(model.config, "name_or_path", "")) or type(model).__name__
    _refuse_unreadable(name, model)
    identity = key_of([weights_digest(model), config_digest(model), tokenizer_digest(tokenizer)])
    return LoadedModel(name, identity, model, tokenizer)


def _described(name: str, place: Place, options: dict[str, Any], cache: Path | None) -> tuple[Place, Any, Any]:
    """Where the model is, its configuration and its tokenizer. Raises as `load_model`."""
    from transformers import AutoConfig

    try:
        try:
            config = AutoConfig.from_pretrained(place.base, **_of_base(place, options))
        except OSError:
            adapted = None if Path(place.base).is_dir() else adapter_on_hub(name, options["revision"], cache)
            if adapted is None:
                raise
            place = adapted
            config = AutoConfig.from_pretrained(place.base, **_of_base(place, options))
        return place, config, _tokenizer(place, options)
    except LOADING as error:
        raise _not_loaded(name, place, error) from error


def _of_base(place: Place, options: dict[str, Any]) -> dict[str, Any]:
    """A revision names one of the adapter's repository, not of its base's."""
    return options if place.adapter is None else {**options, "revision": None}


def _tokenizer(place: Place, options: dict[str, Any]) -> Any:
    """The adapter's own tokenizer where it has one, as training saves it, else the model's."""
    if place.adapter is not None:
        try:
            return _tokenizer_at(place.adapter, options)
        except (OSError, ValueError, KeyError):  # it has none
            pass
    return _tokenizer_at(place.base, _of_base(place, options))


def _weights(name: str, place: Place, config: Any, dtype: str, device: str, options: Json, bits: Any = None) -> Any:
    """The base model on `device`; bits: how it is quantised as it is loaded. Raises as `load_model`."""
    from transformers import AutoModelForCausalLM

    quantised = getattr(config, "quantization_config", None)
    if quantised is not None and bits is not None:
        raise InputError(f"model {name!r} is quantised already; leave load_in_4bit out")
    if quantised is not None and not device.startswith("cuda"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else type(quantised).__name__
        raise InputError(
            f"model {name!r} is quantised ({method}), which is read on a CUDA device alone, and this is {device}; give "
            "the model that it was quantised from, or a GGUF file of it"
        )
    # A quantised model is put in place as it is loaded, and keeps its numbers.
    how: dict[str, Any] = {"dtype": "auto", "device_map": {"": device}}
    if bits is not None:
        how |= {"dtype": bits.bnb_4bit_compute_dtype, "quantization_config": bits}
    elif quantised is None:
        how = {"dtype": resolve_dtype(dtype, getattr(config, "dtype", None), _count(config, options), device)}
    try:
        loading: Any = AutoModelForCausalLM.from_pretrained(
            place.base, output_loading_info=True, ignore_mismatched_sizes=True, **how, **_of_base(place, options)
        )
        model, found = loading
    except LOADING as error:
        raise _not_loaded(name, place, error) from error
    refuse_other_weights(name, found)
    keep_softcap(model)
    try:
        return model if is_quantised(model) else model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used: {first_line(error)}") from error


def _count(config: Any, options: dict[str, Any]) -> int:
    """How many weights a model of `config` has, counted without storage; 0 for one stored in float32."""
    from transformers import AutoModelForCausalLM

    if getattr(config, "dtype", None) in (None, torch.float32):
        return 0
    with torch.device("meta"):
        remote = options["trust_remote_code"]
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=remote)  # type: ignore[no-untyped-call]
    return sum(weight.numel() for weight in model.parameters())


def _tokenizer_at(place: str, options: dict[str, Any]) -> Any:
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


def _not_loaded(name: str, place: Place, error: Exception) -> Exception:
    message = f"model {name!r} cannot be loaded: {first_line(error)}"
    return InputError(message) if Path(place.base).is_dir() else StatedFailure(message)


def _refuse_unreadable(name: str, model: Any) -> None:
    """Raises `InputError` for a model without an unembedding that features can be of, or with weights not finite."""
    head = model.get_output_embeddings()
    if head is None:
        raise InputError(f"model {name!r} has no unembedding (output embeddings); margincast needs a causal LM")
    if has_adapter(model):
        refuse_adapter(model, name)
    if not head.weight.is_floating_point():
        raise InputError(f"the unembedding of {name!r} is quantised; leave it out of the quantisation (lm_head)")
    refuse_infinite_weights(name, model)


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


def _files_hash(folder: Path) -> str:
    """Local models are named by the content of their files; those of the Hub by their commit."""
    digest = hashlib.sha256()
    kinds = {".safetensors", ".bin", ".json", ".jinja", ".model", ".txt"}
    for path in sorted(folder.iterdir()):
        if path.suffix in kinds and path.name != MANIFEST:
            digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()
