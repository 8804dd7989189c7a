"""Hashes of large files, kept so that a model of gigabytes is hashed once and not at each start.

An entry is a small file in the user's cache folder. It holds as long as the file that was hashed
has the same device, inode, size and times of change; the system changes one of them with any
writing. Without a cache folder that can be written, nothing is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from undust.errors import UndustError
from undust.formats.files import atomic_write
from undust.formats.safetensors_file import content_hash
from undust.regular import read_bytes

LARGE = 2**26  # bytes; hashing fewer takes less than a tenth of a second
SETTLED = 2.0  # seconds since the last change, after which another one changes the time too


def known_hash(path: Path) -> str:
    """As `content_hash`, without reading a large file that has not changed since the last time.

    Not for finding damage: a disk that loses bits does not tell.
    """
    try:
        before = path.stat()
        entry = _folder() / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return content_hash(path)
    state = [
        *(before.st_dev, before.st_ino, before.st_size),
        *(before.st_mtime_ns, before.st_ctime_ns),
    ]
    if before.st_size < LARGE:
        return content_hash(path)
    if (known := _read(entry, state)) is not None:
        return known
    found = content_hash(path)
    if time.time() - max(before.st_mtime, before.st_ctime) > SETTLED:
        with suppress(OSError, UndustError):
            entry.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(entry, json.dumps({"state": state, "sha256": found}).encode())
    return found


def _folder() -> Path:
    """The cache folder as systems have it."""
    named = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(named) if named else Path.home() / ".cache") / "undust" / "hashes"


def _read(entry: Path, state: list[int]) -> str | None:
    """The hash in an entry; None if there is none for a file in this state."""
    with suppress(OSError, UndustError, ValueError, TypeError, KeyError):
        content = json.loads(read_bytes(entry))
        if content["state"] == state and re.fullmatch(r"[0-9a-f]{64}", content["sha256"]):
            return content["sha256"]
    return None
