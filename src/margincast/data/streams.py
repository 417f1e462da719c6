"""How do the bytes of a file become text? Decompressed by its name, decoded by its byte order mark or first bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from margincast.data.readers import first_line
from margincast.errors import InputError

if TYPE_CHECKING:
    from importlib.abc import Traversable  # where it lies depends on the version of Python

COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")


def compressed(file: Traversable) -> bool:
    return file.name.lower().endswith(COMPRESSIONS)


@contextmanager
def opened(file: Traversable, name: str) -> Iterator[io.BufferedReader]:
    """The bytes of `file`, decompressed. Raises `InputError` where they cannot be read."""
    try:
        with file.open("rb") as raw, _decompressed(file.name.lower(), raw) as stream:
            yield io.BufferedReader(stream)
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror or first_line(error)}") from error
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{name}: cannot be decompressed: {first_line(error)}") from error


def _decompressed(name: str, raw: IO[bytes]) -> Any:
    if name.endswith(".gz"):
        return gzip.GzipFile(fileobj=raw)
    if name.endswith(".xz"):
        return lzma.LZMAFile(raw)
    if name.endswith(".bz2"):
        return bz2.BZ2File(raw)
    if name.endswith(".zst"):
        import pyarrow  # type: ignore[import-untyped]

        return pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")
    return raw


def encoding_of(stream: io.BufferedReader) -> str:
    """UTF-8, or the UTF-16 or UTF-32 that a byte order mark says, or zero bytes where a first ASCII character is."""
    return json.detect_encoding(stream.peek(4)[:4])


def read_all(file: Traversable, name: str) -> str:
    """All of `file` as text. Raises `InputError` for what is no text in its encoding."""
    with opened(file, name) as stream:
        encoding = encoding_of(stream)
        content = stream.read()
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise undecodable(name, encoding, f" (byte {error.start + 1})") from error


def undecodable(name: str, encoding: str, where: str = "") -> InputError:
    return InputError(f"{name}: not valid {encoding.upper().removesuffix('-SIG')}{where}; save it as UTF-8")
