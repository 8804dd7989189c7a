"""Tar archives as folders: an index of their members, which are read in place.

WebDataset's layout (Aizman et al. 2019): the files of one sample have the same name and different
extensions. Nothing is extracted, and of a member only what is asked for is in memory.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from undust.datasets.storage import Storage, Unread, is_hidden, leads_out
from undust.errors import UndustError, printable
from undust.regular import Opened, open_regular

BLOCK = tarfile.BLOCKSIZE
LARGEST_HEADER = 2**20  # bytes of a long name or of extended attributes
COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}
KINDS = {
    tarfile.SYMTYPE: "a link",
    tarfile.LNKTYPE: "a link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


class Archive(Storage):
    """The regular files in a tar archive. A member's path is that of the archive, and its name.

    faults: an error for an archive that is damaged or cut off; its whole members are there.
    skipped: members that are not read, each with the reason.
    """

    keyed = True

    def __init__(self, path: Path) -> None:
        """Reads the headers. Raises UndustError for a file that is no tar archive."""
        super().__init__()
        self.path = path
        self.faults: list[UndustError] = []
        self.skipped: list[Path] = []
        self._members: dict[Path, tuple[int, int]] = {}  # where the content begins, and its size
        self._folders: dict[Path, set[str]] = {path: set()}
        try:
            with open_regular(path) as file:
                self._index(file)
        except OSError as error:
            raise UndustError(f"cannot read {path}: {error.strerror or error}") from error

    def open(self, path: Path) -> Opened:
        """Opens a member; each has its own file handle, so that threads can read at once."""
        if path not in self._members:
            raise UndustError(f"{path} does not exist")
        return io.BufferedReader(_Window(open_regular(self.path), *self._members[path]))

    def is_file(self, path: Path) -> bool:
        """Whether there is a member with this path."""
        return path in self._members

    def names(self, folder: Path) -> list[str]:
        """The names of members and folders in a folder of the archive."""
        return [*self._folders.get(folder, ())]

    def folder_name(self, path: Path) -> str | None:
        """The name of a member's folder; None at the top of the archive."""
        return None if path.parent == self.path else path.parent.name

    def walk(self, folder: Path, unread: Unread) -> Iterator[Path]:
        """The members, but for hidden ones."""
        unread.skipped += self.skipped
        hidden: dict[Path, None] = {}
        depth = len(folder.parts)
        for path in sorted(self._members, key=lambda path: path.parts):
            for place, part in enumerate(path.parts[depth:], depth + 1):
                if is_hidden(part):
                    hidden[Path(*path.parts[:place])] = None
                    break
            else:
                yield path
        unread.hidden += hidden

    def _index(self, file: BinaryIO) -> None:
        start = file.read(8)
        for magic, (kind, command) in COMPRESSED.items():
            if start.startswith(magic):
                raise UndustError(
                    f"{self.path} is compressed with {kind}, so that its members cannot be read "
                    f"singly; {command} it first"
                )
        file.seek(0)
        end = place = 0
        try:
            size = os.fstat(file.fileno()).st_size
            headers = cast(BinaryIO, _Headers(file))
            with tarfile.TarFile(fileobj=headers, encoding="utf-8") as tar:
                while member := tar.next():
                    if member.offset < place or member.size < 0:
                        raise tarfile.ReadError(f"the size {member.size:,} cannot be")
                    place = member.offset_data
                    if place + member.size > size:
                        raise tarfile.ReadError(f"{printable(member.name)} is cut off")
                    self._add(member)
                    cast(Any, tar).members.clear()  # only the last is needed
                end = tar.offset
            file.seek(end)
            rest = file.read(2 * tarfile.RECORDSIZE)
        except (tarfile.TarError, RecursionError, ValueError, OverflowError, EOFError) as error:
            if not self._members:
                raise UndustError(f"{self.path} is not a tar archive: {error}") from error
            self.faults.append(UndustError(f"{self.path} is damaged or cut off: {error}"))
            return
        wrong = ""
        if not rest:
            wrong = "has no end mark; it may be cut off"
        elif rest[:BLOCK].strip(b"\0"):
            wrong = f"is damaged: there is no header at byte {end:,}"
        elif rest.strip(b"\0"):
            wrong = "goes on after its end mark; archives are not joined by their bytes"
        if wrong:
            self.faults.append(UndustError(f"{self.path} {wrong}"))

    def _add(self, member: tarfile.TarInfo) -> None:
        if member.isdir():
            return
        path, wrong = self.path / PurePosixPath(member.name), ""
        if leads_out(member.name) or path == self.path:
            wrong = "its name leads out of the archive"
        elif any("\ud800" <= letter <= "\udfff" for letter in member.name):
            wrong = "its name is not UTF-8"
        elif member.issparse() or not member.isreg():
            wrong = KINDS.get(member.type, "a sparse file" if member.issparse() else "no file")
        if wrong:
            self.skipped.append(self.path / f"{printable(member.name).strip('/')} ({wrong})")
            return
        if path in self._members:
            again = f"{path.relative_to(self.path)} (an earlier one of the same name)"
            self.skipped.append(self.path / again)
        self._members[path] = (member.offset_data, member.size)
        while path != self.path and path.name not in self._folders.get(path.parent, ()):
            self._folders.setdefault(path.parent, set()).add(path.name)
            path = path.parent


class _Headers:
    """A file of which only headers are read: a size of others is an error of the archive."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


class _Window(io.RawIOBase):
    """A part of a file, as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size = file, start, size
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative place {base + offset}")
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        size = max(0, min(len(buffer), self._size - self._place))
        self._file.seek(self._start + self._place)
        part = self._file.read(size)
        buffer[: len(part)] = part
        self._place += len(part)
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()
