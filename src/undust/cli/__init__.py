"""The command line: reads options, calls the library and prints results.

Heavy modules are imported inside the commands, so that help and wrong options need no wait.
"""

from __future__ import annotations

import re
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from undust import __version__
from undust.cli import (
    animate,
    bench,
    console,
    convert,
    data,
    ema,
    evaluate,
    explain,
    generate,
    habits,
    init,
    inspect,
    invert,
    lab,
    lambdas,
    listing,
    orbit,
    report,
    schedules,
    streams,
    trace,
    train,
)
from undust.errors import UndustError, demand, printable
from undust.formats.files import expanded
from undust.interrupts import STOPPED, stopping_in_imports
from undust.regular import locale_lacks

DEMANDS = {  # Typer's words in plain ones
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
}
WRONG, BUG = 2, 1  # exit codes, beside STOPPED
OUR_LETTERS = "αβελσ"  # in messages

app = typer.Typer(
    help="Latent diffusion: generate pictures, train models, evaluate and convert them.",
    epilog="`undust COMMAND --help` describes a command.",
    rich_markup_mode="markdown",
    add_completion=False,
)
app.command()(generate.generate)
app.command()(generate.rerun)
app.command()(generate.interpolate)
app.command()(animate.animate)
app.command()(orbit.orbit)
app.command()(trace.trace)
app.command()(explain.explain)
app.command()(invert.invert)
app.command()(invert.likelihood)
app.command()(inspect.inspect)
app.command()(convert.convert)
app.command()(listing.models)
app.command()(listing.samplers)
app.add_typer(schedules.app, name="schedules")
app.command()(listing.guidances)
app.command()(listing.engines)
app.command()(bench.bench)
app.add_typer(data.app, name="data")
app.command()(init.init)
app.command()(train.train)
app.command()(report.report)
app.command()(ema.ema)
app.command()(evaluate.evaluate)
app.add_typer(lab.app, name="lab")
app.add_typer(lambdas.app, name="lambda")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"undust {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print a traceback for errors.")] = False,
) -> None:
    """Options before any command; `main` also accepts --debug after one."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns the exit code; errors are one line on stderr.

    A closed pipe on stdout is not an error.
    """
    with streams.lasting() as written:
        code = _run(argv)
        if lost := streams.unwritten(written):
            console.note(f"the output could not be written: {lost}")
        return code or (WRONG if lost else 0)


def _run(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:end]
    ours = [_at_home(each) for each in arguments[:end] if each != "--debug"]
    arguments = ours + arguments[end:]
    try:
        _check_working_folder()
        command = _command()
        with warnings.catch_warnings(), stopping_in_imports():
            warnings.showwarning = _noted
            # Relevant warnings of Pillow are errors of ours, which name the file.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            with command.make_context("undust", arguments or ["--help"]) as context:
                command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except KeyboardInterrupt as stop:
        console.note(str(stop) or "stopped")
        return STOPPED
    except Exception as error:
        if debug:
            traceback.print_exc()
        known = isinstance(error, UndustError | typer.TyperException | OSError)
        message = _explained(error, ours)
        message += _locale(message)
        console.note(message if known else f"{message}; --debug shows where")
        return WRONG if known else BUG
    return 0


@cache  # reading the annotations of all commands takes longer than most of them need to fail
def _command() -> Any:
    return typer.main.get_command(app)


def _locale(message: str) -> str:
    """An addition to an error with characters outside the locale's encoding; else ""."""
    if "PYTHONUTF8" in message:
        return ""
    named = re.sub(r"\\udc[89a-f][0-9a-f]", "\ufffd", message)  # bytes that it could not read
    named = "".join(c for c in named if (c.isalpha() or c == "\ufffd") and c not in OUR_LETTERS)
    return f"; {why}" if (why := locale_lacks(named)) else ""


def _at_home(argument: str) -> str:
    """The argument with "~" expanded to a home folder, also after "--option="."""
    found = re.fullmatch(r"(--[\w-]+=)?(~[\w.-]*[/\\].*)", argument, re.DOTALL)
    return (found[1] or "") + str(expanded(found[2])) if found else argument


def _noted(message: Warning | str, *_: object) -> None:
    """Prints a warning as a line, without its place in the code."""
    console.note(str(message))


def _check_working_folder() -> None:
    """Raises UndustError if the working folder was deleted; torch would end the process there."""
    try:
        Path.cwd()
    except OSError as error:
        raise UndustError("the working folder no longer exists; change to another") from error


def _explained(error: Exception, arguments: Sequence[str]) -> str:
    """The one-line message of an error."""
    match error:
        case UndustError():
            return str(error)
        case typer.TyperException(option_name=name, possibilities=near, ctx=context) if context:
            params = context.command.params
            takes = [each.metavar or "" for each in params if each.param_type_name == "argument"]
            options = [option for each in params for option in each.opts]
            if here := habits.instead(name, arguments, options, takes):
                return f"no such option: {name}; here it is {here}"
            nearest = f"did you mean {near[0]}?" if near else f"see {context.command_path} --help"
            return f"no such option: {name}; {nearest}"
        case typer.BadParameter(param=param) if param and hasattr(error.__cause__, "errors"):
            return _unfit(param.opts[0], cast(Any, error.__cause__).errors()[0])
        case typer.TyperException():
            text = error.format_message().rstrip(".")
            context = getattr(error, "ctx", None)
            more = f"; see {context.command_path} --help" if context else ""
            return f"{text[:1].lower()}{text[1:]}{more}"
        case OSError(filename=str(name), strerror=str(reason)):
            return f"{name}: {reason}"
        case _:
            return f"{type(error).__name__}: {error}"


def _unfit(option: str, wrong: Mapping[str, Any]) -> str:
    """An error of pydantic for an option: "--minutes: has to be at least 1, not 0.2"."""
    message = demand(wrong)
    if wrong["type"] == "value_error":  # Typer's own, with the value: 'x' is not one of 'a', 'b'.
        return f"{option}: {message.rstrip('.')}"
    for words, plain in DEMANDS.items():
        message = message.replace(words, plain)
    return f"{option}: {message}, not {printable(wrong['input'])}"
