"""Hashes of large files, kept so that a model of gigabytes is hashed once and not at each start.

An entry is a small file in the user's cache folder. It holds as long as the file that was hashed
has the same device, inode, size and times of change; the system changes one of them with any
writing.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path

from undust.formats.safetensors_file import content_hash
from undust.formats.user_cache import read_cached, write_cached

LARGE = 2**26  # bytes; hashing fewer takes less than a tenth of a second
SETTLED = 2.0  # seconds since the last change, after which another one changes the time too


def known_hash(path: Path) -> str:
    """As `content_hash`, without reading a large file that has not changed since the last time.

    Not for finding damage: a disk that loses bits does not tell.
    """
    try:
        before = path.stat()
        entry = f"hashes/{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()}"
    except (OSError, RuntimeError):  # RuntimeError: a loop of links
        return content_hash(path)
    state = [
        *(before.st_dev, before.st_ino, before.st_size),
        *(before.st_mtime_ns, before.st_ctime_ns),
    ]
    if before.st_size < LARGE:
        return content_hash(path)
    known = read_cached(entry)
    digits = known.get("sha256")
    if known.get("state") == state and re.fullmatch(r"[0-9a-f]{64}", str(digits)):
        return str(digits)
    found = content_hash(path)
    if time.time() - max(before.st_mtime, before.st_ctime) > SETTLED:
        write_cached(entry, {"state": state, "sha256": found})
    return found
