"""margincast decompose"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from margincast.cli.forecast import token_forecast
from margincast.cli.inputs import PositionInputs, Reading, read_inputs, with_positions
from margincast.cli.job import Job, open_job
from margincast.cli.options import CheckedOutput, Data, InputOptions, PairOptions
from margincast.cli.signature import Fixed
from margincast.errors import InputError
from margincast.recipe.fields import option
from margincast.recipe.recipe import LORA, Recipe
from margincast.records import Json

WHAT = "What to show"
SHOWN = 8  # training tokens and pairs of each direction
# Of training the unembedding alone: what only the training of more, or a real run, takes is no option here.
HEAD = Fixed({"train": "head"}, without=(*LORA, "gradient_checkpointing", "bf16", "record_train", "report_to"))


@dataclass(frozen=True, kw_only=True)
class DecomposeOptions:
    """Of which pairs, and what becomes of the worst."""

    pair: str | None = option(None, "Id of a pair: what moves the rewards of its tokens", WHAT)
    all: bool = option(False, "Of every pair: will its likelihoods fall?", WHAT)
    export: Path | None = option(None, "With --all: a .jsonl file of the pairs without the worst, for TRL", WHAT)
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
    output: CheckedOutput,
) -> None:
    """Say which training tokens move a pair's rewards, and by which factor; or whose likelihood will fall, with --all.

    Rates are those of training the unembedding on a frozen backbone, at the start; --all forecasts a whole run of it.

    Example: margincast decompose pairs.jsonl --all --max_steps 20 --export cleaned.jsonl
    """
    job = open_job("decompose", output, options, recipe, inputs, pairs, data=data)
    reading = Reading(data, inputs, pairs, recipe.seed, recipe.max_length)
    read = read_inputs(job, reading, recipe.loss)
    if options.pair is not None:
        ids = {each.id for each in read.encoding.pairs}
        if options.pair not in ids:
            raise InputError(f"--pair {options.pair}: there is no such pair in {data}; ids are like {read.train[0].id}")
        job.done(decompose_pair(job, with_positions(job, read), recipe, options.pair))
    else:
        job.say_defaults(recipe)
        job.done(rank_displacement(job, with_positions(job, read), recipe, options))


def decompose_pair(job: Job, inputs: PositionInputs, recipe: Recipe, name: str) -> Json:
    """Decompose the rates of one pair's rewards, save figure, page and summary, print the tables."""
    import torch

    from margincast.frozen.tokens import contributions, head_of, pull
    from margincast.frozen.tokens.pushes import target_tokens, training_pairs, training_tokens
    from margincast.report import decomposition as shown
    from margincast.report.figures import save_figure
    from margincast.report.sections import write_page
    from margincast.runs.save import write_summary

    train, heldout = inputs.positions
    unembedding, bias = head_of(inputs.loaded)
    split, pairs, features = next(
        (split, pairs, features)
        for split, pairs, features in (("train", inputs.train, train), ("heldout", inputs.heldout, heldout))
        if any(pair.id == name for pair in pairs)
    )
    index = next(k for k, pair in enumerate(pairs) if pair.id == name)
    target = features.select(torch.tensor([index]))
    beta = recipe.beta
    weights = pull(train, recipe.loss, beta, train.hidden.new_zeros(train.pairs))
    parts = contributions(train, target, unembedding.to(train.hidden), weights, beta, bias)

    def word(token: int) -> str:
        return str(inputs.loaded.tokenizer.decode([token]))

    chosen, rejected = parts.by_position.total.sum(0).tolist()
    results: Json = {
        "pair": name,
        "split": split,
        "rates": {"chosen": chosen, "rejected": rejected, "margin": chosen - rejected},
        "tokens": target_tokens(target, parts, word),
        "training_tokens": training_tokens(train, parts, word, SHOWN),
        "training_pairs": training_pairs(train, inputs.train, parts, word, SHOWN),
        "seconds": job.seconds,
    }
    save_figure(shown.pushes(results["training_tokens"]), job.out / "figures", "pushes")
    summary = write_summary(job.out, "decompose", job.config, results, **inputs.sections())
    write_page(job.out)
    for side, rows in results["training_tokens"].items():
        rate = results["rates"][side]
        title = f"Training tokens that push the {side} response of {name}, whose reward moves at {rate:.3g}"
        job.table(title, shown.TOKEN_HEADER, shown.token_rows(rows))
    job.table("Training pairs that do", shown.PAIR_HEADER, shown.pair_rows(results["training_pairs"]))
    job.say(f"Its text, coloured token by token: {job.out / 'report.html'}")
    return summary


def rank_displacement(job: Job, inputs: PositionInputs, recipe: Recipe, options: DecomposeOptions) -> Json:
    """Forecast every pair's likelihoods, say who pushes the falling ones down, export the others, print the tables."""
    import torch

    from margincast.frozen.tokens import displacement, head_of
    from margincast.frozen.tokens.displacement import displacement_rows, split_summary, to_drop, worst_tokens
    from margincast.report import decomposition as shown
    from margincast.report.figures import save_figure
    from margincast.report.sections import write_page
    from margincast.runs.save import peak_memory_bytes, write_summary
    from margincast.runs.store import write_jsonl

    recipe = recipe.for_pairs(len(inputs.train))
    # float32: three times as fast, and the changes it is after are far above its rounding.
    forecast = token_forecast(job, inputs, replace(recipe, eval_steps=recipe.steps), torch.float32)
    unembedding, bias = head_of(inputs.loaded)
    train, heldout = inputs.positions
    both = displacement(train, heldout, forecast, unembedding.to(train.hidden), recipe.loss, bias)
    drop = to_drop(both[0], options.worst) if options.export else []
    rows = displacement_rows((inputs.train, inputs.heldout), both)
    order = sorted(rows, key=lambda row: row["forecast_delta_logp_chosen"])
    write_jsonl(job.out / "displacement.jsonl", order)

    def word(token: int) -> str:
        return str(inputs.loaded.tokenizer.decode([token]))

    blamed = sorted((row for row in rows if row["split"] == "train"), key=lambda row: row["blame"])
    dropped = [inputs.train[k].id for k in drop]
    results: Json = {
        "origin": forecast.origin,
        "steps": recipe.steps,
        "splits": {name: split_summary(part) for name, part in zip(("train", "heldout"), both, strict=True)},
        "worst_pairs": blamed[:SHOWN],
        "worst_tokens": worst_tokens(train, both[0], word, SHOWN),
        "exported": {"file": str(options.export), "worst": dropped} if options.export else None,
        "seconds": job.seconds,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    save_figure(shown.displaced(rows), job.out / "figures", "displacement")
    summary = write_summary(job.out, "decompose", job.config, results, **inputs.sections())
    write_page(job.out)
    job.say(f"This is a {forecast.origin}.")
    title = f"Changes of log pi over {recipe.steps} steps"
    job.table(title, shown.DISPLACEMENT_HEADER, shown.displacement_rows(results))
    title = "Training pairs that push the falling chosen responses down most, at the start"
    job.table(title, shown.BLAME_HEADER, shown.blame_rows(results["worst_pairs"]))
    job.table("Training tokens that do", shown.BLAME_TOKEN_HEADER, shown.blame_token_rows(results["worst_tokens"]))
    job.say(shown.read_displacement(results))
    if options.export:
        job.say(export_pairs(options.export, inputs, dropped, options.down_weight))
    return summary


def export_pairs(path: Path, inputs: PositionInputs, dropped: list[str], weight: float | None) -> str:
    """Write the pairs without those `dropped`, or with `weight` for them; what was done, in words."""
    from margincast.diagnose import write_pairs

    everything = inputs.encoding.pairs
    if weight is None:
        write_pairs(path, [pair for pair in everything if pair.id not in dropped])
        what = "left out"
    else:
        write_pairs(path, everything, [weight if pair.id in dropped else 1.0 for pair in everything])
        what = f"given weight {weight:g}"
    return f"{path}: {len(dropped)} training pairs {what}, of {len(everything)} pairs"
