"""Pictures with captions in the folder convention of Hugging Face's `imagefolder`.

A folder holds pictures and a `metadata.jsonl`, one JSON object a line: `file_name` (relative to the
folder), `text` (the caption), and if wanted captions in other languages (`text_ko`, …), `concept`
(pictures of one concept share their turn in training) and `split` ("train" or "test").
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal, cast

from PIL import Image, ImageOps

from undust.errors import UndustError, shown
from undust.regular import open_regular

METADATA = "metadata.jsonl"
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
Split = Literal["train", "test"]


@dataclass(frozen=True)
class Sample:
    """One picture: its file, its captions by field (`text`, `text_ko`, …), its group and split."""

    path: Path
    captions: Mapping[str, str]
    group: str
    split: Split = "train"


def read(
    folder: Path | str,
    *,
    split: Split | None = None,
    on_error: Literal["refuse", "skip"] = "refuse",
) -> list[Sample]:
    """The samples of a folder (of one `split`, or all), in the order of metadata.jsonl.

    Without metadata.jsonl every picture in the folder and below is a sample without captions, in
    the order of names. With "refuse" a bad line is an `UndustError` that names it; a picture that
    cannot be decoded is found when it is opened. With "skip" both are left out, which costs
    decoding every picture once.
    """
    samples: list[Sample] = []
    for result in scan(folder):
        if isinstance(result, UndustError):
            if on_error == "refuse":
                raise result
        elif split in (None, result.split) and (on_error == "refuse" or _opens(result.path)):
            samples.append(result)
    return samples


def scan(folder: Path | str) -> Iterator[Sample | UndustError]:
    """Each line of the folder's metadata, as a sample or as the error that is in it."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UndustError(f"{folder} is not a folder of pictures")
    metadata = folder / METADATA
    if not metadata.exists():
        yield from _without_captions(folder)
        return
    try:
        with open_regular(metadata) as file:
            lines = file.read().split(b"\n")
    except OSError as error:
        raise UndustError(f"cannot read {metadata}: {error.strerror}") from error
    line_of: dict[Path, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            sample = _sample(folder, line)
            if sample.path in line_of:
                name = sample.path.relative_to(folder).as_posix()
                raise _LineError(f"file_name {name!r} is on line {line_of[sample.path]} already")
            line_of[sample.path] = number
            yield sample
        except _LineError as error:
            yield UndustError(f"{metadata} line {number}: {error}")


def open_picture(path: Path) -> Image.Image:
    """The decoded picture, turned upright; broken or too large is an `UndustError`."""
    try:
        with warnings.catch_warnings(), open_regular(path) as file, Image.open(file) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return ImageOps.exif_transpose(image)
    except UndustError:
        raise
    except Exception as error:  # on broken bytes Pillow's decoders raise nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UndustError(f"cannot read the picture {path}: {reason}") from error


def write(folder: Path | str, rows: Iterable[Mapping[str, str]]) -> None:
    """Write metadata.jsonl, one row a line, whole or not at all."""
    path = Path(folder) / METADATA
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(json.dumps(dict(row), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UndustError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


@dataclass
class Report:
    """What `check` found.

    Counts of pictures by split and by size (width, height); of captions by field, and of their
    lengths in characters by field; the number of groups; pictures that no line names; and a
    sentence for each thing that is wrong.
    """

    splits: Counter[str] = field(default_factory=Counter[str])
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter[tuple[int, int]])
    captions: Counter[str] = field(default_factory=Counter[str])
    lengths: dict[str, Counter[int]] = field(default_factory=dict[str, Counter[int]])
    groups: int = 0
    unlisted: list[str] = field(default_factory=list[str])
    broken: list[str] = field(default_factory=list[str])

    @property
    def pictures(self) -> int:
        """How many pictures can be used."""
        return self.splits.total()


def check(folder: Path | str) -> Report:
    """Read all of a data set, decode every picture, and report what is there and what is wrong."""
    folder, report = Path(folder), Report()
    groups: set[str] = set()
    listed: set[Path] = set()
    for result in scan(folder):
        if isinstance(result, UndustError):
            report.broken.append(str(result))
            continue
        listed.add(result.path)
        try:
            report.sizes[open_picture(result.path).size] += 1
        except UndustError as error:
            report.broken.append(str(error))
            continue
        report.splits[result.split] += 1
        groups.add(result.group)
        for key, caption in result.captions.items():
            report.captions[key] += 1
            report.lengths.setdefault(key, Counter())[len(caption)] += 1
    report.groups = len(groups)
    report.unlisted = [p.relative_to(folder).as_posix() for p in _pictures(folder) - listed]
    report.unlisted.sort()
    return report


class _LineError(ValueError):
    """What is wrong with a line, without saying which line."""


def _without_captions(folder: Path) -> Iterator[Sample]:
    for other in sorted([*folder.rglob(METADATA), *folder.glob("metadata.*")]):
        raise UndustError(f"{folder} has no {METADATA}, but there is {other}; is it misplaced?")
    paths = sorted(_pictures(folder))
    if not paths:
        raise UndustError(f"{folder} holds neither {METADATA} nor pictures")
    for path in paths:
        yield Sample(path, {}, path.relative_to(folder).as_posix())


def _pictures(folder: Path) -> set[Path]:
    return {p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()}


def _opens(path: Path) -> bool:
    try:
        open_picture(path)
    except UndustError:
        return False
    return True


def _sample(folder: Path, line: bytes) -> Sample:
    fields = _fields(line)
    name = _string(fields, "file_name")
    if not name:
        raise _LineError("has no file_name, the picture's path in the folder")
    path = _path(folder, name)
    keys = [key for key in fields if key == "text" or key.startswith("text_")]
    captions = {key: _string(fields, key) for key in keys}
    split = fields.get("split") or "train"
    if split not in ("train", "test"):
        raise _LineError(f'split is {split!r}, neither "train" nor "test"')
    present = {key: caption for key, caption in captions.items() if caption}
    return Sample(path, present, _string(fields, "concept") or name, split)


def _fields(line: bytes) -> dict[str, Any]:
    try:
        fields: object = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _LineError("is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise _LineError(f"is not JSON: {error.msg} at character {error.pos + 1}") from error
    except (ValueError, RecursionError) as error:  # a number too long, brackets too deep
        raise _LineError(f"is not JSON that can be read: {error}") from error
    if not isinstance(fields, dict):
        raise _LineError(f"is {_kind(fields)}, not an object")
    return cast(dict[str, Any], fields)


def _string(fields: Mapping[str, Any], key: str) -> str:
    """The field's text; empty if it is absent or null, as tables exported with gaps have it."""
    value = fields.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _LineError(f"{key} is {_kind(value)}, not a string")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise _LineError(f"{key} holds half of a surrogate pair, which is no character")
    return value


def _path(folder: Path, name: str) -> Path:
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if posix.is_absolute() or windows.anchor or ".." in (*posix.parts, *windows.parts):
        raise _LineError(f"file_name {name!r} leads out of the folder")
    path = folder / name
    try:
        present = path.is_file()
    except (OSError, ValueError):  # a name too long, or with a null character
        present = False
    if not present:
        raise _LineError(f"the picture '{shown(name)}' does not exist")
    return path


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"
