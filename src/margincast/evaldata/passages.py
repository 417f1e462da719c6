"""Which texts does a plain text file hold? Passages of a few sentences, cut at line ends where there are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from margincast.errors import InputError

PASSAGE = 480  # characters: about a hundred tokens of English
SUFFIXES = (".txt", ".text", ".md")


def read_passages(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Passages with the line each begins in, from 1; and a sentence on how they were cut.

    Raises `InputError` for a file that cannot be read, is not UTF-8, or has no text.
    """
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    lines = content.splitlines()
    found = list(passages(lines))
    if not found:
        raise InputError(f"{path}: no text in it")
    cut = sum(len(line.strip()) > PASSAGE for line in lines)
    longer = f", {cut} of them longer and cut in windows" if cut else ""
    lines_of = "1 line" if len(lines) == 1 else f"{len(lines)} lines"
    return found, f"{path}: {lines_of} as {len(found)} texts of at most {PASSAGE} characters{longer}"


def passages(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Neighbouring lines together as long as they fit; a line that does not fit in windows of its own."""
    start, held = 1, ""
    for number, line in enumerate(lines, start=1):
        for piece in windows(line.strip()):
            if held and len(held) + 1 + len(piece) > PASSAGE:
                yield start, held
                held = ""
            start, held = (start, f"{held}\n{piece}") if held else (number, piece)
    if held:
        yield start, held


def windows(text: str) -> Iterator[str]:
    """`text` in pieces of at most `PASSAGE` characters, cut at white space where there is some in the second half."""
    while len(text) > PASSAGE:
        space = text.rfind(" ", PASSAGE // 2, PASSAGE)
        place = space if space > 0 else PASSAGE
        yield text[:place].rstrip()
        text = text[place:].lstrip()
    if text:
        yield text
