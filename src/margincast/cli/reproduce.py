"""margincast reproduce"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from margincast.cli.job import open_job
from margincast.cli.options import InputOptions, OutputOptions
from margincast.cli.reproduction import Plan
from margincast.cli.signature import Fixed
from margincast.errors import InputError
from margincast.recipe.fields import INPUT, option
from margincast.results import Json

if TYPE_CHECKING:
    from margincast.paper.scales import Scale

GRID = "The grid"
SCALES = ("smoke", "cpu", "paper")


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions:
    """Of which size, and which part of the grid."""

    scale: str = option(
        "smoke",
        "smoke: random tiny model, packaged data, seconds; cpu: SmolLM2 on the persona files, hours; paper: any model, "
        "over several GPUs",
        choices=lambda: SCALES,
    )
    model: str | None = option(
        None, "tiny, smollm2, a local folder or a Hub id [default: the scale's]", INPUT, setting=False
    )
    double_norm: bool = option(False, "Figures 1, 3 also with the last norm applied twice, as in the authors' scripts")
    K: str | None = option(None, "Only these numbers of personas, like 1,4 [default: all]", GRID)
    seeds: str | None = option(None, "Only these seeds, like 1234,1235 [default: the scale's]", GRID)
    max_steps: int | None = option(None, "Optimizer steps [default: the scale's]", GRID, least=1)
    dry_run: bool = option(False, "Say what would run, with its memory and time; write nothing", setting=False)


def reproduce(
    figure: Annotated[
        str,
        typer.Argument(help="fig1 ... fig5 or all: which of the paper's figures; fig2, fig4, fig5 share their runs"),
    ],
    options: ReproduceOptions,
    inputs: Annotated[InputOptions, Fixed({}, without=("model",))],
    output: OutputOptions,
) -> None:
    """The paper's figures on this machine, with a verdict for every claim of the paper.

    A run that was interrupted goes on where it stopped: training at its last checkpoint, the rest run by run. The same
    line started a second time beside the first shares its work.

    Example: margincast reproduce all --scale smoke
    """
    from margincast.paper.scales import FIGURES

    if figure not in (*FIGURES, "all"):
        raise InputError(f"figure {figure!r} is not known; use one of: {', '.join(FIGURES)}, all")
    scale = narrowed(options.scale, options.K, options.seeds, options.max_steps)
    model = options.model or scale.model
    if model is None:
        raise InputError("--scale paper needs --model, the Hub id or the folder of a model")
    figures = [name for name in FIGURES if figure in (name, "all")]
    inputs = replace(inputs, model=model)
    job = open_job("reproduce", output, options, inputs, figure=figure)
    inputs = replace(inputs, persona_dir=personas_folder(options.scale, inputs.persona_dir))
    plan = Plan(job, options, scale, figures, inputs)
    if options.dry_run:
        from margincast.cli.estimate import estimate

        estimate(plan, figure)
        return
    plan.carry_out()


def narrowed(name: str, K: str | None, seeds: str | None, max_steps: int | None) -> Scale:
    """A scale with the numbers that options give in place of its own. Raises `InputError` for what is not a number."""
    from margincast.paper.scales import SCALES

    scale = SCALES[name]
    changes: Json = {} if max_steps is None else {"max_steps": max_steps}
    for flag, text in (("K", K), ("seeds", seeds)):
        if text is not None:
            try:
                changes[flag] = tuple(dict.fromkeys(int(value) for value in text.split(",")))
            except ValueError as error:
                raise InputError(f"--{flag} {text}: give whole numbers with commas between, like 1,2") from error
    unknown = [k for k in changes.get("K", ()) if k not in scale.K]
    if unknown:
        raise InputError(f"--K {unknown[0]}: scale {name} has lists of {', '.join(map(str, scale.K))} personas")
    if any(not 0 <= seed < 2**32 for seed in changes.get("seeds", ())):
        raise InputError(f"--seeds {seeds}: seeds are from 0 to {2**32 - 1}")
    return replace(scale, **changes)


def personas_folder(scale: str, persona_dir: Path | None) -> Path | None:
    """Where the persona files are: at smoke scale the packaged data, which have the same shape."""
    from importlib import resources

    if scale != "smoke":
        return persona_dir
    return Path(str(resources.files("margincast.data").joinpath("traits")))
