"""The command line: `margincast COMMAND`. Parses, calls one function, says what went wrong in one line."""

from __future__ import annotations

import os
import sys
import time
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from margincast.errors import InputError, StatedFailure
from margincast.processes import leave


SPEAKING = 20.0  # seconds that the first of several processes has to say what is wrong


class _Interrupted(Exception):  # noqa: N818 (a person's wish)
    """KeyboardInterrupt under a name that typer lets through."""


def _normalise(name: str) -> str:
    """Hyphens and underscores are the same."""
    return name.replace("-", "_")


app = typer.Typer(
    name="margincast",
    help="Forecast how a preference-tuning run (DPO and its family) will generalise, and why.",
    epilog="First time here? Run: margincast demo",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"token_normalize_func": _normalise, "help_option_names": ["--help", "-h"]},
)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"margincast {version('margincast')}")
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
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"config file {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config file {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise InputError(f"config file {path} must hold names and values, like `beta: 0.01`")
    if "config" in values:
        raise InputError(f"config file {path} cannot name another config file")
    names = {_flag(parameter): parameter for parameter in context.command.params}
    chosen: dict[str, Any] = {}
    for name, value in values.items():
        parameter = names.get(_normalise(name))
        if parameter is None or parameter.name is None:
            raise InputError(f"config file {path}: {context.info_name} has no option {name!r}")
        if isinstance(value, (list, dict)):
            raise InputError(f"config file {path}: {name} must be a single value, got {value!r}")
        if value is not None:
            chosen[parameter.name] = value
    context.default_map = chosen
    return path


def _flag(parameter: Any) -> str:
    """What a user calls a parameter: its long flag, or its name for arguments."""
    return next((name.lstrip("-") for name in parameter.opts if name.startswith("--")), parameter.name or "")


@cache
def _commands() -> None:
    """Register every command. Their modules import nothing heavy."""
    import inspect

    from margincast.cli import attribute, bounds, compare, decompose, demo, forecast, report, reproduce, simulate, train
    from margincast.cli import inspect as inspect_

    for function in (
        demo.demo,
        inspect_.inspect,
        forecast.forecast,
        train.train,
        compare.compare,
        attribute.attribute,
        decompose.decompose,
        bounds.bounds,
        simulate.simulate,
        reproduce.reproduce,
        report.report,
    ):
        signature = inspect.signature(function, eval_str=True)
        option = typer.Option(
            "--config",
            callback=_read_config,
            is_eager=True,
            help="YAML file with any of these options; flags beat the file",
            rich_help_panel="Output",
        )
        config = inspect.Parameter(
            "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Path | None, option]
        )
        app.command(function.__name__)(_with_config(function, signature, config))


def _with_config(function: Any, signature: Any, config: Any) -> Any:
    """`function` with a `--config` option, which its eager callback has dealt with before the call."""

    def command(**arguments: Any) -> None:
        arguments.pop("config")
        try:
            function(**arguments)
        except KeyboardInterrupt as error:
            raise _Interrupted from error

    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in signature.parameters.values()]
    command.__signature__ = signature.replace(parameters=[*parameters, config])  # type: ignore[attr-defined]
    command.__doc__ = function.__doc__
    command.__name__ = function.__name__
    return command


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a stated failure, 2 bad usage or bad input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    _share_cores()
    _quieten(debug)
    _commands()
    try:
        status = app(words or ["--help"], standalone_mode=False)
    except InputError as error:
        status = _fail(error, 2, debug)
    except StatedFailure as error:
        status = _fail(error, 1, debug)
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
    leave(status or 0)
    sys.exit(status or 0)


def _fail(error: BaseException, status: int, debug: bool, message: str | None = None) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    # What is wrong with the input every process of a run finds, and the first says. The others wait: a launcher ends
    # all processes when one has ended, and a late first would be ended with nothing said.
    if isinstance(error, InputError) and os.environ.get("RANK", "0") != "0":
        time.sleep(SPEAKING)
    else:
        print(f"margincast: error: {' '.join((message or str(error)).split())}", file=sys.stderr)
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
