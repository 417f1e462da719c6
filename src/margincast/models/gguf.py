"""How is a quantised GGUF file read? De-quantised once, into a folder that transformers loads as any other."""

from __future__ import annotations

import tempfile
from pathlib import Path

from filelock import FileLock

from margincast.errors import InputError
from margincast.runs.store import file_sha256, write_json

MANIFEST = "margincast.json"
LAYOUT = 1  # of the folder; a change makes folders made before unused


def gguf_folder(path: Path, cache_dir: Path) -> Path:
    """The folder of the de-quantised `path`, named by its content and made on first use: float32, so about eight times
    the size of a 4-bit file. Safe when several processes ask at once.

    Raises `InputError` for a file that transformers cannot read.
    """
    digest = file_sha256(path)
    folder = cache_dir / "models" / f"gguf-{digest[:16]}-{LAYOUT}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".gguf-") as workspace:
                made = dequantise(path, Path(workspace) / "model", path.name, path.stem)
                made.rename(folder)
    return folder


def dequantise(gguf: Path, target: Path, source: str, name: str) -> Path:
    """Write the GGUF file's model, called `name`, and its tokenizer to `target` as transformers would have saved them;
    `source` is what the folder's manifest says that they were made from.

    Raises `InputError` for a file that transformers cannot read.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": str(gguf.resolve().parent), "gguf_file": gguf.name}
    try:
        quantised = AutoModelForCausalLM.from_pretrained(dtype=torch.float32, **place)
        tokenizer = AutoTokenizer.from_pretrained(**place)
    except ImportError as error:
        raise InputError(f"{gguf} needs the package gguf, which is not installed: pip install gguf") from error
    except Exception as error:  # its readers raise what comes: ValueError, KeyError, IndexError, OSError, ...
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{gguf} cannot be read as a GGUF model: {reason}") from error
    # save_pretrained refuses a model loaded from GGUF, so the same weights go into a model that never knew of it.
    config = quantised.config
    if hasattr(config, "quantization_config"):  # transformers 5.15 leaves none
        del config.quantization_config
    config._name_or_path = name
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    files = sorted(path for path in target.iterdir() if path.suffix in {".safetensors", ".json", ".jinja"})
    write_json(target / MANIFEST, {"source": source, "sha256": {path.name: file_sha256(path) for path in files}})
    return target
