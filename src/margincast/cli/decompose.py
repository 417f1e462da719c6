"""margincast decompose"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from margincast.cli.inputs import PositionInputs, Reading, read_inputs, with_positions
from margincast.cli.job import Job, open_job
from margincast.cli.memory import MemoryOptions, say_memory
from margincast.cli.options import CheckedOutput, Data, InputOptions, PairOptions
from margincast.cli.signature import Fixed
from margincast.errors import InputError
from margincast.recipe.fields import option
from margincast.recipe.recipe import LORA, Recipe
from margincast.results import Json

WHAT = "What to show"
# Of training the unembedding alone: what only the training of more, or a real run, takes is no option here.
HEAD = Fixed(
    {"train": "head"}, without=(*LORA, "gradient_checkpointing", "bf16", "torch_compile", "record_train", "report_to")
)


@dataclass(frozen=True, kw_only=True)
class DecomposeOptions:
    """Of which pairs, and what becomes of the worst."""

    pair: str | None = option(None, "Id of a pair: what moves the rewards of its tokens", WHAT)
    all: bool = option(False, "Of every pair: will its likelihoods fall?", WHAT)
    export: Path | None = option(
        None, "With --all: a .jsonl file of the training pairs without the worst, for TRL", WHAT
    )
    worst: float = option(0.1, "Share of training pairs that --export drops", WHAT)
    down_weight: float | None = option(None, "Keep the worst, with this `weight`; others have 1", WHAT, least=0.0)

    def __post_init__(self) -> None:
        if not 0 < self.worst < 1:
            raise InputError(f"worst must be between 0 and 1, got {self.worst:g}")
        if (self.pair is None) != self.all:
            raise InputError("give either --pair ID, for one pair, or --all")
        if self.export and (not self.all or self.export.suffix.lower() != ".jsonl"):
            raise InputError(f"--export {self.export}: give it with --all, and a .jsonl file")
        if self.down_weight is not None and not self.export:
            raise InputError("--down_weight belongs to --export")


def decompose(
    data: Data,
    options: DecomposeOptions,
    recipe: Annotated[Recipe, HEAD],
    inputs: InputOptions,
    pairs: PairOptions,
    memory: MemoryOptions,
    output: CheckedOutput,
) -> None:
    """Say which training tokens move a pair's rewards, and by which factor; or whose likelihood will fall, with --all.

    Rates are those of training the unembedding on a frozen backbone, at the start; --all forecasts a whole run of it.

    Example: margincast decompose pairs.jsonl --all --max_steps 20 --export cleaned.jsonl
    """
    job = open_job("decompose", output, options, recipe, inputs, pairs, data=data)
    reading = Reading(data, inputs, pairs, recipe.seed, recipe.max_length)
    read = read_inputs(job, reading)
    if options.pair is not None:
        ids = {each.id for each in read.encoding.pairs}
        if options.pair not in ids:
            raise InputError(f"--pair {options.pair}: there is no such pair in {data}; ids are like {read.train[0].id}")
        job.done(decompose_pair(job, with_positions(job, read), recipe, options.pair))
    else:
        import torch

        job.say_defaults(recipe)
        say_memory(job, read, recipe, torch.float32, memory.memory_limit)
        job.done(rank_displacement(job, with_positions(job, read), recipe, options))


def decompose_pair(job: Job, inputs: PositionInputs, recipe: Recipe, name: str) -> Json:
    """Decompose the rates of one pair's rewards, save the result, print the tables."""
    from margincast.frozen.tokens import decompose as decompose_rates
    from margincast.report import decomposition as shown

    found = decompose_rates(inputs.positions, name, recipe, word=inputs.word)
    summary = job.keep(found, inputs.sections())
    results = summary["results"]
    for side, rows in results["training_tokens"].items():
        rate = results["rates"][side]
        title = f"Training tokens that push the {side} response of {name}, whose reward moves at {rate:.3g}"
        job.table(title, shown.TOKEN_HEADER, shown.token_rows(rows))
    for sentence in shown.read_start(results):
        job.say(sentence)
    job.table("Training pairs that do", shown.PAIR_HEADER, shown.pair_rows(results["training_pairs"]))
    job.say(f"Its text, coloured token by token: {job.out / 'report.html'}")
    return summary


def rank_displacement(job: Job, inputs: PositionInputs, recipe: Recipe, options: DecomposeOptions) -> Json:
    """Forecast every pair's likelihoods, export the others than the worst, save the result, print the tables."""
    from margincast.diagnose import write_without_worst
    from margincast.frozen.tokens import displacements
    from margincast.report import decomposition as shown

    found = displacements(inputs.positions, recipe, word=inputs.word, progress=job.progress)
    everything = inputs.encoding.pairs
    if options.export:
        found = write_without_worst(found, everything, options.export, share=options.worst, weight=options.down_weight)
    summary = job.keep(found, inputs.sections())
    results = summary["results"]
    job.say(f"This is a {found.origin}.")
    title = f"Changes of log pi over {found.steps} steps"
    job.table(title, shown.DISPLACEMENT_HEADER, shown.displacement_rows(results))
    title = "Training pairs that push the falling chosen responses down most, at the start"
    job.table(title, shown.BLAME_HEADER, shown.blame_rows(results["worst_pairs"]))
    job.table("Training tokens that do", shown.BLAME_TOKEN_HEADER, shown.blame_token_rows(results["worst_tokens"]))
    job.say(shown.read_displacement(results))
    if found.exported and options.export:
        done = "left out" if options.down_weight is None else f"given weight {options.down_weight:g}"
        dropped = len(found.exported.worst)
        beside = options.export.with_suffix(".heldout.jsonl").name
        job.say(
            f"{options.export}: the training pairs, {dropped} of {len(inputs.train)} {done}. {beside}: the held-out "
            "pairs, as they were."
        )
    return summary
