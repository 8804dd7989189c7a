"""The entry point of the command line, for `undust` and `python -m undust`."""

from __future__ import annotations

import atexit
import os
import sys

from undust.interrupts import STOPPED, stopping_in_imports


def main() -> int:
    """Runs the command line and returns the exit code."""
    try:
        with stopping_in_imports():
            from undust.cli import main as command_line

            return command_line()
    except KeyboardInterrupt:
        if sys.stderr:
            sys.stderr.write("undust: stopped\n")
        return STOPPED


def process() -> int:
    """As `main`, for a process that ends with it, without taking its modules apart.

    The interpreter would spend 0.2 s on torch's at the end of each command.
    """
    codes: list[int] = []
    # Registered first, it runs after all other functions of atexit and the end of all threads.
    atexit.register(lambda: os._exit(codes[0]) if codes else None)
    codes.append(main())
    return codes[0]


if __name__ == "__main__":
    raise SystemExit(process())
