"""Converted networks in the user's cache folder, so that each is converted once.

An entry is a folder with the network as OpenVINO saves it and the hashes of the two files. It is
written as a whole. Without a cache folder that can be written, nothing is kept.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from undust.errors import UndustError
from undust.formats.files import atomic_folder, make_folder, remove_folder
from undust.formats.known_hashes import known_hash
from undust.formats.user_cache import cache_folder
from undust.regular import read_bytes

LIMIT = 20 * 2**30  # bytes of all entries; a network in float32 is as large as its weights
NETWORK, FILES, HASHES = "network.xml", ("network.xml", "network.bin"), "hashes.json"
FAILURES = (OSError, UndustError, RuntimeError, ValueError)


def find(key: str) -> Path | None:
    """The saved network of a key; None if there is none, or another than was written."""
    with suppress(*FAILURES):
        folder = _entries() / key
        if json.loads(read_bytes(folder / HASHES)) == _hashes(folder):
            with suppress(OSError):
                os.utime(folder)  # when it was last used
            return folder / NETWORK
    return None


def keep(key: str, save: Callable[[Path], object]) -> Path | None:
    """Makes an entry; None if that fails. save: writes the network to a path."""
    with suppress(*FAILURES):
        folder = _entries() / key
        make_folder(folder.parent)
        with atomic_folder(folder, replace=True) as building:
            save(building / NETWORK)
            (building / HASHES).write_text(json.dumps(_hashes(building)), "utf-8")
        os.utime(folder)
        _drop_oldest()
        return folder / NETWORK
    return None


def _entries() -> Path:
    folder = cache_folder()
    if folder is None:
        raise OSError("there is no cache folder")
    return folder / "openvino"


def _hashes(folder: Path) -> dict[str, str]:
    return {name: known_hash(folder / name) for name in FILES}


def _drop_oldest() -> None:
    """Removes the entries that were used least recently while all take more than `LIMIT`."""
    found = [entry for entry in _entries().iterdir() if re.fullmatch(r"[0-9a-f]{64}", entry.name)]
    newest, *others = sorted(found, key=lambda entry: entry.stat().st_mtime_ns, reverse=True)
    total = _size(newest)
    for entry in others:
        total += _size(entry)
        if total > LIMIT:
            with suppress(UndustError):
                remove_folder(entry)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
