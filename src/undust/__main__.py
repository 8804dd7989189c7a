"""The entry point of the command line, for `undust` and `python -m undust`."""

from __future__ import annotations

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


if __name__ == "__main__":
    raise SystemExit(main())
