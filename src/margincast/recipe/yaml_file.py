"""Which settings are in a YAML file? margincast's own, or those of `trl dpo --config`, by their names.

A name is ours, TRL's with a meaning here, TRL's without one (named once), or unknown: refused, with the nearest name.
In a file of TRL's an unknown name is named once too, for its users add names of their own scripts and of `accelerate
launch`; one that is all but a known name is taken for that name misspelt, and refused.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from margincast.errors import InputError
from margincast.recipe import trl
from margincast.recipe.fields import Settings, near
from margincast.recipe.names import TRL_NAMES

# TRL's names for what is called otherwise here.
RENAMED = {
    "model_name_or_path": "model",
    "model_revision": "revision",
    "dataset_name": "data",
    "torch_dtype": "dtype",
}
# Names that tell a file of TRL's, whose defaults are then TRL's, from one of ours.
TELLING = ("model_name_or_path", "dataset_name", "output_dir", "optim", "use_peft")
# Words that YAML 1.1, and so TRL, reads as true and false.
WORDS = {"yes": True, "on": True, "no": False, "off": False}
FILE_KINDS = (
    "json",
    "csv",
    "parquet",
    "arrow",
)  # what `load_dataset` calls readers of files, where it takes data_files
FILE_PATTERN = re.compile(r"[*?\[]|://")
MISSPELT = 0.92  # as alike as learning_rat and learning_rate; ref_model_name_or_path is a name of its own
PLAIN = {
    "bool": r"^(?:true|True|TRUE|false|False|FALSE)$",
    "null": r"^(?:~|null|Null|NULL|)$",
    "int": r"^[-+]?[0-9]+$",
    "float": r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.inf$|^\.nan$",
}
SIZE = 1 << 20  # a configuration is no larger


def read_yaml(path: Path) -> Settings:
    """The names and values in the file, hyphens as underscores. Raises `InputError` for what is no such file."""
    import yaml

    try:
        size, text = path.stat().st_size, path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"config file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"config file {path} is not YAML: it is not UTF-8") from error
    if size > SIZE:
        raise InputError(f"config file {path} is larger than a configuration can be")
    try:
        values = yaml.load(text, _loader())
    except (yaml.YAMLError, ValueError, RecursionError, AttributeError) as error:  # the last: of !!timestamp abc
        raise InputError(f"config file {path} is not YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise InputError(f"config file {path} must hold names and values, like `beta: 0.01`")
    return {name.replace("-", "_"): value for name, value in values.items()}


def _loader() -> Any:
    """YAML whose numbers are numbers as one reads them (1e-5 is one, 1:30 and 017 are not others), without aliases,
    which can make a file's content explode, and with no key twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise ValueError("aliases (*name) have no place in a configuration")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [str(key.value).replace("-", "_") for key, _ in node.value]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice:
                raise ValueError(f"{twice} is given twice")
            return super().construct_mapping(node, deep)

    Loader.yaml_implicit_resolvers = {}
    for kind, pattern in PLAIN.items():
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(pattern), None)
    Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
    Loader.add_constructor("tag:yaml.org,2002:float", _float)
    return Loader


def _float(loader: Any, node: Any) -> float:
    return float(node.value.replace(".inf", "inf").replace(".nan", "nan"))


def settings_in(
    path: Path, values: Mapping[str, Any], known: Iterable[str], repeated: Container[str] = ()
) -> tuple[Settings, list[str]]:
    """The settings among `values` by our names, and TRL's names that have no meaning here.

    known: our names;  repeated: those of them that take a list. Raises `InputError` for the others, all at once, and
    for other values that are lists or mappings.
    """
    ours = set(known)
    said: list[str] = []
    settings: Settings = {}
    unused: list[str] = []
    trls = any(name in values and name not in ours for name in TELLING)
    if trls:
        values, unused = from_trl_names(values, ours)
    for name, value in values.items():
        if name == "loss_type" and isinstance(value, list) and len(value) == 1:  # as TRL writes it
            value = value[0]
        if name in ours:
            if name in repeated and value is not None:
                settings[name] = [str(each) for each in (value if isinstance(value, list) else [value])]
            elif isinstance(value, (list, dict)):
                said.append(f"{name} must be a single value")
            elif value is not None:
                settings[name] = value
        elif name in TRL_NAMES:
            unused.append(name)
        elif trls and not difflib.get_close_matches(name, [*ours, *TRL_NAMES], cutoff=MISSPELT):
            unused.append(f"{name} (unknown)")
        else:
            said.append(f"no option {name!r} here{_hint(name, ours | TRL_NAMES if trls else ours)}")
    if said:
        raise InputError(f"config file {path}: {'; '.join(said)}")
    return settings, unused


def from_trl_names(values: Mapping[str, Any], ours: set[str]) -> tuple[Settings, list[str]]:
    """The values of a file for `trl dpo`, translated; TRL's defaults stand where it says nothing."""
    given = {name: _word(value) for name, value in values.items() if value is not None}
    out: Settings = {}
    unused: list[str] = []
    for theirs, name in RENAMED.items():
        value = given.pop(theirs, None)
        if (theirs, value) == ("model_revision", "main"):  # the default, and no version of a local model
            continue
        if name in ours and value is not None:
            out[name] = value
    unused += [f"dtype {where.pop('dtype')}" for where in (given, out) if where.get("dtype") == "auto"]
    mixed = _mixture(given)
    if mixed and "data" in ours:
        del given["datasets"]
        out["data"] = mixed
    split = "train" if mixed else given.get("dataset_train_split", "train")
    if split != "train" and isinstance(out.get("data"), str) and not Path(out["data"]).exists():
        out["data"] = f"{out['data']}:{given.pop('dataset_train_split')}"
    if isinstance(given.get("eval_steps"), float):
        unused.append(f"eval_steps {given.pop('eval_steps')}, a share of the run")
    defaults = {"beta": 0.1, "learning_rate": 1e-6, "per_device_train_batch_size": 8, "seed": 42}
    out |= {name: value for name, value in defaults.items() if name in ours and name not in given}
    loss_type = given.pop("loss_type", "sigmoid")
    beta = given.get("beta", defaults["beta"])
    out |= trl.loss_settings(loss_type, beta, given)
    given.pop("label_smoothing", None)
    given.pop("discopop_tau", None)
    optimizer, more = trl.optimizer_settings(given.pop("optim", "adamw_torch_fused"), given.pop("optim_args", None))
    unused += more
    max_steps, epochs = given.pop("max_steps", -1), given.pop("num_train_epochs", 3.0)
    schedule = SimpleNamespace(
        lr_scheduler_type=given.pop("lr_scheduler_type", "linear"), warmup_steps=given.pop("warmup_steps", 0),
        warmup_ratio=given.pop("warmup_ratio", 0.0), max_steps=max_steps,
    )  # fmt: skip
    scheduler, more = trl.scheduler_settings(schedule)
    out |= optimizer | scheduler | trl.duration(max_steps, epochs)
    if given.pop("use_peft", False):
        out["train"] = "lora"
    else:
        unused += [name for name in list(given) if name.startswith("lora_") and given.pop(name, None) is not None]
    modules = given.get("lora_target_modules")
    if isinstance(modules, list):
        given["lora_target_modules"] = ",".join(map(str, modules))
    if "report_to" in given:
        unused += trl.other_trackers(given["report_to"])
        given["report_to"] = trl.tracker(given["report_to"])
    out = {name: value for name, value in out.items() if name in ours}
    return {**out, **given}, [*unused, *more]


def _mixture(given: Settings) -> str | None:
    """TRL's `datasets:` list as DATA here; like TRL, it is read in place of dataset_name, one after the other.

    None where some of it has no name here: a configuration, a data_dir, a pattern of files, shares of several.
    """
    listed = given.get("datasets")
    if not isinstance(listed, list) or not listed or not all(isinstance(each, dict) for each in listed):
        return None
    if len(listed) > 1 and any(each.get("fraction") is not None for each in listed):
        return None
    parts = [_part_of_mixture(each) for each in listed]
    return None if None in parts else " + ".join(map(str, parts))


def _part_of_mixture(entry: Settings) -> str | None:
    one = {name: value for name, value in entry.items() if value is not None}
    path, split, files = one.pop("path", None), one.pop("split", "train"), one.pop("data_files", None)
    one.pop("columns", None)  # those of a pair: others would be refused by TRL's trainer or not be read
    if one.pop("fraction", 1.0) <= 0 or one or not isinstance(path, str) or not isinstance(split, str):
        return None
    if files is not None:
        names = files if isinstance(files, list) else [files]
        plain = all(isinstance(name, str) and not FILE_PATTERN.search(name) for name in names)
        return " + ".join(names) if path in FILE_KINDS and split == "train" and plain and names else None
    return path if split == "train" or Path(path).exists() else f"{path}:{split}"


def _word(value: Any) -> Any:
    """Of YAML 1.1: yes and no, and so on, as TRL takes them."""
    return WORDS.get(value.lower(), value) if isinstance(value, str) else value


def read_settings(path: Path, known: Iterable[str]) -> tuple[Settings, list[str]]:
    """`settings_in` of the file's values, but for a record alone: names of data and model are not its own."""
    values = read_yaml(path)
    elsewhere = {
        "data", "persona_dir", "heldout", "dataset_test_split", "holdout", "allow_leakage", "on_bad_row", "eos",
        "concept_column", "topics", "prompt_column", "chosen_column", "rejected_column",
        "model", "revision", "dtype", "device", "merge_adapter", "load_in_4bit", "trust_remote_code",
    }  # fmt: skip
    return settings_in(path, {name: value for name, value in values.items() if name not in elsewhere}, known)


def _hint(name: str, ours: set[str]) -> str:
    hint = near(name, sorted(ours))
    return f" ({hint.strip()})" if hint else ""
