"""Docstrings here say `name: what it is` line by line; this makes lists of such lines for the API page."""

from __future__ import annotations

import re
from typing import Any

import griffe

ITEM = re.compile(r"(\w+(?:, \w+)*): +(.*)")


def listed(text: str) -> str:
    """`text` with every paragraph that begins with an item as a Markdown list, and angle brackets as they are read."""
    paragraphs = text.replace("<", "&lt;").split("\n\n")
    return "\n\n".join(_list(part) if ITEM.match(part.lstrip()) else part for part in paragraphs)


def _list(paragraph: str) -> str:
    lines: list[str] = []
    for line in re.sub(r"; {2,}(?=\w+(?:, \w+)*: )", "\n", paragraph).splitlines():
        item = ITEM.match(line)
        if item and not item[1].startswith("Returns"):
            names = ", ".join(f"`{name}`" for name in item[1].split(", "))
            lines.append(f"- {names}: {item[2]}")
        elif line[:1].isspace() or not line[:1].isupper():
            lines.append(f"  {line.strip()}")
        else:  # a sentence after the last item
            lines += ["", line]
    return "\n".join(lines)


class Listed(griffe.Extension):
    """What mkdocstrings calls for every object it reads."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = listed(obj.docstring.value)
