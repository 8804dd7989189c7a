"""Calls of two programs in alternation, each in its own process: both see the same machine."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any


def alternate(
    sides: Iterable[str], rounds: int, prepare: Callable[..., Callable[[], float]], *given: Any
) -> dict[str, list[float]]:
    """The seconds of each side's calls, by its name; one call before the first round warms it up.

    prepare: (side, *given) to a call that returns the seconds it took; made in the side's process.
    Prints the rounds.
    """
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for side in sides:
        pipes[side], end = context.Pipe()
        context.Process(target=_serve, args=(end, prepare, side, *given), daemon=True).start()
        end.close()  # so that a process that dies is noticed
        pipes[side].recv()
    times: dict[str, list[float]] = {side: [] for side in pipes}
    for number in range(rounds + 1):
        for side, pipe in pipes.items():
            pipe.send(True)
            seconds = pipe.recv()
            if number:
                times[side].append(seconds)
        if number:
            shown = ", ".join(f"{side} {each[-1]:.2f} s" for side, each in times.items())
            print(f"round {number}: {shown}", flush=True)
    for pipe in pipes.values():
        pipe.send(False)
    return times


def _serve(pipe: Connection, prepare: Callable[..., Callable[[], float]], *given: Any) -> None:
    """Times one call for every message."""
    call = prepare(*given)
    pipe.send("ready")
    while pipe.recv():
        pipe.send(call())
