"""Reading of regular files only: reading a pipe or a device could block forever.

File names come from recipes and the command line, and files in model folders from anywhere. All
files that are read by name are opened here.
"""

from __future__ import annotations

import codecs
import os
import stat
import sys
from collections.abc import Callable
from io import BufferedReader, BytesIO
from pathlib import Path

from undust.errors import UndustError

LIMIT = 2**20  # bytes of a configuration or a recipe
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
Opened = BufferedReader | BytesIO
Opener = Callable[[Path], Opened]
"""Opens a file, or a part of one that has a path, for reading."""
NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)


def open_regular(path: Path) -> BufferedReader:
    """Opens a file for reading. Raises UndustError for a pipe, a socket, a device or a folder.

    Other failures are the OSError or ValueError of `open`.
    """
    # Before opening, which may change the state of a device, and after it, as the file may have
    # been replaced in between.
    _check(path, path.stat())
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | NO_WAITING))  # noqa: SIM115
    try:
        _check(path, os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def read_bytes(path: Path, limit: int = LIMIT, opened: Opener = open_regular) -> bytes:
    """A file's content. Raises UndustError for more than `limit`, and as `open_regular` does."""
    with opened(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UndustError(f"{path} is larger than {limit:,} bytes")
    return content


def read_text(path: Path, limit: int = LIMIT, opened: Opener = open_regular) -> str:
    """A file's text without a byte order mark, as `read_bytes`.

    UTF-8, or UTF-16 with its mark. Raises UnicodeDecodeError for other text.
    """
    return in_utf8(read_bytes(path, limit, opened)).decode("utf-8-sig")


def in_utf8(content: bytes) -> bytes:
    """Text in UTF-16 with its byte order mark, as of PowerShell's ">", in UTF-8; others as is."""
    if not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content
    try:
        return content.decode("utf-16").encode()
    except UnicodeDecodeError:
        return content


def as_text(name: str) -> str:
    r"""A file's name as text: bytes of it that are not UTF-8 become escapes such as \xe9.

    File names are bytes. Such ones are half characters in Python, which no encoding takes.
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def locale_lacks(text: str) -> str:
    """The error for a file name with characters outside the locale's encoding; else ""."""
    encoding = sys.getfilesystemencoding()
    try:
        text.encode(encoding, "surrogateescape")
    except UnicodeEncodeError:
        return f"the locale's encoding, {encoding}, lacks some letters; PYTHONUTF8=1 sets UTF-8"
    return ""


def _check(path: Path, found: os.stat_result) -> None:
    if stat.S_ISREG(found.st_mode):
        return
    kind = KINDS.get(stat.S_IFMT(found.st_mode), "something else")
    instead = "; save its output to a file first" if kind == "a pipe" else ""
    raise UndustError(f"{path} is {kind}, not a file{instead}")
