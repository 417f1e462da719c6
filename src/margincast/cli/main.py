"""The command line: `margincast COMMAND`. Parses, calls one function, says what went wrong in one line."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from margincast.cli.conditions import ConditionHolds
from margincast.cli.launch import first, launched
from margincast.cli.signature import call, parameters_of, parts_of
from margincast.errors import InputError, StatedFailure
from margincast.processes import leave
from margincast.recipe.fields import Settings
from margincast.recipe.recipe import LORA, Recipe
from margincast.shown import visible
from margincast.version import VERSION

# Of each, one option; where a flag gives it, what a file says of the other is nothing.
EXCLUSIVE = (("max_steps", "num_train_epochs"), ("heldout", "dataset_test_split"), ("backbone", "train"))
SPEAKING = 20.0  # seconds that the first of several processes has to say what is wrong


class _Interrupted(Exception):  # noqa: N818 (a person's wish)
    """KeyboardInterrupt under a name that typer lets through."""


def _normalise(name: str) -> str:
    """Hyphens and underscores are the same."""
    return name.replace("-", "_")


app = typer.Typer(
    name="margincast",
    help="Forecast how a preference-tuning run (DPO and its family) will generalise, and why.",
    epilog="First time here? Run: margincast demo. Exit status: 0 done, 1 could not be carried out, 2 bad usage or "
    "input, 3 a result is as --fail-if says.",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"token_normalize_func": _normalise, "help_option_names": ["--help", "-h"]},
)


def _version(value: bool) -> None:
    if value:
        print(f"margincast {VERSION}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (also after the command)")] = False,
) -> None:
    pass


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Use the values of a YAML file as defaults; flags beat the file."""
    if path is None:
        return None
    from margincast.recipe.yaml_file import read_yaml, settings_in

    values = read_yaml(path)
    if "config" in values:
        raise InputError(f"config file {path} cannot name another config file")
    parameters = {_flag(parameter): parameter for parameter in context.command.params if parameter.name != "config"}
    repeated = {name for name, parameter in parameters.items() if getattr(parameter, "multiple", False)}
    settings, unused = settings_in(path, values, parameters, repeated)
    for name, value in settings.items():
        switch = bool(getattr(parameters[name], "is_flag", False))
        if switch != isinstance(value, bool) and value is not None:
            what = "true or false" if switch else f"no {value!r}"
            raise InputError(f"config file {path}: {name} takes {what}")
    if settings.get("load_in_4bit") is True and context.info_name != "train":
        from margincast.models.device import resolve_device

        if not resolve_device("auto").startswith("cuda"):  # a run elsewhere is forecast from the full weights
            unused.append(f"load_in_4bit {settings.pop('load_in_4bit')}, without a CUDA device")
    if unused:
        names = ", ".join(unused)
        print(
            f"margincast: of {visible(str(path))}, {context.info_name} does not use: {visible(names)}", file=sys.stderr
        )
    context.default_map = {parameters[name].name or name: value for name, value in settings.items()}
    return path


def _let_flags_win(context: typer.Context, path: Path, arguments: Settings, defaults: Settings) -> None:
    """Put back to their defaults what the file says and a flag excludes, and say what of it has no partner here."""
    source = {name: getattr(context.get_parameter_source(name), "name", "") for name in arguments}
    from_file = {name for name in arguments if source[name] == "DEFAULT_MAP"}
    given = {name for name in arguments if source[name] == "COMMANDLINE"}
    excluded = {other for pair in EXCLUSIVE for name, other in (pair, pair[::-1]) if name in given} & from_file
    by = next((name for name in ("train", "backbone") if name in given), "")
    unused: list[str] = []
    if by:
        idle = () if arguments[by] == "lora" else (*LORA, "bf16") if arguments[by] in ("head", "frozen") else LORA
        unused = [name for name in idle if name in from_file]
    if unused:
        what = f"{context.info_name} --{by} {arguments[by]}"
        print(f"margincast: of {visible(str(path))}, {what} does not use: {', '.join(unused)}", file=sys.stderr)
    arguments |= {name: defaults[name] for name in (*excluded, *unused)}


def _flag(parameter: Any) -> str:
    """What a user calls a parameter: its long flag, or its name for arguments."""
    return next((name.lstrip("-") for name in parameter.opts if name.startswith("--")), parameter.name or "")


def _commands(recipe: type[Recipe]) -> None:
    """Register every command. Their modules import nothing heavy."""
    from margincast.cli import (
        attribute,
        bounds,
        cache,
        calibrate,
        compare,
        decompose,
        demo,
        forecast,
        report,
        reproduce,
        select,
        simulate,
        train,
    )
    from margincast.cli import inspect as inspect_

    app.registered_commands.clear()
    for function in (
        demo.demo,
        inspect_.inspect,
        forecast.forecast,
        train.train,
        calibrate.calibrate,
        compare.compare,
        attribute.attribute,
        decompose.decompose,
        select.select,
        bounds.bounds,
        simulate.simulate,
        reproduce.reproduce,
        report.report,
        cache.cache,
    ):
        app.command(function.__name__)(with_options(function, recipe))


def with_options(function: Any, recipe: type[Recipe] = Recipe) -> Any:
    """`function` as typer takes it: with the options of its records, and `--config`, whose eager callback has dealt
    with it before the call."""
    import inspect

    parts = parts_of(function, {Recipe: recipe})
    parameters = {each.name: each for each in parameters_of(function, parts)}

    def command(**arguments: Any) -> None:
        context, config = arguments.pop("context"), arguments.pop("config")
        if config is not None:
            _let_flags_win(context, config, arguments, {name: each.default for name, each in parameters.items()})
        try:
            call(function, parts, arguments)
        except KeyboardInterrupt as error:
            raise _Interrupted from error

    option = typer.Option(
        "--config",
        callback=_read_config,
        is_eager=True,
        help="YAML file with any of these options, or of trl dpo; flags beat the file",
        rich_help_panel="Output",
    )
    config = inspect.Parameter(
        "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Path | None, option]
    )
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    command.__signature__ = inspect.Signature([*parameters.values(), config, context])  # type: ignore[attr-defined]
    command.__doc__ = function.__doc__
    command.__name__ = function.__name__
    return command


def main(arguments: list[str] | None = None, recipe: type[Recipe] = Recipe) -> None:
    """Run the command line and exit: 0 done, 1 a stated failure, 2 bad usage or bad input, 3 a `--fail-if` holds.

    recipe: a subclass of `Recipe` adds its own fields as options
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    _share_cores()
    _quieten(debug)
    _commands(recipe)
    try:
        status = app(words or ["--help"], standalone_mode=False)
    except InputError as error:
        status = _fail(error, 2, debug)
    except StatedFailure as error:
        status = _fail(error, 1, debug)
    except ConditionHolds as error:
        status = _fail(error, 3, debug)
    except (KeyboardInterrupt, _Interrupted):
        print("margincast: interrupted; the same command goes on where it stopped", file=sys.stderr)
        status = 130
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        status = _fail(error, 1, debug, f"{where}{error.strerror or error}")
    except Exception as error:
        if hasattr(error, "format_message"):  # what typer raises for bad usage
            status = _fail(error, 2, debug, error.format_message())
        else:
            hint = f"unexpected {type(error).__name__}: {error}; --debug shows where"
            status = _fail(error, 1, debug, hint)
    if launched():
        leave(status or 0)
    sys.exit(status or 0)


def _fail(error: BaseException, status: int, debug: bool, message: str | None = None) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    # What is wrong with the input every process of a run finds, and the first says. The others wait: a launcher ends
    # all processes when one has ended, and a late first would be ended with nothing said.
    if isinstance(error, InputError) and not first():
        time.sleep(SPEAKING)
    else:
        print(f"margincast: error: {visible(' '.join((message or str(error)).split()))}", file=sys.stderr)
    return status


def _share_cores() -> None:
    """Let idle OpenMP threads sleep (read when torch is loaded).

    Spinning costs nothing on an idle machine, but beside other busy processes it made a training step of SmolLM2 six
    times slower: 35 s against 6 s on two cores.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _quieten(debug: bool) -> None:
    """Keep libraries from writing over tables and progress bars."""
    import warnings

    if not debug:
        warnings.filterwarnings("ignore")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_VERBOSITY", "critical")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


if __name__ == "__main__":
    main()
