"""The options that commands share, each said once, in the record that carries its value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from margincast.errors import InputError
from margincast.recipe.fields import INPUT, OUTPUT, option
from margincast.recipe.recipe import Recipe

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from margincast.models import LoadedModel

Data = Annotated[
    str,
    typer.Argument(
        help="traits | persona:NAME[,NAME...] | persona:k1 ... persona:k16 | persona:all | a .jsonl, .json, .parquet, "
        ".arrow, .csv or .tsv file (also .gz, .zst, .xz, .bz2), a folder of them or of save_to_disk | "
        "owner/name[:split] on the Hugging Face Hub | several of these, as in 'a.jsonl + b.jsonl'"
    ),
]


DTYPES = ("auto", "float32", "bfloat16", "float16")


def same(kind: type[DataclassInstance], name: str) -> Any:
    """The field `name` of another record: the same option, said there."""
    of = next(each for each in fields(kind) if each.name == name)
    return field(default=of.default, metadata=of.metadata)


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """Which model reads the pairs, and where it is."""

    model: str = option(
        "smollm2", "smollm2, a folder of a model or a LoRA adapter, a .gguf file, or a Hub id of either", INPUT
    )
    revision: str | None = option(None, "Hub revision of the model", INPUT)
    dtype: str = option(
        "auto",
        "Weights of the model: {choices}; auto is float32 where that fits well, else the checkpoint's own",
        INPUT,
        choices=lambda: DTYPES,
    )
    device: str = option("auto", "cpu, cuda, cuda:1, mps ...; auto is the first there is of cuda, mps, cpu", INPUT)
    pack_tokens: int | None = option(
        None,
        "Distinct tokens of a packed pass, at most [default: 2048 on a CPU; as many as fit, measured, on a GPU]",
        INPUT,
        least=1,
        setting=False,
    )
    merge_adapter: bool = option(
        False, "Merge the model's LoRA adapter into its weights, so that the reference has it too", INPUT
    )
    load_in_4bit: bool = option(
        False, "Put the weights into 4 bits (bitsandbytes, on a CUDA device): QLoRA, with --train lora", INPUT
    )
    trust_remote_code: bool = option(False, "Run code that comes with a Hub model", INPUT)
    persona_dir: Path | None = option(None, "Folder of persona files", INPUT, environment="MARGINCAST_PERSONA_DIR")
    cache_dir: Path | None = option(
        None,
        "Where the default model and features are kept [default: ~/.cache/margincast]",
        INPUT,
        environment="MARGINCAST_CACHE_DIR",
        setting=False,
    )

    cache_limit: float | None = option(
        None,
        "GiB that the cache may have after this run; what was used longest ago goes first [default: no limit]",
        INPUT,
        environment="MARGINCAST_CACHE_LIMIT",
        setting=False,
        least=0.0,
    )

    @property
    def cache(self) -> Path:
        from margincast.models.place import default_cache_dir

        return self.cache_dir or default_cache_dir()

    def loaded(self) -> LoadedModel:
        """The model. Raises what `load_model` raises."""
        from margincast.models import load_model
        from margincast.passes.plan import set_plan

        loaded = load_model(
            self.model,
            revision=self.revision,
            dtype=self.dtype,
            device=self.device,
            merge_adapter=self.merge_adapter,
            trust_remote_code=self.trust_remote_code,
            cache_dir=self.cache,
            load_in_4bit=self.load_in_4bit,
        )
        set_plan(loaded.model, self.pack_tokens, self.cache)
        return loaded


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """How pairs are read and split."""

    concept_column: str | None = option(None, "Column that groups pairs into concepts", INPUT)
    topics: str = option(
        "auto",
        "Where the data name no concepts: find topics in the prompts, so many or as many as there are (auto, for "
        "responses of many tokens), or none",
        INPUT,
    )
    prompt_column: str | None = option(None, "Column of the prompt, where it has another name", INPUT)
    chosen_column: str | None = option(None, "Column of the preferred response, likewise", INPUT)
    rejected_column: str | None = option(None, "Column of the other response, likewise", INPUT)
    on_bad_row: Literal["fail", "skip"] = option(
        "fail", "Stop at unusable rows (fail), or leave them out (skip)", INPUT, choices=lambda: ("fail", "skip")
    )
    eos: bool | None = option(
        None, "Append the end-of-sequence token as TRL does [default: not when all responses are one token]", INPUT
    )
    holdout: float = option(0.1, "Share of every concept kept for evaluation, where the data are not split", INPUT)
    heldout: str | None = option(None, "Held-out pairs of your own, in any form of DATA", INPUT)
    dataset_test_split: str | None = option(
        None, "Split or file of DATA that is held out, by its name [default: test, where a folder has it]", INPUT
    )
    allow_leakage: bool = option(
        False, "Take held-out pairs whose prompt training pairs have too, and count them", INPUT
    )

    def __post_init__(self) -> None:
        if not 0 < self.holdout < 1:
            raise InputError(f"holdout must be between 0 and 1, got {self.holdout:g}")
        if self.heldout is not None and self.dataset_test_split is not None:
            raise InputError("--heldout and --dataset_test_split both name the held-out pairs; give one of them")


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What of the recipe a command asks for that trains nothing."""

    seed: int = same(Recipe, "seed")
    max_length: int = same(Recipe, "max_length")


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where results go, and what is said on the way."""

    out: Path | None = option(None, "Folder for results [default: runs/<command>-<date>-<hash>]", OUTPUT, setting=False)
    resume: bool = option(True, "Continue an interrupted run of the same settings", OUTPUT, setting=False)
    json: bool = option(False, "Print the summary as JSON and nothing else", OUTPUT, setting=False)
    quiet: bool = option(False, "Print nothing but errors", OUTPUT, setting=False)


@dataclass(frozen=True, kw_only=True)
class CheckedOutput(OutputOptions):
    """Where results go, and which of them are bad enough to fail."""

    fail_if: list[str] | None = option(
        None,
        'Exit with status 3 when this holds, as in "heldout_accuracy<0.6"; may be given several times, and a wrong '
        "name is answered by those that there are",
        OUTPUT,
        setting=False,
    )


def parse_sweep(text: str, kinds: Mapping[str, Callable[[str], Any]], example: str) -> tuple[str, list[Any]]:
    """`name=value,value` as a name of `kinds` and its values, each read by its kind. Raises `InputError` for anything
    else, with `example` to show how."""
    name, _, listed = text.partition("=")
    if name not in kinds:
        raise InputError(f"--sweep {text}: give one of {', '.join(kinds)} and its values, like {example}")
    try:
        values = [kinds[name](value) for value in listed.split(",")]
    except ValueError as error:
        raise InputError(f"--sweep {text}: values of {name} are numbers with commas between, like {example}") from error
    if len(set(values)) < len(values):
        raise InputError(f"--sweep {text}: a value is given twice")
    return name, values
