"""Output for people: tables, progress and lines; plain text without a terminal."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Protocol, Self

import typer
from rich import box, progress
from rich.console import Console
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 200  # characters of a line without a terminal
MAX_VALUE = 10_000  # characters of a value, the limit of a prompt
PLAIN_EVERY = 10.0  # seconds between lines of progress without a terminal


def rich_console(*, stderr: bool = False) -> Console:
    """A console; output to pipes and files is neither wrapped nor coloured."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else PLAIN_WIDTH)


def clean(text: object) -> str:
    """The text in one line, without control characters."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "�", " ".join(str(text).split()))


def note(message: str) -> None:
    """Prints a message on stderr, with the program's name."""
    typer.echo(f"undust: {clean(message)}", err=True)


def summary(message: str) -> None:
    """Prints a line about the work done, on stderr."""
    typer.echo(clean(message), err=True)


def line(text: object) -> None:
    """Prints a line of the result, on stdout."""
    typer.echo(clean(text))


def as_json(value: object, indent: int | None = None) -> str:
    """The value as JSON, in one line unless indented; in ASCII if stdout is not Unicode."""
    ascii_ = not (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    text = json.dumps(value, ensure_ascii=ascii_, indent=indent, default=str)
    # Half of a letter, which a file may have had as an escape, cannot be written in another way.
    return re.sub(r"[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table; columns whose name ends in ">" are aligned to the right."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        right = column.endswith(">")
        shown.add_column(
            column.rstrip(">"),
            justify="right" if right else "left",
            no_wrap=right,
            overflow="fold",
        )
    for row in rows:
        shown.add_row(*(Text(clean(cell)) for cell in row))
    rich_console().print(shown)


def facts(values: Mapping[str, object]) -> None:
    """Prints names and values in two columns, without None; long values are truncated."""
    shown = Table.grid(padding=(0, 2))
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in values.items():
        if value is not None:
            shown.add_row(Text(shorten(clean(name), 200)), Text(shorten(clean(value), MAX_VALUE)))
    rich_console().print(shown)


def amount(number: float) -> str:
    """A count with a unit: 512, 21.3 K, 860 M."""
    for unit in ("", " K", " M", " G"):
        if number < 999.5 or unit == " G":
            break
        number /= 1000
    return f"{number:.3g}{unit}"


def seconds(number: float) -> str:
    """A time span: 1.3 s, 4:05, 2:10:00."""
    if number < 60:
        return f"{number:.1f} s"
    minutes, rest = divmod(round(number), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Settings(Protocol):
    """The settings of a generation that recipes and reports both have."""

    steps: int
    sampler: str
    schedule: str
    guidance: float
    model: str
    model_hash: str


def settings(made: Settings, taken: int | None = None) -> str:
    """The settings in one line; taken: the number of steps, if not all of them."""
    steps = "1 step" if made.steps == 1 else f"{made.steps} steps"
    if taken is not None and taken != made.steps:
        steps = f"{taken} of {steps}" if taken < made.steps else f"{taken} steps"
    return (
        f"{steps} of {made.sampler} ({made.schedule}), guidance {made.guidance:g}, "
        f"model {made.model} {made.model_hash}"
    )


def shorten(text: str, length: int) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


class Progress:
    """A progress bar on stderr, or a line at intervals if stderr is not a terminal."""

    def __init__(self, total: int, unit: str, start: int = 0) -> None:
        self.total, self.unit, self.start = total, unit, start
        self._began = self._said = time.monotonic()
        self._bar: progress.Progress | None = None
        if sys.stderr.isatty():
            self._bar = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn(unit),
                progress.TimeRemainingColumn(elapsed_when_finished=True),
                console=rich_console(stderr=True),
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._task = self._bar.add_task("", total=total, completed=start)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: int, text: str) -> None:
        """Shows that `done` of the total are done; text: the current work."""
        if self._bar:
            self._bar.update(self._task, completed=done, description=clean(text))
            return
        now = time.monotonic()
        if done < self.total and now - self._said < PLAIN_EVERY:
            return
        self._said = now
        left = (now - self._began) * (self.total - done) / max(1, done - self.start)
        rest = f", {seconds(left)} left" if done < self.total else ""
        summary(f"{done}/{self.total} {self.unit}{rest}: {text}")

    def line(self, text: str) -> None:
        """Prints a line of the result on stdout, above the bar."""
        self._above(lambda: typer.echo(text))

    def note(self, message: str) -> None:
        """Prints a message on stderr, above the bar."""
        self._above(lambda: note(message))

    def _above(self, show: Callable[[], None]) -> None:
        if self._bar:
            self._bar.stop()
        show()
        if self._bar:
            self._bar.start()


@contextmanager
def counted(unit: str, text: str) -> Generator[Callable[[int, int], None]]:
    """Yields an `observe(done, total)` for library calls; its first call shows the bar."""
    with ExitStack() as stack:
        bar: Progress | None = None

        def observe(done: int, total: int) -> None:
            nonlocal bar
            bar = bar or stack.enter_context(Progress(total, unit))
            bar.update(done, text)

        yield observe
