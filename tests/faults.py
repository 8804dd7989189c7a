"""Faults of the file system: at a chosen write, fsync, rename and the like, or of a full disk."""

from __future__ import annotations

import errno
import io
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from undust.formats import files

CALLS = ("fsync", "rename", "replace", "mkdir", "unlink", "remove", "rmdir")


class FaultyDisk:
    """Counts calls that change the disk; from `first` on they fail.

    lasting: all later calls fail too, so that the disk is as after the death of the process, and
    with it the contents of files that were not synced are lost, as after a power cut. Otherwise one
    call fails, with EIO.
    """

    def __init__(self, first: int, *, lasting: bool) -> None:
        self.first, self.lasting, self.calls = first, lasting, 0
        self.log: list[str] = []
        self._unsynced: set[int] = set()

    def call(self, name: str) -> None:
        """Counts one call; raises OSError if it fails."""
        self.calls += 1
        self.log.append(name)
        if self.calls == self.first or (self.lasting and self.calls > self.first):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    @contextmanager
    def used(self) -> Generator[None]:
        """Within it all files of this process are on this disk."""
        with pytest.MonkeyPatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, self._counted(name, getattr(os, name)))
            patch.setattr(io, "open", self._opened(io.open))
            exchange = files._exchange_call()
            if exchange:
                counted = self._counted("exchange", exchange)
                patch.setattr(files, "_exchange_call", lambda: counted)
            yield

    def cut_power(self, folder: Path) -> None:
        """Halves the files below a folder that were not synced."""
        for path in folder.rglob("*"):
            if path.is_file() and path.stat().st_ino in self._unsynced:
                os.truncate(path, path.stat().st_size // 2)

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.call(name)
            if name != "fsync":
                return function(*arguments, **options)
            self._unsynced.discard(os.fstat(arguments[0]).st_ino)  # a real one takes long
            return None

        return call

    def _opened(self, opened: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if not set(mode) & set("wxa+"):
                return opened(file, mode, *arguments, **options)
            self.call("open")
            made = opened(file, mode, *arguments, **options)
            self._unsynced.add(os.fstat(made.fileno()).st_ino)
            return _File(made, self)

        return call


class _File:
    """A file whose writes are counted."""

    def __init__(self, file: Any, disk: FaultyDisk) -> None:
        self._file, self._disk = file, disk

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, content: Any) -> int:
        self._disk.call("write")
        return self._file.write(content)


def run_limited(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a script that may write files of at most 64 KiB: the system's own refusal, no mock."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))

    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
