"""Standard streams that tolerate closed descriptors, closed pipes and unsupported characters."""

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
    """A text stream whose writes never raise.

    After the first failed write all output is dropped: a closed pipe, as with `| head -1`, does not
    stop the work. Characters outside the encoding are written as escapes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The encoding of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def writable(self) -> bool:
        """Always."""
        return True

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The stream's descriptor."""
        return self._stream.fileno()

    def write(self, text: str, /) -> int:
        """Writes the text if possible."""
        if getattr(self._stream, "errors", None) in (None, "strict", "surrogateescape"):
            known = text.encode(self.encoding, "backslashreplace")
            self._try(lambda: self._stream.write(known.decode(self.encoding)))
        else:
            self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream."""
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
    """The reason for incomplete output; "" if it is complete or its reader closed the pipe."""
    for stream in streams:
        stream.flush()
    failures = (stream.failure for stream in streams)
    return next((str(each.strerror) for each in failures if each and each.errno != errno.EPIPE), "")


@contextmanager
def lasting() -> Generator[list[Lasting]]:
    """A context in which stdout and stderr are `Lasting` streams, which it yields."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Otherwise the next file opened, such as a picture, would get this descriptor.
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
