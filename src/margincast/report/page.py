"""How does a result become one HTML file that opens anywhere? Everything inline, everything escaped, no script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from margincast.shown import harmless


@dataclass(frozen=True)
class PageFigure:
    """A figure by its SVG file. It goes in as an image, so that nothing inside it can act as markup."""

    path: Path
    caption: str

    @property
    def uri(self) -> str:
        return "data:image/svg+xml;base64," + base64.b64encode(self.path.read_bytes()).decode()


@dataclass(frozen=True)
class PageTable:
    """A table; `text` for tables of prose, otherwise all columns but the first are numbers."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: bool = False


@dataclass(frozen=True)
class Colour:
    """A token of a text: coloured "up" or "down" with `strength` in [0, 1]; `title` shows when it is pointed at."""

    text: str
    direction: str
    strength: float
    title: str


@dataclass(frozen=True)
class ColouredText:
    """A response, token by token."""

    caption: str
    tokens: Sequence[Colour]


@dataclass(frozen=True)
class Judged:
    """A verdict: the decision, and its reasons, each with what it speaks for by itself."""

    decision: str
    reasons: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Section:
    """A part of the page; `reading` says in plain words what the numbers mean. A section that has a verdict and comes
    first stands before what the page says of itself."""

    title: str
    texts: Sequence[str] = ()
    reading: Sequence[str] = ()
    figures: Sequence[PageFigure] = ()
    tables: Sequence[PageTable] = ()
    coloured: Sequence[ColouredText] = ()
    judged: Judged | None = None


def render_page(title: str, lead: str, sections: Sequence[Section], details: Sequence[tuple[str, str]]) -> str:
    """The page as HTML. Every text is harmless and escaped: prompts and names may hold anything."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_finalize
    )
    template = environment.from_string(files("margincast.report").joinpath("page.html.jinja").read_text("utf-8"))
    return template.render(title=title, lead=lead, sections=sections, details=details)


def _finalize(value: object) -> object:
    return harmless(value) if isinstance(value, str) else value
