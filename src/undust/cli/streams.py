"""Standard streams on which nothing fails: closed ones, readers that leave, letters they lack."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TextIO


class Lasting(io.TextIOBase):
    """A text stream that can always be written to.

    After the first write that fails the rest is dropped: a reader that leaves, as `| head -1` does,
    is no reason to stop the work. A character that the encoding lacks is written as its escape.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def writable(self) -> bool:
        """Always."""
        return True

    def isatty(self) -> bool:
        """Whether a person sees it."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The stream's descriptor."""
        return self._stream.fileno()

    def write(self, text: str, /) -> int:
        """Writes as much of the text as can be."""
        if getattr(self._stream, "errors", None) in (None, "strict", "surrogateescape"):
            known = text.encode(self.encoding, "backslashreplace")
            self._try(lambda: self._stream.write(known.decode(self.encoding)))
        else:
            self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Hands on what was written."""
        self._try(lambda: self._stream.flush())

    def _try(self, action: Callable[[], object]) -> None:
        if self.failure is not None:
            return
        try:
            action()
        except OSError as error:
            self.failure = error
            # Python flushes its streams once more at the end.
            with suppress(OSError), Path(os.devnull).open("wb") as nothing:
                os.dup2(nothing.fileno(), self.fileno())


def unwritten(streams: list[Lasting]) -> str:
    """Why the output is not whole, "" if it is or nobody wanted the rest."""
    for stream in streams:
        stream.flush()
    failures = (stream.failure for stream in streams)
    return next((str(each.strerror) for each in failures if each and each.errno != errno.EPIPE), "")


@contextmanager
def lasting() -> Generator[list[Lasting]]:
    """Within it stdout and stderr are such streams, which are given."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Else the next file that is opened, a picture, would be the stream.
            os.open(os.devnull, os.O_RDWR)
    with ExitStack() as stack:
        streams: list[Lasting] = []
        for stream, redirect in ((sys.stdout, redirect_stdout), (sys.stderr, redirect_stderr)):
            nothing = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            streams.append(Lasting(stream or nothing))
            stack.enter_context(redirect(streams[-1]))
        try:
            yield streams
        finally:
            unwritten(streams)
