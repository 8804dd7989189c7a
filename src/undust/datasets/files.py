"""The files of a folder of pictures: pictures, caption files, metadata, and all others."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from undust.datasets.storage import Storage, Unread
from undust.pictures import is_picture, suffixes

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # the first that exists is read
TABLES = (".jsonl", ".csv", ".tsv", ".parquet", "metadata.json")  # ends of names of metadata
SIDECARS = (".txt", ".caption")  # caption files beside pictures; the first with text is read
COLUMNS = (".json", ".cls")  # of WebDataset: files with columns of the picture
RAW = frozenset(  # of cameras: TIFF by content, but Pillow reads only the small preview
    {".dng", ".nef", ".nrw", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".pef", ".srw", ".raf", ".3fr"}
)


@dataclass
class Files(Unread):
    """The result of `find`, each list sorted by path.

    pictures: and files of further kinds that were asked for. sidecars: picture → files of its
    caption, by precedence. columns: picture → files of its columns. maps: picture → its maps by
    column, where they are files with its name before theirs.
    """

    pictures: list[Path] = field(default_factory=list[Path])
    metadata: list[Path] = field(default_factory=list[Path])
    sidecars: dict[Path, list[Path]] = field(default_factory=dict[Path, list[Path]])
    columns: dict[Path, list[Path]] = field(default_factory=dict[Path, list[Path]])
    maps: dict[Path, dict[str, Path]] = field(default_factory=dict[Path, dict[str, Path]])


def find(folder: Path, storage: Storage, kinds: Collection[str] = ()) -> Files:
    """All files in a folder and below. A file is a picture by its extension, or its first bytes.

    kinds: further extensions, in lower case, of files that count as pictures.
    """
    found = Files()
    endings = {*SIDECARS, *(COLUMNS if storage.keyed else ())}
    texts: dict[str, Path] = {}
    others: list[Path] = []
    for path in storage.walk(folder, found):
        ending = path.suffix.lower()
        if path.name.lower() in METADATA:
            found.metadata.append(path)
        elif ending in suffixes() or ending in kinds:
            found.pictures.append(path)
        elif ending in endings:
            texts[_composed(f"{path.with_suffix('')}{ending}")] = path
        else:
            others.append(path)
    for path in others:
        raw = path.suffix.lower() in RAW
        is_one = not raw and is_picture(path, storage.open)
        (found.pictures if is_one else found.skipped).append(path)
    found.pictures.sort(key=lambda path: path.parts)
    if storage.keyed:
        _take_maps(found, kinds)
    used: set[Path] = set()
    for path in found.pictures if texts else ():
        stems = [_composed(f"{stem}") for stem in (path.with_suffix(""), path)]
        for extensions, beside in ((SIDECARS, found.sidecars), (COLUMNS, found.columns)):
            keys = (f"{stem}{ending}" for ending in extensions for stem in stems)
            if several := [text for key in keys if (text := texts.get(key))]:
                beside[path] = several
                used.update(several)
    found.skipped = sorted([*found.skipped, *(set(texts.values()) - used)])
    return found


def _take_maps(found: Files, kinds: Collection[str]) -> None:
    """Moves pictures such as cat.depth.png, beside cat.jpg, from the pictures to its maps."""
    by_stem = {path.with_suffix(""): path for path in found.pictures}
    kept: list[Path] = []
    for path in found.pictures:
        stem = path.with_suffix("")
        is_one = path.suffix.lower() not in kinds
        if is_one and stem.suffix and (picture := by_stem.get(stem.with_suffix(""))):
            found.maps.setdefault(picture, {})[stem.suffix[1:]] = path
        else:
            kept.append(path)
    found.pictures = kept


def _composed(name: str) -> str:
    """A name in the composed form of Unicode, whatever its own."""
    return unicodedata.normalize("NFC", name)
