"""Which sort of model is it? Family and size, by which calibrations of other models are found to be near."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelKind:
    """family: `model_type` of the configuration;  weights, layers, width: how many, of the model without an adapter"""

    family: str
    weights: int
    layers: int
    width: int


def kind_of(model: Any) -> ModelKind:
    """The kind of a transformers model."""
    config = model.config.get_text_config()
    weights = sum(value.numel() for name, value in model.named_parameters() if "lora_" not in name)
    return ModelKind(str(config.model_type), weights, int(config.num_hidden_layers), int(config.hidden_size))
