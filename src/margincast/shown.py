"""How is text of unknown origin shown? Names, prompts and paths may hold what a terminal obeys and XML forbids."""

from __future__ import annotations

import unicodedata

_UNSEEN = {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}
# Line breaks and tabs lay text out; joiners are letters' and emoji's own, and move nothing.
_LAYOUT = "\n\t\u200c\u200d"


def visible(text: str, line_break: str = "") -> str:
    """`text` with what a terminal would obey, or not show, as code points; a line break is \\n, and `line_break`."""
    if text.isprintable():
        return text
    return "".join(f"\\n{line_break}" if each == "\n" else _shown(each) for each in text)


def harmless(text: str) -> str:
    """`text` as it is laid out, with what else a terminal would obey, and XML does not allow, as code points."""
    if text.isprintable():
        return text
    return "".join(each if each in _LAYOUT else _shown(each) for each in text)


def _shown(character: str) -> str:
    return f"<U+{ord(character):04X}>" if unicodedata.category(character) in _UNSEEN else character
