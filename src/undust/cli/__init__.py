"""The command line: it reads options, calls the library, and shows what comes back.

Everything heavy is imported inside the commands, so that help and a wrong option answer at once.
"""

from __future__ import annotations

import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from undust import __version__
from undust.cli import (
    console,
    convert,
    data,
    evaluate,
    generate,
    habits,
    inspect,
    invert,
    lab,
    listing,
    schedules,
    streams,
    train,
)
from undust.errors import UndustError
from undust.formats.files import expanded
from undust.interrupts import STOPPED, stopping_in_imports
from undust.regular import locale_lacks

WRONG, BUG = 2, 1  # exit codes, beside STOPPED
OUR_LETTERS = "αβελσ"  # in messages

app = typer.Typer(
    help="Latent diffusion, whole: paint with a model, train one, measure it, look into it.",
    epilog="`undust COMMAND --help` says more about one of them.",
    rich_markup_mode="markdown",
    add_completion=False,
)
app.command()(generate.generate)
app.command()(generate.rerun)
app.command()(generate.interpolate)
app.command()(invert.invert)
app.command()(invert.likelihood)
app.command()(inspect.inspect)
app.command()(convert.convert)
app.command()(listing.models)
app.command()(listing.samplers)
app.add_typer(schedules.app, name="schedules")
app.command()(listing.guidances)
app.add_typer(data.app, name="data")
app.command()(train.train)
app.command()(evaluate.evaluate)
app.add_typer(lab.app, name="lab")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"undust {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Say which version it is."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where in the code an error came from.")
    ] = False,
) -> None:
    """What goes before or, as `main` sees to, after any command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns the exit code; every error is one line on stderr.

    A reader of the output that leaves is no error.
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
        command = typer.main.get_command(app)
        with warnings.catch_warnings(), stopping_in_imports():
            warnings.showwarning = _noted
            # What matters of Pillow's is an error of ours, which names the file.
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
        told = _explained(error, ours)
        told += _locale(told)
        console.note(told if known else f"{told}; --debug shows where")
        return WRONG if known else BUG
    return 0


def _locale(told: str) -> str:
    """An addition to an error about letters that the locale's encoding lacks; else ""."""
    if "PYTHONUTF8" in told:
        return ""
    named = re.sub(r"\\udc[89a-f][0-9a-f]", "\ufffd", told)  # bytes that it could not read
    named = "".join(c for c in named if (c.isalpha() or c == "\ufffd") and c not in OUR_LETTERS)
    return f"; {why}" if (why := locale_lacks(named)) else ""


def _at_home(argument: str) -> str:
    """The argument, a path in which "~" stands for a home, also after "--option="."""
    found = re.fullmatch(r"(--[\w-]+=)?(~[\w.-]*[/\\].*)", argument, re.DOTALL)
    return (found[1] or "") + str(expanded(found[2])) if found else argument


def _noted(message: Warning | str, *_: object) -> None:
    """A warning as a line, not as a place in the code."""
    console.note(str(message))


def _check_working_folder() -> None:
    """Raises UndustError if the working folder was deleted; torch would end the process there."""
    try:
        Path.cwd()
    except OSError as error:
        raise UndustError("the working folder does not exist any more; go to another") from error


def _explained(error: Exception, arguments: Sequence[str]) -> str:
    """What one line can say of an error of a command line."""
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
        case typer.TyperException():
            message = error.format_message().rstrip(".")
            context = getattr(error, "ctx", None)
            more = f"; see {context.command_path} --help" if context else ""
            return f"{message[:1].lower()}{message[1:]}{more}"
        case OSError(filename=str(name), strerror=str(reason)):
            return f"{name}: {reason}"
        case _:
            return f"{type(error).__name__}: {error}"
