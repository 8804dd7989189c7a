"""Writing files so that a crash, a full disk or Ctrl-C never leaves half of one."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from undust.errors import UndustError


@contextmanager
def atomic(path: Path) -> Generator[Path]:
    """Gives a temporary path beside `path` to write to; at the end it becomes `path`, all at once.

    The bytes are on the disk before the name is. If the body fails, nothing is left and an older
    `path` is as it was. Raises UndustError if the folder is absent, unwritable or full, or if
    `path` is something that a file must not replace.
    """
    target = path.resolve()  # a link stays a link: what it points at is replaced
    if target.exists() and not target.is_file():
        raise UndustError(f"cannot write {path}: it is there already and is not a file")
    temporary = target.with_name(f".undust-{secrets.token_hex(6)}.tmp")
    try:
        with _explained(path, temporary):
            yield temporary
            _sync(temporary)
            temporary.replace(target)
            _sync(target.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def atomic_write(path: Path, content: bytes) -> None:
    """Writes `content` to `path` whole or not at all; UndustError as `atomic` says."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def make_folder(path: Path) -> None:
    """Makes a folder and those above it. Raises UndustError if it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UndustError(f"cannot make the folder {path}: {error.strerror}") from error


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Generator[Path]:
    """Gives an empty folder beside `path` to fill; at the end it becomes `path`, all at once.

    What a killed run left of an earlier attempt is removed first. An existing `path` is refused
    unless it is empty or `replace` is given. Raises UndustError as `atomic` does.
    """
    target = path.resolve()
    if target.exists() and not target.is_dir():
        raise UndustError(f"cannot write the folder {path}: there is a file of that name")
    building, old = (target.with_name(f".{target.name}.{state}") for state in ("new", "old"))
    with _explained(path, building):
        if not replace and target.exists() and any(target.iterdir()):
            raise UndustError(f"cannot write the folder {path}: it is there already and not empty")
        # The names are fixed, so that the next attempt finds and removes this one's leftovers.
        if old.exists() and not target.exists():
            old.rename(target)  # killed between the two renames: the older one is still the one
        for leftover in (building, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        building.mkdir()
        try:
            yield building
            for folder, _, files in os.walk(building):
                for name in files:
                    _sync(Path(folder, name))
                _sync(Path(folder))
            if target.exists():
                target.rename(old)
            try:
                building.rename(target)
            except OSError:
                if old.exists():
                    old.rename(target)
                raise
            _sync(target.parent)
        finally:
            for leftover in (building, old):
                shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _explained(path: Path, temporary: Path) -> Generator[None]:
    """Turns the system's refusal into a line that names what was being written, as it was asked."""
    try:
        yield
    except UndustError as error:
        if str(temporary) in str(error):
            raise UndustError(str(error).replace(str(temporary), str(path))) from error
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, FileNotFoundError) and not path.resolve().parent.is_dir():
            reason = f"the folder {path.parent} does not exist"
        raise UndustError(f"cannot write {path}: {reason}") from error


def _sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no such call for folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
