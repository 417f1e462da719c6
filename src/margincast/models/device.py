"""On which device, and in which numbers, is a model read? What `auto` means for both."""

from __future__ import annotations

import os
from typing import Any

import torch

AUTO = "auto"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Weights in float32 may take this much of the memory where they are: the rest is for what is computed with them.
MEMORY_SHARE = 0.5


def resolve_device(device: str) -> str:
    """`auto` is cuda where there is one, else mps, else cpu; any other name stays."""
    if device != AUTO:
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def forecast_device(device: str) -> torch.device:
    """Where forecasts of a model on `device` are calculated: there, unless it has no float64, as Apple's has none."""
    there = torch.device(resolve_device(device))
    return torch.device("cpu") if there.type == "mps" else there


def on_device(device: torch.device) -> str:
    """How the origin of a forecast tells where it was calculated; nothing on a CPU."""
    return "" if device.type == "cpu" else ", on the GPU"


def resolve_dtype(dtype: str, own: Any, parameters: int, device: str) -> torch.dtype:
    """`auto` is float32, the exact reading of any checkpoint, where that leaves half of the memory free; else the
    checkpoint's own dtype.

    own: what the checkpoint's weights are stored in, None where it does not say;  parameters: how many there are
    """
    if dtype != AUTO:
        return DTYPES[dtype]
    if not isinstance(own, torch.dtype) or own == torch.float32 or not own.is_floating_point:
        return torch.float32
    return torch.float32 if 4 * parameters <= MEMORY_SHARE * memory_of(device) else own


def spare_bytes(device: torch.device, usual: int) -> int:
    """What may be kept to save time: `usual` bytes, on a GPU a quarter of what is free where that is more."""
    if device.type != "cuda":
        return usual
    return max(usual, torch.cuda.mem_get_info(device)[0] // 4)


def memory_of(device: str) -> int:
    """Bytes of memory that the device has; of the machine where the two share it."""
    kind = torch.device(device).type
    if kind == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
