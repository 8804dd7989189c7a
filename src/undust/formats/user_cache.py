"""What undust keeps in the user's cache folder: small JSON files, which may be deleted.

Without a folder that can be written, nothing is kept.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from undust.errors import UndustError
from undust.formats.files import atomic_write
from undust.regular import read_bytes


def cache_folder() -> Path | None:
    """The folder as systems have it; None for a user without a home."""
    named = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        return (Path(named) if named else Path.home() / ".cache") / "undust"
    except RuntimeError:
        return None


def read_cached(name: str) -> dict[str, Any]:
    """The object in a file of that name in the folder; {} without one."""
    folder = cache_folder()
    with suppress(OSError, UndustError, ValueError, RecursionError):
        if folder and isinstance(found := json.loads(read_bytes(folder / name)), dict):
            return found
    return {}


def write_cached(name: str, value: dict[str, Any]) -> None:
    """Writes such a file, if possible."""
    folder = cache_folder()
    with suppress(OSError, UndustError):
        if folder:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            atomic_write(folder / name, json.dumps(value).encode())
