"""margincast select"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from margincast.cli.decompose import HEAD
from margincast.cli.inputs import Inputs, Reading, read_inputs, with_features, with_positions
from margincast.cli.job import Job, open_job
from margincast.cli.memory import MemoryOptions, say_memory
from margincast.cli.options import Data, InputOptions, OutputOptions, PairOptions
from margincast.errors import InputError
from margincast.recipe.fields import option
from margincast.recipe.recipe import Recipe
from margincast.results import Json

if TYPE_CHECKING:
    from margincast.features.positions import Positions
    from margincast.records import Features

WHICH = "Which pairs"
ALL = "all"
COLUMNS = {"concept_column", "prompt_column", "chosen_column", "rejected_column"}


def rule_names() -> tuple[str, ...]:
    from margincast.registry import Registry

    return Registry("rule", "margincast.selection.rules", "margincast.rules").names


@dataclass(frozen=True, kw_only=True)
class SelectOptions:
    """How many pairs, by which rules, for what."""

    keep: str = option("0.5", "Training pairs to keep: a share with a point, as 0.5, or a number of them", WHICH)
    rules: str = option(
        ALL,
        "all, or some with commas between, a+b for the mean rank of two: {choices}. Of one alone its pairs are written "
        "whatever the forecast says",
        WHICH,
        choices=rule_names,
        open=True,
    )
    for_: str = option(ALL, "What to be good at: all, a held-out concept, or a file of held-out pairs", WHICH)
    curve: bool = option(False, "Also at 1/8, 1/4 and 1/2 of the pairs: what are more worth? Some 4 x as long", WHICH)

    def __post_init__(self) -> None:
        _ = self.amount, self.names  # refuse what is none before any work

    @property
    def amount(self) -> float | int:
        """As `select` takes it: an int is a number of pairs, a float a share."""
        text = self.keep.strip()
        try:
            amount = int(text) if text.lstrip("+-").isdigit() else float(text)
        except ValueError as error:
            raise InputError(f"--keep {self.keep}: give a share with a point, as 0.5, or a number of pairs") from error
        if not math.isfinite(amount) or amount <= 0 or (isinstance(amount, float) and amount > 1):
            what = "a share lies above 0 and is at most 1.0" if isinstance(amount, float) else "keep at least 1 pair"
            raise InputError(f"--keep {self.keep}: {what}; for a number of pairs give it without a point")
        return amount

    @property
    def names(self) -> list[str] | None:
        names = [name.strip().replace("-", "_") for name in self.rules.split(",")]
        if names == [ALL]:
            return None
        if not all(names):
            raise InputError(f"--rules {self.rules}: a name is empty; give all, or names with commas between")
        return names


def select(
    data: Data,
    options: SelectOptions,
    recipe: Annotated[Recipe, HEAD],
    inputs: InputOptions,
    pairs: PairOptions,
    memory: MemoryOptions,
    output: OutputOptions,
) -> None:
    """Say which part of the pairs to train on: rules side by side, each judged by the forecast of the run on its pairs.

    Forecasts are of training the unembedding on a frozen backbone, and exact for that. The chosen pairs are written as
    they came, for any trainer.

    Example: margincast select pairs.jsonl --keep 0.5 --learning_rate 1e-4
    """
    if options.names:
        from margincast.selection.rules import rule_of

        for name in options.names:
            rule_of(name)
    target, pairs = _target(options.for_, pairs)
    job = open_job("select", output, options, recipe, inputs, pairs, data=data)
    job.say_defaults(recipe)
    read = read_inputs(job, Reading(data, inputs, pairs, recipe.seed, recipe.max_length))
    if target != ALL and target not in read.heldout.concepts:
        raise InputError(
            f"--for {target}: no file, and no held-out concept; there are {', '.join(read.heldout.concepts)}"
        )
    if isinstance(options.amount, int) and options.amount > len(read.train):
        raise InputError(f"--keep {options.amount}: there are {len(read.train)} training pairs; keep at most so many")
    features: Features | Positions
    if read.encoding.single_token:
        features = with_features(job, read).features
    else:
        from margincast.frozen.tokens.forecast import default_dtype

        say_memory(job, read, recipe, default_dtype(recipe), memory.memory_limit)
        features = with_positions(job, read).positions
    job.done(run_selection(job, read, features, recipe, replace(options, for_=target)))


def _target(asked: str, pairs: PairOptions) -> tuple[str, PairOptions]:
    """What is judged, and with a file its pairs as the held-out ones."""
    if asked == ALL or not Path(asked).exists():
        return asked, pairs
    if pairs.heldout is not None or pairs.dataset_test_split is not None:
        raise InputError(f"--for {asked} and --heldout or --dataset_test_split both name held-out pairs; give one")
    return ALL, replace(pairs, heldout=asked)


def run_selection(
    job: Job, inputs: Inputs, features: Features | Positions, recipe: Recipe, options: SelectOptions
) -> Json:
    """Choose, save the result, print its tables and what to type next."""
    from margincast.report import selection as shown
    from margincast.selection import select as choose

    found = choose(
        features,
        recipe,
        keep=options.amount,
        rules=options.names,
        target=options.for_,
        curve=options.curve,
        say=job.say if not inputs.encoding.single_token else None,  # there a forecast takes minutes
    )
    summary = job.keep(found, inputs.sections())
    results = summary["results"]
    title = f"{results['size']} of {results['pairs']} training pairs by each rule; * is picked"
    job.table(title, shown.RULE_HEADER, shown.rule_rows(results))
    if results["budget"]:
        job.table(
            "Held-out accuracy by number of pairs",
            shown.curve_header(results["budget"]),
            shown.curve_rows(results["budget"]),
        )
        job.table("What half of a concept's pairs adds", shown.HALF_HEADER, shown.half_rows(results["budget"]))
    for text in results["advice"]:
        job.say(text)
    job.say(f"Next: {next_command(job, inputs, results)}")
    return summary


def next_command(job: Job, inputs: Inputs, results: Json) -> str:
    """The training run on the chosen pairs, with the settings that are not defaults."""
    chosen = job.out / results["chosen"]
    words = ["margincast", "train", str(chosen), "--train", "head"]
    given = job.config.get("heldout")
    if given is not None:
        words += ["--heldout", str(given)]
    elif results["heldout"] is not None:
        words += ["--heldout", str(job.out / results["heldout"])]
    defaults = {**_defaults(Recipe), **_defaults(InputOptions), **_defaults(PairOptions)}
    left_out = {"train", "heldout", "dataset_test_split", "max_steps", "topics"}
    if not results["as_it_came"]:
        left_out |= COLUMNS
        words += ["--concept_column", "concept"]
    for name, default in defaults.items():
        value = job.config.get(name)
        if name in left_out or value == default or value is None:
            continue
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    if job.config.get("num_train_epochs") is None and job.config.get("max_steps") is not None:
        words += ["--max_steps", str(job.config["max_steps"])]
    return shlex.join(words)


def _defaults(kind: type) -> Json:
    from dataclasses import fields

    return {each.name: each.default for each in fields(kind)}
