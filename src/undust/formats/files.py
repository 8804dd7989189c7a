"""Atomic writing: a crash, a full disk, Ctrl-C or a second writer never leaves a partial file.

Files are built in a locked folder `.undust-*.tmp` beside their final place. The lock distinguishes
the folder of a live writer from that of a killed one, which the next write beside it removes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from undust.errors import UndustError
from undust.formats.locks import FileLock, LockedError
from undust.interrupts import ending

MAX_ATTEMPTS = 100  # where other processes write too
DAY = 86_400.0  # seconds
T = TypeVar("T")


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with "~" or "~user" at its beginning replaced by the home folder, as in shells."""
    path = Path(path)
    try:
        return path.expanduser()
    except (RuntimeError, ValueError):  # no such user, or no home
        return path


@contextmanager
def atomic(path: Path) -> Generator[Path]:
    """Yields a temporary path beside `path` to write to; at the end it is renamed to `path`.

    The contents are synced to disk before the rename. If the body fails, nothing is left and an
    older `path` is unchanged. Raises UndustError if the folder is absent, unwritable or full, or if
    `path` exists and is not a file.
    """
    target = path.resolve()  # a link stays a link: its target is replaced
    if target.exists() and not target.is_file():
        raise UndustError(f"cannot write {path}: it exists and is not a file")
    with workspace(path, target.parent) as place:
        temporary = place / "new"
        yield temporary
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)


def atomic_write(path: Path, content: bytes) -> None:
    """Writes `content` to `path` atomically; errors as for `atomic`."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def make_folder(path: Path) -> None:
    """Makes a folder and its parents. Raises UndustError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UndustError(f"cannot make the folder {path}: {error.strerror}") from error


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Generator[Path]:
    """Yields an empty folder beside `path` to fill; at the end it is renamed to `path`.

    An existing `path` is refused unless it is empty or `replace` is given. It is exchanged for the
    new folder in one step, so that `path` is complete at any time and the last of several writers
    wins. Where the system or the file system cannot exchange (Windows, some network mounts), the
    old folder is first moved aside and `path` is absent for a moment. Raises UndustError as
    `atomic`.
    """
    target = path.resolve()
    with suppress(OSError):
        if not stat.S_ISDIR(target.stat().st_mode):  # in one look: another writer may move it
            raise UndustError(f"cannot write the folder {path}: there is a file of that name")
    restore(target)
    if not replace:
        check_new_folder(path)
    with workspace(path, target.parent) as place:
        building = place / "new"
        building.mkdir()
        yield building
        for folder, _, files in os.walk(building):
            for name in files:
                _sync(Path(folder, name))
            _sync(Path(folder))
        for _ in range(MAX_ATTEMPTS):
            if not replace:
                check_new_folder(path)
            if _put(building, target, place / "old", replace=replace):
                break
        else:
            raise UndustError(f"cannot write {path}: other processes keep writing it")
        _sync(target.parent)


def check_new_folder(path: Path) -> None:
    """Raises UndustError for a folder that has something in it, so that it is not replaced."""
    if _filled(path.resolve()):
        raise UndustError(f"cannot write the folder {path}: it exists and is not empty")


def remove_folder(path: Path) -> None:
    """Removes a folder: after a crash it is complete or absent. Raises UndustError if it stays."""
    with workspace(path, path.parent) as place:
        path.rename(place / "new")


def restore(path: Path) -> None:
    """Restores a folder whose writer was killed after moving it aside; else does nothing."""
    _remove_leftovers(path.parent)
    # Earlier versions built a folder in .NAME.new and moved the one before it to .NAME.old.
    building, old = (path.with_name(f".{path.name}.{state}") for state in ("new", "old"))
    with suppress(OSError):
        if old.is_dir() and not path.exists():
            old.rename(path)
    for leftover in (building, old):
        shutil.rmtree(leftover, ignore_errors=True)


def read_whole(folder: Path, read: Callable[[], T]) -> T:
    """The result of `read` on one consistent version of a folder.

    It is called again if the folder was replaced meanwhile. Raises UndustError if that happens
    every time.
    """
    for _ in range(MAX_ATTEMPTS):
        before = _identity(folder)
        try:
            result = read()
        except UndustError:
            if _identity(folder) == before:
                raise
        else:
            if _identity(folder) == before:
                return result
    raise UndustError(f"{folder} cannot be read: other processes keep replacing it")


def _identity(folder: Path) -> tuple[int, ...]:
    """Numbers that identify this folder among others at the same path."""
    try:
        found = folder.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _filled(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except FileNotFoundError:
        return False


@contextmanager
def workspace(path: Path, parent: Path) -> Generator[Path]:
    """A locked folder in `parent` to write `path` in, as `new`; removed at the end.

    That of a killed process is removed by the next write in `parent`. Errors of the system become
    an UndustError that names `path`.
    """
    _remove_leftovers(parent)
    place, lock = parent, None
    try:
        while lock is None:
            place = parent / f".undust-{secrets.token_hex(6)}.tmp"
            place.mkdir()
            with suppress(FileNotFoundError, LockedError):  # removed before it was locked
                lock = FileLock(place / "lock")
        with ending(partial(_remove, place, lock, parent)):
            yield place
    except UndustError as error:
        if str(place / "new") in str(error):
            raise UndustError(str(error).replace(str(place / "new"), str(path))) from error
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, PermissionError):  # which of its two numbers depends on the system
            reason = os.strerror(errno.EACCES)
        if isinstance(error, FileNotFoundError) and not parent.is_dir():
            reason = f"the folder {path.parent} does not exist"
        raise UndustError(f"cannot write {path}: {reason}") from error
    finally:
        try:
            _remove(place, lock, parent)
        except KeyboardInterrupt:  # nothing stays after Ctrl-C either
            _remove(place, lock, parent)
            if place != parent:
                shutil.rmtree(place, ignore_errors=True)
            raise


def _remove(place: Path, lock: FileLock | None, parent: Path) -> None:
    if lock:
        _discard(place, lock)
    elif place != parent:
        shutil.rmtree(place, ignore_errors=True)


def _remove_leftovers(parent: Path) -> None:
    """Removes the workspaces of killed writers, after restoring folders they had moved aside."""
    with suppress(OSError):
        found = [Path(entry) for entry in os.scandir(parent) if entry.name.startswith(".undust-")]
        for place in found:
            if place.suffix == ".tmp":
                _remove_if_dead(place)


def _remove_if_dead(place: Path) -> None:
    with suppress(OSError, LockedError):
        if not place.is_dir():  # of an earlier version, which did not lock
            if time.time() - place.stat().st_mtime > DAY:
                place.unlink()
            return
        lock = FileLock(place / "lock")
        if lock.certain:
            _discard(place, lock)


def _discard(place: Path, lock: FileLock) -> None:
    """Removes a workspace, after restoring a folder that was moved aside in it.

    The lock goes last: until then no other process takes the workspace for abandoned, and after
    that one that has just locked it keeps it.
    """
    with suppress(OSError):
        for folder in place.glob("old/*"):
            if not place.with_name(folder.name).exists():
                folder.rename(place.with_name(folder.name))
        (place / "old").rename(place / "done")  # half of it is nothing to bring back
    with suppress(OSError):
        for entry in place.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry != lock.path:
                entry.unlink()
    lock.release()
    with suppress(OSError):
        place.rmdir()


def _put(new: Path, target: Path, aside: Path, *, replace: bool) -> bool:
    """Renames `new` to `target`; False, and nothing done, if another writer was faster.

    The folder that was there before is then at `new` or in `aside`.
    """
    try:
        new.rename(target)  # where there is none, or an empty one
        return True
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    if not replace and _filled(target):
        return False
    if replace and _exchange(new, target):
        return True
    moved = aside / target.name
    shutil.rmtree(moved, ignore_errors=True)
    aside.mkdir(exist_ok=True)
    try:
        target.rename(moved)
    except FileNotFoundError:
        return False
    try:
        new.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        moved.rename(target)
        raise
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; False if that is not supported."""
    call = _exchange_call()
    return call is not None and call(os.fsencode(one), os.fsencode(other)) == 0


@cache
def _exchange_call() -> Callable[[bytes, bytes], int] | None:
    """The system's call (renameat2 of Linux, renamex_np of macOS), or None if it has none."""
    here, exchange = -100, 2  # AT_FDCWD; RENAME_EXCHANGE, and RENAME_SWAP
    if sys.platform not in ("linux", "darwin"):
        return None
    try:
        library = ctypes.CDLL(None)
        if sys.platform == "darwin":
            swap = library.renamex_np
            return lambda one, other: swap(one, other, ctypes.c_uint(exchange))
        rename = library.renameat2
        return lambda one, other: rename(here, one, here, other, ctypes.c_uint(exchange))
    except (OSError, AttributeError):
        return None


def _sync(path: Path) -> None:
    """Waits until a file's contents, or a folder's entries, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no such call for folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
