"""The files of a folder of pictures: pictures, caption files, metadata, and all others."""

from __future__ import annotations

import os
import stat
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from undust.datasets.metadata import LineError
from undust.errors import printable
from undust.pictures import is_picture, suffixes
from undust.regular import locale_lacks

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # the first that exists is read
SIDECARS = (".txt", ".caption")  # caption files beside pictures; the first with text is read
SYSTEM = frozenset(  # files of operating systems and network disks, in lower case
    {
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"),
        *("__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "lost+found"),
        *("system volume information", "found.000", "__pycache__"),
    }
)
RAW = frozenset(  # of cameras: TIFF by content, but Pillow reads only the small preview
    {".dng", ".nef", ".nrw", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".pef", ".srw", ".raf", ".3fr"}
)


@dataclass
class Files:
    """The result of `find`, each list sorted by path.

    sidecars: picture → files of its caption, by precedence. hidden: hidden files and folders, and
    those of the system. links: broken ones, and those to a folder that is read already.
    skipped: files that are not pictures, or of a kind that is not read.
    """

    pictures: list[Path] = field(default_factory=list[Path])
    metadata: list[Path] = field(default_factory=list[Path])
    sidecars: dict[Path, list[Path]] = field(default_factory=dict[Path, list[Path]])
    hidden: list[Path] = field(default_factory=list[Path])
    links: list[Path] = field(default_factory=list[Path])
    skipped: list[Path] = field(default_factory=list[Path])


def find(folder: Path) -> Files:
    """All files in a folder and below; links to folders are followed, each folder is read once.

    A file is a picture by its extension, or else by its first bytes.
    """
    found = Files()
    visited: set[tuple[int, int]] = set()
    texts: dict[str, Path] = {}
    others: list[Path] = []
    for here, folders, names in os.walk(folder, followlinks=True):
        where = Path(here)
        folders[:] = sorted(_entered(where, folders, visited, found))
        for name in sorted(names):
            path = where / name
            ending = path.suffix.lower()
            if is_hidden(name):
                found.hidden.append(path)
            elif not _is_file(path):
                (found.links if path.is_symlink() else found.skipped).append(path)
            elif name.lower() in METADATA:
                found.metadata.append(path)
            elif ending in suffixes():
                found.pictures.append(path)
            elif ending in SIDECARS:
                texts[_key(path)] = path
            else:
                others.append(path)
    for path in others:
        raw = path.suffix.lower() in RAW
        (found.pictures if not raw and is_picture(path) else found.skipped).append(path)
    found.pictures.sort()
    for path in found.pictures:
        names = (f"{stem}{ending}" for ending in SIDECARS for stem in (path.with_suffix(""), path))
        for name in names:
            if sidecar := texts.get(_key(Path(name))):
                found.sidecars.setdefault(path, []).append(sidecar)
    used = {path for several in found.sidecars.values() for path in several}
    found.skipped = sorted([*found.skipped, *(set(texts.values()) - used)])
    return found


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or made by the operating system."""
    return name.startswith(".") or name.lower() in SYSTEM


class FileFinder:
    """Finds files by the names in metadata that was written on another system.

    Names with accents or Hangul have two forms in Unicode that look the same: macOS and some
    archives use the decomposed one, keyboards the composed one. Windows writes backslashes.
    """

    def __init__(self) -> None:
        self._listed: dict[Path, dict[str, str]] = {}

    def find(self, folder: Path, name: str) -> Path | None:
        """The file `name` in or below `folder`, or None."""
        for given in dict.fromkeys((name, name.replace("\\", "/"))):
            path = folder / given
            if _is_file(path) or ((path := self._composed(folder, given)) and _is_file(path)):
                return path
        return None

    def inside(self, folder: Path, name: str, column: str) -> Path:
        """The file that a column names; LineError if it is absent or leads out of the folder."""
        posix, windows = PurePosixPath(name), PureWindowsPath(name)
        if posix.is_absolute() or windows.anchor or ".." in (*posix.parts, *windows.parts):
            raise LineError(f"{column} {name!r} leads out of the folder")
        path = self.find(folder, name)
        if path is None:
            why = locale_lacks(name)
            wrong = f"cannot be found: {why}" if why else "does not exist"
            raise LineError(f"the picture '{printable(name)}' {wrong}")
        return path

    def _composed(self, folder: Path, name: str) -> Path | None:
        """The path in the Unicode form of the files on disk, or None."""
        path = folder
        for part in Path(name).parts:
            if path not in self._listed:
                try:
                    names = sorted((each.name for each in path.iterdir()), reverse=True)
                except (OSError, ValueError):
                    names = []
                self._listed[path] = {unicodedata.normalize("NFC", each): each for each in names}
            same = self._listed[path].get(unicodedata.normalize("NFC", part))
            if same is None:
                return None
            path = path / same
        return path


def _entered(
    here: Path, names: list[str], visited: set[tuple[int, int]], found: Files
) -> list[str]:
    """The folders to read: those not hidden, and not visited already through a link."""
    entered: list[str] = []
    if not visited:
        visited.add(_identity(here))
    for name in sorted(names, key=lambda name: ((here / name).is_symlink(), name)):
        if is_hidden(name):
            found.hidden.append(here / name)
            continue
        try:
            identity = _identity(here / name)
        except OSError:
            found.links.append(here / name)
            continue
        if identity in visited:
            found.links.append(here / name)
        else:
            visited.add(identity)
            entered.append(name)
    return entered


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):  # absent, a name too long, or one with a null character
        return False


def _key(path: Path) -> str:
    """A path as a key that ignores the Unicode form, and capitals in the extension."""
    return unicodedata.normalize("NFC", f"{path.with_suffix('')}{path.suffix.lower()}")
