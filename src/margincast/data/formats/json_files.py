"""Rows in JSON: an object a line (.jsonl); or an array of objects, an object of columns, or lines as well (.json)."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from margincast.data.readers import Row, shorten
from margincast.data.streams import encoding_of, opened, read_all, undecodable
from margincast.errors import InputError

if TYPE_CHECKING:
    from importlib.abc import Traversable  # where it lies depends on the version of Python

BEYOND = "not valid JSON: a number or a nesting beyond what can be read"
_KINDS = {list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class _Repeated(dict[str, Any]):
    """An object in which `key` is given twice: JSON's readers keep the last and forget the first."""

    key: str = ""


def read_jsonl(file: Traversable, name: str) -> Iterator[Row]:
    """One JSON object a line, one row; blank lines hold no row."""
    with opened(file, name) as stream:
        encoding = encoding_of(stream)
        if encoding.startswith("utf-8"):
            for line, raw in enumerate(stream, start=1):
                text = (raw.removeprefix(_BYTE_ORDER_MARK) if line == 1 else raw).strip()
                if text:
                    yield _decoded_row(line, text)
            return
        try:
            for line, decoded in enumerate(io.TextIOWrapper(stream, encoding, newline="\n"), start=1):
                if decoded.strip():
                    yield _row(line, decoded.strip())
        except UnicodeDecodeError as error:
            raise undecodable(name, encoding) from error


def read_json(file: Traversable, name: str) -> Iterator[Row]:
    """The rows of a whole JSON text, counted from 1. Raises `InputError` for a text that is none, or holds no rows."""
    text = read_all(file, name).strip()
    if not text:
        return
    lines = [line for line in text.split("\n") if line.strip()]
    try:
        content, repeated = _parse(text)
    except (ValueError, RecursionError) as error:
        if len(lines) > 1 and _row(1, lines[0]).columns:  # an object a line, under the name of a whole text
            yield from (_row(row, line) for row, line in enumerate(lines, start=1))
            return
        where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"{name}{where}: {_problem(error, text)}") from error
    for row, item in enumerate(_items(content, name), start=1):
        yield _checked(row, item, _repeated_in(item) if repeated else None)


def _decoded_row(line: int, raw: bytes) -> Row:
    try:
        return _row(line, raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Row(line, problem=f"not valid UTF-8 (byte {error.start + 1} of the line)")


def _row(line: int, text: str) -> Row:
    try:
        content, repeated = _parse(text)
    except (ValueError, RecursionError) as error:
        return Row(line, problem=_problem(error, text))
    return _checked(line, content, repeated)


def _checked(line: int, content: object, repeated: str | None) -> Row:
    if repeated is not None:
        return Row(line, problem=f"key {shorten(repeated)} is given twice in one object")
    if not isinstance(content, dict):
        return Row(line, problem=f"a JSON object is needed, this is a JSON {_KINDS[type(content)]}")
    return Row(line, content)


def _parse(text: str) -> tuple[object, str | None]:
    """What the text says, and a key that one of its objects gives twice."""
    repeated: list[str] = []

    def made(items: list[tuple[str, Any]]) -> dict[str, Any]:
        plain = dict(items)
        if len(plain) == len(items):
            return plain
        twice = _Repeated(plain)
        names = [name for name, _ in items]
        twice.key = next(name for k, name in enumerate(names) if name in names[:k])
        repeated.append(twice.key)
        return twice

    return json.loads(text, object_pairs_hook=made), repeated[0] if repeated else None


def _repeated_in(value: object) -> str | None:
    if isinstance(value, _Repeated):
        return value.key
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((key for each in inside if (key := _repeated_in(each)) is not None), None)


def _problem(error: Exception, text: str) -> str:
    if not isinstance(error, json.JSONDecodeError):  # an integer of thousands of digits, thousands of nested brackets
        return BEYOND
    column = error.pos + 1 if "\n" not in text else error.colno
    return f"not valid JSON: {error.msg} (character {column})"


def _items(content: object, name: str) -> list[object]:
    """The rows in a JSON text: of an array its items; of an object its columns, its one list of objects, or itself."""
    if isinstance(content, list):
        return content
    if not isinstance(content, dict):
        raise InputError(f"{name}: an array of JSON objects is needed, this is a JSON {_KINDS[type(content)]}")
    if {"columns", "data"} <= content.keys():  # as pandas writes a frame with orient="split"
        return [dict(zip(content["columns"], values, strict=False)) for values in content["data"]]
    columns = _columns(content)
    if columns is not None:
        lengths = {len(values) for values in columns.values()}
        if len(lengths) > 1:
            raise InputError(f"{name}: an object of columns of different lengths ({', '.join(map(str, lengths))})")
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    tables = [key for key, value in content.items() if _is_table(value)]
    if len(tables) > 1 and len(tables) == len(content):
        raise InputError(f"{name}: several lists of rows ({', '.join(map(shorten, tables))}); give each a file")
    return content[tables[0]] if len(tables) == 1 else [content]


def _columns(content: Mapping[str, Any]) -> dict[str, list[object]] | None:
    """The columns of an object that holds nothing else: lists, or (as pandas writes them) objects by row number."""
    values = list(content.values())
    if values and all(isinstance(each, dict) and each and all(key.isdigit() for key in each) for each in values):
        return {name: list(each.values()) for name, each in content.items()}
    if not all(isinstance(each, list) for each in values) or any(
        _is_messages(each) or _is_table(each) for each in values
    ):
        return None
    return dict(content) or None


def _is_messages(value: object) -> bool:
    return isinstance(value, list) and any(
        isinstance(each, dict) and ({"role", "content"} <= each.keys() or {"from", "value"} <= each.keys())
        for each in value
    )


def _is_table(value: object) -> bool:
    """Whether a value is a list of objects that are no messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, dict) for each in value)
        and not _is_messages(value)
    )
