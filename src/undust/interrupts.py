"""Ctrl-C while Python modules are being imported."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType

STOPPED = 130  # exit code
_endings: list[Callable[[], None]] = []


@contextmanager
def ending(clean: Callable[[], None]) -> Generator[None]:
    """A context that calls `clean` if the process ends in it by Ctrl-C in an import.

    Pillow, for one, imports the formats that it knows when it first saves a picture.
    """
    _endings.append(clean)
    try:
        yield
    finally:
        _endings.remove(clean)


@contextmanager
def stopping_in_imports() -> Generator[None]:
    """A context in which Ctrl-C during an import ends the process with one line on stderr.

    There a KeyboardInterrupt is unsafe: torch's import aborts on it or swallows it. Elsewhere it is
    raised as usual, also from compiled code that makes another exception of it, as pydantic's does
    while it builds a schema. A process that ignores Ctrl-C or has its own handler keeps that.
    """
    main_thread = threading.current_thread() is threading.main_thread()  # others have no handlers
    if not main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _stop)
    try:
        yield
    except Exception as error:
        if str(error).rstrip().endswith("KeyboardInterrupt:"):
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _stop(_number: int, frame: FrameType | None) -> None:
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            for clean in reversed(_endings):
                with suppress(Exception):
                    clean()
            with suppress(OSError):
                os.write(2, b"undust: stopped\n")
            os._exit(STOPPED)
        frame = frame.f_back
    raise KeyboardInterrupt
