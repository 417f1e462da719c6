"""What of a model may be in few bits, and where? QLoRA: a base in 4 bits by bitsandbytes, below a trained adapter."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from margincast.errors import InputError
from margincast.models.device import AUTO, DTYPES


def refuse_4bit(device: str, merge_adapter: bool) -> None:
    """Raises `InputError` where weights cannot be put into 4 bits."""
    if not device.startswith("cuda"):
        raise InputError(
            f"load_in_4bit is bitsandbytes' on a CUDA device, and this is {device}; leave it out (--no_load_in_4bit): "
            "forecasts then are of the weights that the 4 bits are made of"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("load_in_4bit needs bitsandbytes, which is not installed: pip install bitsandbytes")
    if merge_adapter:
        raise InputError("an adapter is not merged into weights of 4 bits; give merge_adapter or load_in_4bit")


def four_bits(dtype: str) -> Any:
    """The quantisation of QLoRA as TRL asks for it: NF4, not nested; computed in `dtype`, `auto` being bfloat16."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=False,
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == AUTO else DTYPES[dtype],
    )


def is_quantised(model: Any) -> bool:
    return getattr(model.config, "quantization_config", None) is not None


def refuse_training_quantised(model: Any, train: str) -> None:
    """Raises `InputError` where weights in few bits would have to train."""
    if train == "all" and is_quantised(model):
        raise InputError("quantised weights do not train; give train lora, or the model without its quantisation")
