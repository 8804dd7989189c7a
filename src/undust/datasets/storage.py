"""Storage of a data set's files: a disk, or containers whose parts have paths, too."""

from __future__ import annotations

import os
import stat
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from undust.datasets.metadata import LineError
from undust.errors import printable
from undust.formats.run_folder import is_output
from undust.regular import Opened, as_text, locale_lacks, open_regular

SYSTEM = frozenset(  # files of operating systems and network disks, in lower case
    {
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"),
        *("__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "lost+found"),
        *("system volume information", "found.000", "__pycache__"),
    }
)


@dataclass
class Unread:
    """Files that are not read.

    hidden: hidden files and folders, and those of the system. links: broken ones, and those to a
    folder that is read already. outputs: folders of training runs and generated pictures. skipped:
    what is no file, or of a kind that is not read.
    """

    hidden: list[Path] = field(default_factory=list[Path])
    links: list[Path] = field(default_factory=list[Path])
    outputs: list[Path] = field(default_factory=list[Path])
    skipped: list[Path] = field(default_factory=list[Path])


class Storage(ABC):
    """The files of a data set, by paths.

    Names in metadata may have been written on another system. Those with accents or Hangul have two
    forms in Unicode that look the same: macOS and some archives use the decomposed one, keyboards
    the composed one. Windows writes backslashes.
    """

    keyed = False
    """Whether files beside a picture with its name and other extensions are its columns."""

    def __init__(self) -> None:
        self._listed: dict[Path, dict[str, str]] = {}

    @abstractmethod
    def open(self, path: Path) -> Opened:
        """Opens a file for reading. Raises UndustError or OSError if that is not possible."""

    @abstractmethod
    def is_file(self, path: Path) -> bool:
        """Whether there is a regular file at a path."""

    @abstractmethod
    def names(self, folder: Path) -> list[str]:
        """The names of files and folders in a folder; none if it cannot be read."""

    @abstractmethod
    def walk(self, folder: Path, unread: Unread) -> Iterator[Path]:
        """The files in a folder and below; adds others to `unread`."""

    def folder_name(self, path: Path) -> str | None:
        """The name of a file's folder; None at the top of a container."""
        return as_text(path.parent.name)

    def folders(self, folder: Path) -> list[str]:
        """The names of the folders in a folder."""
        return [name for name in self.names(folder) if not self.is_file(folder / name)]

    def find(self, folder: Path, name: str) -> Path | None:
        """The file `name` in or below `folder`, or None."""
        for given in dict.fromkeys((name, name.replace("\\", "/"))):
            if self.is_file(path := folder / given):
                return path
            if (same := self._composed(folder, given)) and self.is_file(same):
                return same
        return None

    def inside(self, folder: Path, name: str, column: str) -> Path:
        """The file that a column names; LineError if it is absent or leads out of the folder."""
        if leads_out(name):
            wrong = (
                "has to be relative to the folder" if _anchored(name) else "leads out of the folder"
            )
            raise LineError(f"{column} {name!r} {wrong}")
        path = self.find(folder, name)
        if path is None:
            why = locale_lacks(name)
            wrong = f"cannot be found: {why}" if why else "does not exist"
            raise LineError(f"the picture '{printable(name)}' {wrong}")
        return path

    def _composed(self, folder: Path, name: str) -> Path | None:
        """The path in the Unicode form of the stored files, or None."""
        path = folder
        for part in Path(name).parts:
            if path not in self._listed:
                names = sorted(self.names(path), reverse=True)
                self._listed[path] = {unicodedata.normalize("NFC", each): each for each in names}
            same = self._listed[path].get(unicodedata.normalize("NFC", part))
            if same is None:
                return None
            path = path / same
        return path


class Disk(Storage):
    """Files on a disk. Links to folders are followed; each folder is read once."""

    def open(self, path: Path) -> Opened:
        """Opens a regular file."""
        return open_regular(path)

    def is_file(self, path: Path) -> bool:
        """Whether there is a regular file at a path."""
        try:
            return stat.S_ISREG(path.stat().st_mode)
        except (OSError, ValueError):  # absent, a name too long, or one with a null character
            return False

    def names(self, folder: Path) -> list[str]:
        """The names of files and folders in a folder; none if it cannot be read."""
        try:
            return os.listdir(folder)  # noqa: PTH208
        except (OSError, ValueError):
            return []

    def folders(self, folder: Path) -> list[str]:
        """The names of the folders in a folder, links to folders included."""
        return [name for name in self.names(folder) if (folder / name).is_dir()]

    def walk(self, folder: Path, unread: Unread) -> Iterator[Path]:
        """The files in a folder and below."""
        visited: set[tuple[int, int]] = set()
        for here, folders, names in os.walk(folder, followlinks=True):
            where = Path(here)
            folders[:] = sorted(_entered(where, folders, visited, unread))
            for name in sorted(names):
                path = where / name
                if is_hidden(name):
                    unread.hidden.append(path)
                elif not self.is_file(path):
                    (unread.links if path.is_symlink() else unread.skipped).append(path)
                else:
                    yield path


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or made by the operating system."""
    return name.startswith(".") or name.lower() in SYSTEM


def leads_out(name: str) -> bool:
    """Whether a relative name would lead out of its folder, on any system."""
    if name[:1] not in ("/", "\\") and ".." not in name and ":" not in name:
        return False
    parts = (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)
    return _anchored(name) or ".." in parts


def _anchored(name: str) -> bool:
    """Whether a name is a path from a root or a drive, on any system."""
    return PurePosixPath(name).is_absolute() or bool(PureWindowsPath(name).anchor)


def _entered(
    here: Path, names: list[str], visited: set[tuple[int, int]], unread: Unread
) -> list[str]:
    """The folders to read: of data, not hidden, and not visited already through a link."""
    entered: list[str] = []
    if not visited:
        visited.add(_identity(here))
    for name in sorted(names, key=lambda name: ((here / name).is_symlink(), name)):
        if is_hidden(name):
            unread.hidden.append(here / name)
            continue
        if is_output(here / name):
            unread.outputs.append(here / name)
            continue
        try:
            identity = _identity(here / name)
        except OSError:
            unread.links.append(here / name)
            continue
        if identity in visited:
            unread.links.append(here / name)
        else:
            visited.add(identity)
            entered.append(name)
    return entered


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
