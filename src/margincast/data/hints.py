"""What is to be done with a row whose columns are those of no shape? The flags that map them, or a conversion.

Two responses of which a third column says which is better are no pair before somebody has applied the label: what it
means (0 or 1, "A", a score) is the data set's own.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from margincast.data.formats import suffix_of
from margincast.data.readers import Source, shorten
from margincast.data.shapes import SHAPES, UnusedError, likest_prompt, prompt_like, understood
from margincast.errors import InputError

# Words in the name of a column with the preferred response, and in that of the other.
_BETTER = re.compile(
    r"chosen|(?<!non_)(?<!dis)(?<!not_)preferred|accepted|winner|winning|better|positive|(^|_)(good|win|w|j)$", re.I
)
_WORSE = re.compile(r"rejected|dispreferred|(non|not)_preferred|loser|losing|worse|negative|(^|_)(bad|lose|l|k)$", re.I)
# The two responses beside a label, their label, and when the first is the better one, as the data sets' cards say.
_LABELLED = (
    ("response_0", "response_1", "better_response_id", "{} == 0"),
    ("response_0", "response_1", "safer_response_id", "{} == 0"),
    ("human_ref_A", "human_ref_B", "labels", "{} == 1"),
    ("response1", "response2", "overall_preference", "{} < 0"),
    ("conversation_a", "conversation_b", "winner", '{} == "model_a"'),
    ("response_a", "response_b", "winner", '{} == "model_a"'),
)
_NUMBERED = re.compile(r"^(.+?)_?(0|1|a|A)$")
_NEXT = {"0": "1", "1": "2", "a": "b", "A": "B"}
_LABEL = re.compile(r"prefer|label|better|safer|winner|choice|rank|score|overall", re.I)


def advice(columns: Mapping[str, object], source: Source) -> str:
    """What to write, for a row with these columns, in one line."""
    prompt = likest_prompt(columns)
    labelled = _labelled(columns)
    if labelled:
        return _conversion(prompt or "PROMPT", labelled, source)
    texts = [name for name, value in columns.items() if isinstance(value, (str, list, dict)) and not prompt_like(name)]
    worse = next((name for name in texts if _WORSE.search(name)), None)
    better = next((name for name in texts if _BETTER.search(name) and name != worse), None)
    if better and worse:
        flags = {"prompt": prompt, "chosen": better, "rejected": worse}
        said = " ".join(f"--{part}_column {shlex.quote(name)}" for part, name in flags.items() if name)
        return f"say which are the prompt and the responses: {said}"
    header = f"; {source.hint}" if source.hint else ""
    return f"{understood()}; name yours with --prompt_column, --chosen_column and --rejected_column{header}"


def advice_on_unused(
    error: UnusedError, columns: Mapping[str, object], source: Source, mapped: Mapping[str, str]
) -> str:
    """What to do with columns that would not be used: which flags to write, or how to join them to the prompt.

    mapped: the columns that are chosen and rejected where the caller said so
    """
    prompt = next(iter(error.prompts), None) or likest_prompt(error.unused) or error.unused[0]
    parts = [name for name in columns if name == prompt or name in error.unused]
    named = {"prompt": prompt} | {part: mapped.get(part, part) for part in ("chosen", "rejected")}
    flags = " ".join(f"--{part}_column {shlex.quote(name)}" for part, name in named.items())
    it = "them" if len(error.unused) > 1 else "it"
    if not error.prompts:
        alone = f"say which column is the prompt: {flags}; or remove {it}, where both responses begin with the prompt"
        if len(parts) == 1:
            return alone
    elif set(named.values()) <= columns.keys():
        alone = f"say that {prompt!r} is all of it: {flags}"
    else:
        alone = f"remove {it}"
    if not all(isinstance(columns[name], str) for name in parts):
        return f"put {it} into {prompt!r}, or {alone}"
    key = prompt if error.prompts else "prompt"
    values = ", ".join(f"r[{_quoted(name)}]" for name in parts)
    removed = ", ".join(_quoted(name) for name in parts if name != key)
    return (
        f"two lines of Python put them together: `import datasets; d = {_table(source.name)}` and "
        f'`d.map(lambda r: {{{_quoted(key)}: "\\n\\n".join(filter(None, [{values}]))}}, remove_columns=[{removed}])'
        f'.to_json("pairs.jsonl")`; or {alone}'
    )


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def refuse_headless(columns: Mapping[str, object], source: Source) -> None:
    """Raises `InputError` where a file's first line should name its columns and none of the names is any of ours."""
    known = {name for shape in SHAPES.all().values() for name in shape.columns}
    patterns = (_BETTER, _WORSE, _LABEL, _NUMBERED)
    if source.hint and not any(
        name in known or prompt_like(name) or any(pattern.search(name) for pattern in patterns) for name in columns
    ):
        raise InputError(
            f"{source.name}: {source.hint}, with 'chosen' and 'rejected' or the persona columns among them; "
            f"it reads {shorten(list(columns))}"
        )


@dataclass(frozen=True)
class _Labelled:
    """Two responses, the columns that say which is better, when the first is, and when neither (for Python's `r`)."""

    first: str
    second: str
    labels: tuple[str, ...]
    better: str
    tie: str = ""


def _labelled(columns: Mapping[str, object]) -> _Labelled | None:
    known = next((each for each in _LABELLED if set(each[:3]) <= columns.keys()), None)
    if known:
        first, second, label, condition = known
        tie = f"r[{_quoted(label)}] == 0" if label == "overall_preference" else ""
        return _Labelled(first, second, (label,), condition.format(f"r[{_quoted(label)}]"), tie)
    for name in columns:
        twin = _twin(name, columns)
        if twin and not _LABEL.search(name) and all(isinstance(columns[k], (str, list)) for k in (name, twin)):
            return _scored(name, twin, columns)
    return None


def _twin(name: str, columns: Mapping[str, object]) -> str | None:
    """The column that is numbered next: of `response_a` `response_b`."""
    numbered = _NUMBERED.match(name)
    twin = f"{name[:-1]}{_NEXT[numbered[2]]}" if numbered else ""
    return twin if twin in columns else None


def _scored(first: str, second: str, columns: Mapping[str, object]) -> _Labelled | None:
    """Two responses with the label, or the two scores, beside them."""
    labels = [each for each in columns if _LABEL.search(each) and each not in (first, second)]
    score = next((each for each in labels if "score" in each.lower() and _twin(each, columns)), None)
    if score:
        twin = _twin(score, columns) or ""
        of_first, of_second = f"r[{_quoted(score)}]", f"r[{_quoted(twin)}]"
        return _Labelled(first, second, (score, twin), f"{of_first} > {of_second}", f"{of_first} == {of_second}")
    label = next(iter(labels), None)
    return _Labelled(first, second, (label,), f"FIRST_IS_BETTER(r[{_quoted(label)}])") if label else None


def _conversion(prompt: str, found: _Labelled, source: Source) -> str:
    ties = f".filter(lambda r: not {found.tie})" if found.tie else ""
    first, second = (f"r[{_quoted(name)}]" for name in (found.first, found.second))
    row = (
        f'{{"prompt": r[{_quoted(prompt)}], "chosen": {first} if {found.better} else {second}, '
        f'"rejected": {second} if {found.better} else {first}}}'
    )
    say = "says" if len(found.labels) == 1 else "say"
    return (
        f"{' and '.join(map(repr, found.labels))} {say} which of '{found.first}' and '{found.second}' is better; "
        f"two lines of Python make pairs of them: `import datasets; d = {_table(source.name)}{ties}` and "
        f'`d.map(lambda r: {row}, remove_columns=d.column_names).to_json("pairs.jsonl")`'
    )


def _table(name: str) -> str:
    """The expression that reads the data with `datasets`."""
    suffix = suffix_of(name).lower()
    if name.startswith("memory"):
        return "datasets.Dataset.from_list(DATA)"
    if not suffix:  # on the Hub, or a folder of save_to_disk
        hub, _, split = name.partition(":")
        return f'datasets.load_dataset("{hub}", split="{split}")' if split else f'datasets.load_from_disk("{name}")'
    kind = {".csv": "csv", ".tsv": "csv", ".par": "parquet", ".arr": "arrow"}.get(suffix[:4], "json")
    tabs = ', sep="\\t"' if suffix.startswith(".tsv") else ""
    return f'datasets.load_dataset("{kind}", data_files="{name}", split="train"{tabs})'
