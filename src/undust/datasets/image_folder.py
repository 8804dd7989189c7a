"""Data sets of pictures with captions: folders, WebDataset's tars, Parquet.

In a folder, on a disk or in a tar, three layouts are read. With a `metadata.jsonl`, `.csv` or
`.parquet` (the convention of Hugging Face's `imagefolder`) the pictures are those that its rows
name: `file_name` (relative to its folder), the columns of captions (`text`, or any other), and
optionally `concept` (pictures of one concept share their turn in training) and `split`. There may
also be such a file in each subfolder. Without one, all pictures in the folder and below are read,
each with the caption in a file beside it: `cat.txt` or `cat.caption` for `cat.png`. Beside a folder
`train`, folders such as `test` and `validation` are splits; beside a folder `images`, folders such
as `depth` with pictures of the same names are maps.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from undust.datasets import parquet_pictures, shards
from undust.datasets.archives import Archive
from undust.datasets.folder_scan import FolderScan
from undust.datasets.samples import Contents, Sample, Split, alike
from undust.datasets.storage import Disk
from undust.errors import UndustError, printable
from undust.formats.files import atomic_write
from undust.regular import open_regular

METADATA = "metadata.jsonl"
READERS = 4  # threads
TAR, PARQUET = ".tar", ".parquet"


def read(
    folder: Path | str,
    *,
    split: Split | None = None,
    on_error: Literal["refuse", "skip"] = "refuse",
) -> list[Sample]:
    """The samples of a data set, of one `split` or all; see `scan`.

    on_error: with "refuse" a wrong row raises an UndustError that names it, and so does a file
    whose header is not of a readable picture. With "skip" both are left out, and pictures that
    cannot be decoded, for which each is decoded once.
    """
    return usable(scan(folder), split=split, on_error=on_error)


def usable(
    found: Contents,
    *,
    split: Split | None = None,
    on_error: Literal["refuse", "skip"] = "refuse",
) -> list[Sample]:
    """The samples that can be used; the options are those of `read`."""
    samples: list[Sample] = []
    errors = [*found.broken]
    for sample in found.samples:
        if split not in (None, sample.split):
            continue
        try:
            sample.check_header() if on_error == "refuse" else sample.image()
        except UndustError as error:
            errors.append(error)
        else:
            samples.append(sample)
    if on_error == "refuse" and errors:
        first, *others = errors
        more = f"; {len(others)} more errors, which `undust data check` lists" if others else ""
        raise UndustError(f"{first}{more}")
    return samples


def scan(folder: Path | str, kinds: Collection[str] = ()) -> Contents:
    """Lists a data set without decoding pictures.

    folder: with pictures; a .tar or .parquet file, a folder of them, or a pattern of their names
    such as shards/{000..015}.tar. kinds: extensions of further files that are samples, in lower
    case. Raises UndustError for a folder without pictures.
    """
    folder = Path(folder)
    if folder.is_dir():
        files = FolderScan(folder, Disk(), kinds=kinds)
        if files.empty:
            for ending in (TAR, PARQUET):
                inside = [path for path in files.files.skipped if path.suffix.lower() == ending]
                if inside:
                    found = _scan_files(ending, inside, folder, kinds)
                    rest = (each for each in files.files.skipped if each not in {*inside})
                    found.skipped += [path.relative_to(folder).as_posix() for path in rest]
                    return found
        return files.result()
    paths = [folder] if folder.exists() else shards.expand(folder)
    absent = [path for path in paths if not path.exists()]
    if absent:
        of = f", of {len(paths)} files in {folder}" if len(paths) > 1 else ""
        raise UndustError(f"{absent[0]} does not exist{of}")
    return _scan_files(_kind(paths[0]), paths, folder.parent, kinds)


def write(folder: Path | str, rows: Iterable[Mapping[str, str]]) -> None:
    """Writes metadata.jsonl, one row a line, whole or not at all."""
    lines = (json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
    atomic_write(Path(folder) / METADATA, "".join(lines).encode())


@dataclass
class DataReport:
    """The result of `check`.

    Numbers of pictures by split and by size (width, height); of captions by column, and of their
    lengths in characters; of groups; an error for each broken file or row; numbers of colour
    conversions and of maps of other proportions; and the data set's contents.
    """

    contents: Contents
    samples: list[Sample] = field(default_factory=list[Sample])
    splits: Counter[str] = field(default_factory=Counter[str])
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter[tuple[int, int]])
    captions: Counter[str] = field(default_factory=Counter[str])
    lengths: dict[str, Counter[int]] = field(default_factory=dict[str, Counter[int]])
    groups: int = 0
    broken: list[str] = field(default_factory=list[str])
    conversions: Counter[str] = field(default_factory=Counter[str])

    @property
    def pictures(self) -> int:
        """The number of pictures that can be used."""
        return self.splits.total()


def check(
    folder: Path | str, observe: Callable[[int, int], None] = lambda _done, _all: None
) -> DataReport:
    """Reads all of a data set, decodes every picture, and reports contents and errors.

    observe: called with the number of pictures decoded, and of all.
    """
    return examine(scan(folder), observe)


def examine(
    found: Contents,
    observe: Callable[[int, int], None] = lambda _done, _all: None,
    fault: Callable[[Sample], str] = lambda _sample: "",
) -> DataReport:
    """The report of `check` on a data set that was listed.

    fault: tells what else is wrong with a picture that can be read, "" if nothing is.
    """
    report = DataReport(found)
    report.broken = [str(error) for error in report.contents.broken]
    samples = report.contents.samples
    with ThreadPoolExecutor(READERS) as readers:
        pairs = zip(samples, readers.map(partial(_decoded, fault=fault), samples), strict=True)
        for done, (sample, result) in enumerate(pairs, 1):
            observe(done, len(samples))
            if isinstance(result, UndustError):
                report.broken.append(str(result))
                continue
            size, conversions, faults = result
            report.broken += faults
            report.sizes[size] += 1
            report.conversions.update(conversions)
            report.samples.append(sample)
            report.splits[sample.split] += 1
            for key, caption in sample.captions.items():
                report.captions[key] += 1
                report.lengths.setdefault(key, Counter())[len(caption)] += 1
    report.groups = len({sample.group for sample in report.samples})
    return report


def _decoded(
    sample: Sample, fault: Callable[[Sample], str]
) -> tuple[tuple[int, int], list[str], list[str]] | UndustError:
    """A picture's size and colour conversions, its other faults and its maps'; or its own error."""
    try:
        size, converted = sample.image().size, sample.conversions()
        errors = [each] if (each := fault(sample)) else []
    except UndustError as error:
        return error
    for column in sample.maps:
        try:
            if not alike(size, sample.beside(column).size):
                converted.append(f"a map in {printable(column)} of other proportions than theirs")
        except UndustError as error:
            errors.append(str(error))
    return size, converted, errors


def _kind(path: Path) -> str:
    """The extension of a file's kind, by its content if it has none of the known extensions."""
    if path.suffix.lower() in (TAR, PARQUET):
        return path.suffix.lower()
    try:
        with open_regular(path) as file:
            start = file.read(300)
    except OSError as error:
        raise UndustError(f"cannot read {path}: {error.strerror}") from error
    if start.startswith(b"PAR1"):
        return PARQUET
    if start[257:262] == b"ustar" or ".tar" in path.name.lower() or path.suffix.lower() == ".tgz":
        return TAR
    unpack = "; unpack it first" if start.startswith((b"PK\3\4", b"7z\xbc\xaf", b"Rar!")) else ""
    raise UndustError(f"{path} is neither a folder of pictures nor a .tar or .parquet file{unpack}")


def _scan_files(kind: str, paths: Sequence[Path], folder: Path, kinds: Collection[str]) -> Contents:
    """The samples of containers; folder: above which their names have no meaning."""
    if kind == PARQUET:
        found = parquet_pictures.scan(paths, folder)
    else:
        found = _scan_archives(paths, folder, kinds)
    words = "WebDataset" if kind == TAR else "Parquet"
    found.kind = f"{words}, {len(paths)} {kind} file{'s' if len(paths) != 1 else ''}"
    if absent := shards.absent(paths):
        found.remarks.append(f"absent files of the data set: {', '.join(absent)}")
    if not found.samples:
        if found.broken:
            raise found.broken[0]
        raise UndustError(f"{paths[0]}{' and others' if len(paths) > 1 else ''} has no pictures")
    return found


def _scan_archives(paths: Sequence[Path], folder: Path, kinds: Collection[str]) -> Contents:
    """Tar files as folders, together."""
    found = Contents()
    names: set[str] = set()
    named: list[tuple[tuple[str, ...], Sample]] = []
    listed = False
    for path, split in zip(paths, shards.splits(paths, folder), strict=True):
        try:
            archive = Archive(path)
        except UndustError as error:
            found.broken.append(error)
            continue
        scan = FolderScan(path, archive, split, kinds)
        found.broken += archive.faults
        if scan.empty:
            rest = (each.relative_to(path) for each in scan.files.skipped)
            found.skipped += [f"{path.name}/{each}" for each in rest] or [path.name]
            continue
        listed = listed or bool(scan.sources)
        part = scan.result()
        for sample in part.samples:
            name = sample.path.relative_to(path).as_posix()
            if name in names and sample.group == name:
                sample = replace(sample, group=f"{path.name}/{name}")
            names.add(name)
            named.append((Path(name).parts, sample))
        found.add(part, f"{path.name}/")
    if not listed:  # as in a folder
        named.sort(key=lambda each: each[0])
    found.samples = [sample for _, sample in named]
    return found
