"""Where are weights put into 4 bits, and where is that refused, in one line and with nothing written?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from margincast.errors import InputError
from margincast.models import load_model
from margincast.models.tiny import save_tiny
from margincast.recipe.recipe import Recipe
from margincast.recipe.yaml_file import settings_in
from margincast.training.prepare import prepared
from tests.cli.helpers import run
from tests.tiny import tiny_loaded


@pytest.mark.parametrize("command", ["train", "forecast"])
def test_on_a_cpu_they_are_refused(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARGINCAST_CACHE_DIR", str(tmp_path / "cache"))
    out = tmp_path / "out"
    words = ("traits", "--model", "tiny", "--train", "lora", "--load_in_4bit", "--device", "cpu")
    done = run(command, *words, "--max_steps", 1, "--out", out)
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert "load_in_4bit is bitsandbytes' on a CUDA device, and this is cpu" in done.err
    assert not out.exists()


def test_on_a_cuda_device_transformers_is_asked_for_what_trl_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NF4, not nested, computed in bfloat16 or in --dtype; the hash of the model is not that of its full weights."""
    folder, asked = save_tiny(tmp_path / "tiny"), {}

    def from_pretrained(place: str, **how: Any) -> Any:
        asked.update(how)
        return own(place, output_loading_info=True)

    own = AutoModelForCausalLM.from_pretrained
    plain = load_model(folder, device="cpu")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setattr("margincast.models.quantised.importlib.util.find_spec", lambda name: name == "bitsandbytes")
    monkeypatch.setattr(
        "margincast.models.load.is_quantised", lambda model: True
    )  # there, put in place as it is loaded
    loaded = load_model(folder, device="cuda:0", load_in_4bit=True)
    bits = asked["quantization_config"]
    assert (bits.load_in_4bit, bits.bnb_4bit_quant_type, bits.bnb_4bit_use_double_quant) == (True, "nf4", False)
    assert bits.bnb_4bit_compute_dtype == asked["dtype"] == torch.bfloat16
    assert asked["device_map"] == {"": "cuda:0"}
    assert loaded.hash != plain.hash
    load_model(folder, device="cuda:0", dtype="float16", load_in_4bit=True)
    assert asked["quantization_config"].bnb_4bit_compute_dtype == torch.float16
    with pytest.raises(InputError, match="not merged into weights of 4 bits"):
        load_model(folder, device="cuda:0", load_in_4bit=True, merge_adapter=True)
    monkeypatch.setattr("margincast.models.quantised.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs bitsandbytes, which is not installed"):
        load_model(folder, device="cuda:0", load_in_4bit=True)


def test_all_weights_of_a_quantised_model_do_not_train() -> None:
    loaded = tiny_loaded()
    loaded.model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(InputError, match="quantised weights do not train; give train lora"):
        prepared(loaded, Recipe(train="all"))
    assert any("lora_" in name for name, _ in prepared(loaded, Recipe(train="lora")).named_parameters())


def test_a_file_of_trls_is_read_for_it() -> None:
    values = {"model_name_or_path": "m", "use_peft": True, "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    settings, unused = settings_in(Path("dpo.yaml"), values, {"model", "train", "load_in_4bit"})
    assert settings["load_in_4bit"] is True
    assert unused == ["bnb_4bit_quant_type"]
