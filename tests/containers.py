"""Data sets in containers, written as other programs write them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from undust.datasets.samples import Sample


def write_tar(path: Path, members: Iterable[tuple[str, bytes | tarfile.TarInfo]]) -> Path:
    """An archive of files by name, or of headers without content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def tar_of(folder: Path, path: Path) -> Path:
    """An archive of all files of a folder, in no particular order."""
    files = [each for each in folder.rglob("*") if each.is_file()]
    return write_tar(path, ((f"./{f.relative_to(folder)}", f.read_bytes()) for f in files))


def web_dataset(samples: Sequence[Sample], folder: Path, shards: int = 1) -> Path:
    """Shards of a picture, its caption and its columns for each sample; as in img2dataset."""
    for shard in range(shards):
        own = samples[len(samples) * shard // shards : len(samples) * (shard + 1) // shards]
        members: list[tuple[str, bytes]] = []
        for sample in own:
            columns = dict(sample.columns)
            columns.pop("file_name", None)
            members.append((sample.path.name, sample.path.read_bytes()))
            if text := columns.pop("text", ""):
                members.append((f"{sample.path.stem}.txt", text.encode()))
            if columns:
                members.append((f"{sample.path.stem}.json", json.dumps(columns).encode()))
        write_tar(folder / f"{shard:03}.tar", members)
    return folder


def write_parquet(path: Path, columns: Mapping[str, Any], **options: Any) -> Path:
    """A table in a file, by pyarrow."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.table(columns), path, **options)
    return path


def parquet_of(samples: Sequence[Sample], folder: Path, shards: int = 1) -> Path:
    """Shards in the layout of Hugging Face's `datasets`."""
    names = dict.fromkeys(name for sample in samples for name in sample.columns)
    for shard in range(shards):
        own = samples[len(samples) * shard // shards : len(samples) * (shard + 1) // shards]
        images = [{"bytes": each.path.read_bytes(), "path": each.path.name} for each in own]
        texts = {name: [each.columns.get(name) for each in own] for name in names}
        path = folder / f"data/train-{shard:05}-of-{shards:05}.parquet"
        write_parquet(path, {"image": images, **texts}, row_group_size=2)
    return folder
