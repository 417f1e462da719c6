"""margincast reproduce"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from margincast.cli import options as opt
from margincast.cli.job import open_job
from margincast.cli.reproduction import Plan
from margincast.errors import InputError

if TYPE_CHECKING:
    from margincast.paper.scales import Scale

GRID = "The grid"


class Figure(StrEnum):
    fig1 = "fig1"
    fig2 = "fig2"
    fig3 = "fig3"
    fig4 = "fig4"
    fig5 = "fig5"
    all = "all"


class Size(StrEnum):
    smoke = "smoke"
    cpu = "cpu"
    paper = "paper"


def reproduce(
    figure: Annotated[Figure, typer.Argument(help="Which of the paper's figures; fig2, fig4, fig5 share their runs")],
    scale: Annotated[
        Size,
        typer.Option(
            "--scale",
            help="smoke: random tiny model, packaged data, seconds; cpu: SmolLM2 on the persona files, hours; paper: "
            "any model, over several GPUs",
        ),
    ] = Size.smoke,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="tiny, smollm2, a local folder or a Hub id [default: the scale's]",
            rich_help_panel=opt.INPUT,
        ),
    ] = None,
    revision: opt.Revision = None,
    dtype: opt.DtypeOption = opt.Dtype.float32,
    device: opt.Device = "cpu",
    trust_remote_code: opt.TrustRemoteCode = False,
    persona_dir: opt.PersonaDir = None,
    cache_dir: opt.CacheDir = None,
    double_norm: Annotated[
        bool,
        typer.Option(
            "--double_norm", help="Figures 1, 3 also with the last norm applied twice, as in the authors' scripts"
        ),
    ] = False,
    K: Annotated[
        str | None,
        typer.Option("--K", help="Only these numbers of personas, like 1,4 [default: all]", rich_help_panel=GRID),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", help="Only these seeds, like 1234,1235 [default: the scale's]", rich_help_panel=GRID),
    ] = None,
    max_steps: Annotated[
        int | None,
        typer.Option("--max_steps", min=1, help="Optimizer steps [default: the scale's]", rich_help_panel=GRID),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry_run", help="Say what would run, with its memory and time; write nothing")
    ] = False,
    out: opt.Out = None,
    resume: opt.Resume = True,
    json_: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """The paper's figures on this machine, with a verdict for every claim of the paper.

    A run that was interrupted goes on where it stopped: training at its last checkpoint, the rest run by run. The same
    line started a second time beside the first shares its work.

    Example: margincast reproduce all --scale smoke
    """
    from margincast.paper.scales import FIGURES

    parameters = {name: value for name, value in locals().items() if name not in ("FIGURES", "dry_run")}
    scale_ = narrowed(scale.value, K, seeds, max_steps)
    chosen_model = model or scale_.model
    if chosen_model is None:
        raise InputError("--scale paper needs --model, the Hub id or the folder of a model")
    figures = [name for name in FIGURES if figure.value in (name, "all")]
    job = open_job("reproduce", {**parameters, "model": chosen_model})
    plan = Plan(job, scale_, figures, personas_folder(scale.value, persona_dir), cache_dir)
    if dry_run:
        from margincast.cli.estimate import estimate

        estimate(plan)
        return
    plan.carry_out()


def narrowed(name: str, K: str | None, seeds: str | None, max_steps: int | None) -> Scale:
    """A scale with the numbers that options give in place of its own. Raises `InputError` for what is not a number."""
    from margincast.paper.scales import SCALES

    scale = SCALES[name]
    changes: dict[str, Any] = {} if max_steps is None else {"max_steps": max_steps}
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
