"""margincast decompose"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from margincast.cli import options as opt
from margincast.cli.forecast import forecast_settings, token_forecast
from margincast.cli.inputs import PositionInputs, check_settings, read_inputs, with_positions
from margincast.cli.job import Job, open_job
from margincast.errors import InputError

WHAT = "What to show"
SHOWN = 8  # training tokens and pairs of each direction


def decompose(
    data: opt.Data,
    pair: Annotated[
        str | None,
        typer.Option("--pair", help="Id of a pair: what moves the rewards of its tokens", rich_help_panel=WHAT),
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Of every pair: will its likelihoods fall?", rich_help_panel=WHAT)
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export", help="With --all: a .jsonl file of the pairs without the worst, for TRL", rich_help_panel=WHAT
        ),
    ] = None,
    worst: Annotated[
        float,
        typer.Option(
            "--worst", callback=opt.share, help="Share of training pairs that --export drops", rich_help_panel=WHAT
        ),
    ] = 0.1,
    down_weight: Annotated[
        float | None,
        typer.Option(
            "--down_weight", min=0.0, help="Keep the worst, with this `weight`; others have 1", rich_help_panel=WHAT
        ),
    ] = None,
    model: opt.Model = "smollm2",
    revision: opt.Revision = None,
    dtype: opt.DtypeOption = opt.Dtype.float32,
    device: opt.Device = "cpu",
    trust_remote_code: opt.TrustRemoteCode = False,
    persona_dir: opt.PersonaDir = None,
    cache_dir: opt.CacheDir = None,
    concept_column: opt.ConceptColumn = None,
    on_bad_row: opt.OnBadRowOption = opt.OnBadRow.fail,
    eos: opt.Eos = None,
    max_length: opt.MaxLength = 1024,
    holdout: opt.Holdout = 0.1,
    seed: opt.Seed = 1234,
    beta: opt.Beta = 0.01,
    loss_type: opt.LossType = "sigmoid",
    label_smoothing: opt.LabelSmoothing = None,
    discopop_tau: opt.DiscopopTau = None,
    simpo_gamma: opt.SimpoGamma = None,
    optimizer: opt.OptimizerOption = opt.Optim.adamw,
    learning_rate: opt.LearningRate = 1e-5,
    weight_decay: opt.WeightDecay = 0.0,
    momentum: opt.Momentum = 0.0,
    nesterov: opt.Nesterov = False,
    adam_beta1: opt.AdamBeta1 = 0.9,
    adam_beta2: opt.AdamBeta2 = 0.999,
    adam_epsilon: opt.AdamEpsilon = 1e-8,
    max_steps: opt.MaxSteps = 60,
    per_device_train_batch_size: opt.BatchSize = 32,
    gradient_accumulation_steps: opt.Accumulation = 1,
    lr_scheduler_type: opt.Scheduler = opt.Schedule.constant,
    warmup_steps: opt.WarmupSteps = 0,
    max_grad_norm: opt.MaxGradNorm = 1.0,
    eval_steps: opt.EvalSteps = 10,
    out: opt.Out = None,
    resume: opt.Resume = True,
    json_: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Say which training tokens move a pair's rewards, and by which factor; or whose likelihood will fall, with --all.

    Rates are those of training the unembedding on a frozen backbone, at the start; --all forecasts a whole run of it.

    Example: margincast decompose pairs.jsonl --all --max_steps 20 --export cleaned.jsonl
    """
    parameters = locals()
    parameters["all"] = parameters.pop("all_")
    job = open_job("decompose", parameters)
    check_settings(job.config)
    if (pair is None) != all_:
        raise InputError("give either --pair ID, for one pair, or --all")
    if export and (not all_ or export.suffix.lower() != ".jsonl"):
        raise InputError(f"--export {export}: give it with --all, and a .jsonl file")
    if down_weight is not None and not export:
        raise InputError("--down_weight belongs to --export")
    inputs = read_inputs(job, persona_dir, cache_dir)
    if pair is not None:
        ids = {each.id for each in inputs.encoding.pairs}
        if pair not in ids:
            raise InputError(f"--pair {pair}: there is no such pair in {data}; ids are like {inputs.train[0].id}")
        job.done(decompose_pair(job, with_positions(job, inputs, cache_dir), pair))
    else:
        job.done(rank_displacement(job, with_positions(job, inputs, cache_dir), export))


def decompose_pair(job: Job, inputs: PositionInputs, name: str) -> dict[str, Any]:
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
    beta = job.config["beta"]
    weights = pull(train, opt.loss_of(job.config), beta, train.hidden.new_zeros(train.pairs))
    parts = contributions(train, target, unembedding.to(train.hidden), weights, beta, bias)

    def word(token: int) -> str:
        return str(inputs.loaded.tokenizer.decode([token]))

    chosen, rejected = parts.by_position.total.sum(0).tolist()
    results: dict[str, Any] = {
        "pair": name,
        "split": split,
        "rates": {"chosen": chosen, "rejected": rejected, "margin": chosen - rejected},
        "tokens": target_tokens(target, parts, word),
        "training_tokens": training_tokens(train, parts, word, SHOWN),
        "training_pairs": training_pairs(train, inputs.train, parts, word, SHOWN),
        "seconds": job.seconds,
    }
    save_figure(shown.pushes(results["training_tokens"]), job.out / "figures", "pushes")
    summary = write_summary(job.out, "decompose", job.config, results, **inputs.sections(job.config))
    write_page(job.out)
    for side, rows in results["training_tokens"].items():
        rate = results["rates"][side]
        title = f"Training tokens that push the {side} response of {name}, whose reward moves at {rate:.3g}"
        job.table(title, shown.TOKEN_HEADER, shown.token_rows(rows))
    job.table("Training pairs that do", shown.PAIR_HEADER, shown.pair_rows(results["training_pairs"]))
    job.say(f"Its text, coloured token by token: {job.out / 'report.html'}")
    return summary


def rank_displacement(job: Job, inputs: PositionInputs, export: Path | None) -> dict[str, Any]:
    """Forecast every pair's likelihoods, say who pushes the falling ones down, export the others, print the tables."""
    import torch

    from margincast.diagnose import write_pairs
    from margincast.frozen.tokens import displacement, head_of
    from margincast.frozen.tokens.displacement import displacement_rows, split_summary, to_drop, worst_tokens
    from margincast.report import decomposition as shown
    from margincast.report.figures import save_figure
    from margincast.report.sections import write_page
    from margincast.runs.save import peak_memory_bytes, write_summary
    from margincast.runs.store import write_jsonl

    config = job.config
    steps = config["max_steps"]
    settings = {**forecast_settings(config), "eval_steps": steps}
    # float32: three times as fast, and the changes it is after are far above its rounding.
    forecast = token_forecast(job, inputs, **settings, dtype=torch.float32)
    unembedding, bias = head_of(inputs.loaded)
    train, heldout = inputs.positions
    both = displacement(train, heldout, forecast, unembedding.to(train.hidden), opt.loss_of(config), bias)
    drop = to_drop(both[0], config["worst"]) if export else []
    rows = displacement_rows((inputs.train, inputs.heldout), both)
    order = sorted(rows, key=lambda row: row["forecast_delta_logp_chosen"])
    write_jsonl(job.out / "displacement.jsonl", order)

    def word(token: int) -> str:
        return str(inputs.loaded.tokenizer.decode([token]))

    blamed = sorted((row for row in rows if row["split"] == "train"), key=lambda row: row["blame"])
    results = {
        "origin": forecast.origin,
        "steps": steps,
        "splits": {name: split_summary(part) for name, part in zip(("train", "heldout"), both, strict=True)},
        "worst_pairs": blamed[:SHOWN],
        "worst_tokens": worst_tokens(train, both[0], word, SHOWN),
        "exported": {"file": str(export), "worst": [inputs.train[k].id for k in drop]} if export else None,
        "seconds": job.seconds,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    save_figure(shown.displaced(rows), job.out / "figures", "displacement")
    summary = write_summary(job.out, "decompose", config, results, **inputs.sections(config))
    write_page(job.out)
    job.say(f"This is a {forecast.origin}.")
    job.table(f"Changes of log pi over {steps} steps", shown.DISPLACEMENT_HEADER, shown.displacement_rows(results))
    title = "Training pairs that push the falling chosen responses down most, at the start"
    job.table(title, shown.BLAME_HEADER, shown.blame_rows(results["worst_pairs"]))
    job.table("Training tokens that do", shown.BLAME_TOKEN_HEADER, shown.blame_token_rows(results["worst_tokens"]))
    job.say(shown.read_displacement(results))
    if export:
        dropped, weight, everything = set(results["exported"]["worst"]), config["down_weight"], inputs.encoding.pairs
        if weight is None:
            write_pairs(export, [pair for pair in everything if pair.id not in dropped])
        else:
            write_pairs(export, everything, [weight if pair.id in dropped else 1.0 for pair in everything])
        what = "left out" if config["down_weight"] is None else f"given weight {config['down_weight']:g}"
        job.say(f"{export}: {len(drop)} training pairs {what}, of {len(inputs.encoding.pairs)} pairs")
    return summary
