"""What a case is, and the kinds of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

from undust.cli import main
from undust.errors import UndustError

INSPECTED = 25  # every so many-th file is also shown to `undust inspect`


@dataclass
class Asks:
    """What is read in a case; size: bytes of it; unpacked: bytes of the picture that was in it."""

    asks: list[Callable[[], object]]
    size: int
    unpacked: int = 0


Make = Callable[[Random, Path], Asks]


@dataclass
class Kind:
    """Cases of one kind. share: of all cases; build: makes the originals in a folder, once."""

    share: int
    build: Callable[[Path], Make]
    make: Make = lambda *_: Asks([], 0)

    def prepare(self, room: Path) -> None:
        room.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.make = self.build(room)


KINDS: dict[str, Kind] = {}


def kind(share: int) -> Callable[[Callable[[Path], Make]], Callable[[Path], Make]]:
    def register(build: Callable[[Path], Make]) -> Callable[[Path], Make]:
        KINDS[build.__name__] = Kind(share, build)
        return build

    return register


def inspected(path: Path) -> None:
    """`undust inspect`, here; UndustError if it refuses, RuntimeError where it fails."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        code = main(["inspect", "--", str(path)])
        out.flush(), err.flush()
    said = err.buffer.getvalue().decode()
    if code not in (0, 2) or (code and not said.startswith("undust: ")):
        raise RuntimeError(f"exit code {code}: {said}")
    if code:
        raise UndustError(said.removesuffix("\n"))


def asks(chance: Random, path: Path, size: int, *readings: Callable[[], object]) -> Asks:
    """The readings of a file, and now and then `undust inspect`."""
    shown = [lambda: inspected(path)] if chance.randrange(INSPECTED) == 0 else []
    return Asks([*readings, *shown], size)
