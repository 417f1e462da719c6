"""What `margincast reproduce --dry_run` says: every run's memory and time, and how to launch it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from margincast.paper.cost import GIB, Cost, ModelSize, Workload, cost, pass_seconds
from margincast.results import Json

if TYPE_CHECKING:
    from margincast.cli.options import InputOptions
    from margincast.cli.reproduction import Plan

HEADER = ("run", "runs", "tokens a step", "GiB a process", "states", "activations", "hours each", "hours")
LAUNCH = "accelerate launch --config_file examples/paper/fsdp.yaml"


def estimate(plan: Plan, figure: str) -> None:
    """Print the estimates of `plan`; nothing is written, and of the model its configuration is read alone."""
    job = plan.job
    from margincast.models.device import resolve_device

    size, tokenizer = model_size(plan.inputs)
    device = "cpu" if resolve_device(plan.inputs.device) == "cpu" else "gpu"
    rows: list[list[str]] = []
    listed: list[Json] = []
    for weights in plan.scale.trained:
        for k in plan.scale.K if plan.specs else ():
            work = workload(plan, k, weights, tokens_per_pair(plan, k, tokenizer))
            found = cost(size, work, device)
            listed.append({"K": k, **asdict(work), **asdict(found), "memory": found.memory})
            rows.append(_row(f"{weights}, K={k}", len(plan.scale.seeds), work, found))
    if job.json:
        print(json.dumps({"model": asdict(size), "runs": listed}, indent=2))
        return
    processes = plan.scale.processes
    job.say(plan.setting())
    job.say(
        f"{size.parameters:,} parameters in {size.layers} layers of width {size.width}; {processes} "
        f"process{'es' if processes > 1 else ''} on {device}. Formulae and assumed speed: margincast/paper/cost.py."
    )
    job.table("Estimates", HEADER, rows)
    training = sum(r["seconds"] for r in listed) * len(plan.scale.seeds)
    reading = sum(pass_seconds(size, tokens, device) for tokens in read_tokens(plan, tokenizer))
    job.say(f"All training: {training / 3600:.1f} hours. Features and embeddings: {reading / 3600:.1f} hours.")
    words = f"margincast reproduce {figure} --scale {plan.options.scale} --model {plan.inputs.model}"
    job.say(f"Start it: {f'{LAUNCH} -m {words} --device cuda' if processes > 1 else words} --out {job.out}")


def model_size(inputs: InputOptions) -> tuple[ModelSize, Any]:
    """Counted on a model without storage. Raises `InputError` or `StatedFailure` for one that cannot be found."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from margincast.errors import StatedFailure
    from margincast.models.load import first_line
    from margincast.models.place import fetching, locate

    options = {"revision": inputs.revision, "trust_remote_code": inputs.trust_remote_code}
    place = locate(inputs.model)
    with fetching(place):
        try:
            described = AutoConfig.from_pretrained(place.base, **options)
            tokenizer = AutoTokenizer.from_pretrained(place.base, **options)
        except (OSError, ValueError) as error:
            raise StatedFailure(f"model {inputs.model!r} cannot be found: {first_line(error)}") from error
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(described)  # type: ignore[no-untyped-call]
    described = described.get_text_config()
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        head=model.get_output_embeddings().weight.numel(),
        layers=described.num_hidden_layers,
        width=described.hidden_size,
    ), tokenizer


def tokens_per_pair(plan: Plan, k: int, tokenizer: Any) -> tuple[float, int]:
    """Tokens that a pass reads for a pair of the K personas, on average, and how many pairs there are."""
    from margincast.data import load_pairs
    from margincast.passes.packing import distinct_tokens
    from margincast.passes.tokenize import encode

    pairs = load_pairs(plan.data(k), persona_dir=plan.inputs.persona_dir)
    rows = encode(pairs.spread(50 * k), tokenizer).rows
    return sum(distinct_tokens(row.inputs) for row in rows) / len(rows), len(pairs)


def read_tokens(plan: Plan, tokenizer: Any) -> Iterator[float]:
    """Tokens of every extraction: the pairs of each K, which all seeds share, and those of Figures 1 and 3."""
    from margincast.paper.embeddings import INPUTS
    from margincast.passes.packing import distinct_tokens
    from margincast.passes.tokenize import encode

    for k in plan.scale.K if plan.specs else ():
        mean, pairs = tokens_per_pair(plan, k, tokenizer)
        yield mean * pairs
    for figure in plan.figures:
        if figure in plan.scale.statements:
            for shown in INPUTS:
                rows = encode(plan.shown(figure, shown), tokenizer).rows
                yield sum(distinct_tokens(row.inputs) for row in rows)


def workload(plan: Plan, k: int, weights: str, tokens: tuple[float, int]) -> Workload:
    scale = plan.scale
    mean, pairs = tokens
    return Workload(
        weights=weights,
        steps=scale.max_steps,
        batch_tokens=mean * scale.per_device_train_batch_size,
        recorded_tokens=mean * (0.1 * pairs + scale.record_train * k),
        evaluations=2 + (scale.max_steps - 1) // scale.eval_steps,
        processes=scale.processes,
        bf16=scale.bf16 and weights == "all",
        checkpointing=scale.gradient_checkpointing and weights == "all",
    )


def _row(name: str, seeds: int, work: Workload, found: Cost) -> list[str]:
    hours = found.seconds / 3600
    gib = [f"{part / GIB:.2f}" for part in (found.memory, found.states, found.activations)]
    return [name, str(seeds), f"{work.batch_tokens * work.processes:.0f}", *gib, f"{hours:.3f}", f"{hours * seeds:.2f}"]
