"""Metadata that people wrote by hand or with other programs, and captions that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from containers import tar_of, write_parquet
from undust.datasets.image_folder import check, read
from undust.errors import UndustError


def pictures(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path, "png")
    return folder


META = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@pytest.mark.parametrize("kind", META)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"filename": "a.png", "text": "x"}, "filename, text; call filename file_name"),
        ({"filename": "a", "text": "x"}, "filename, text; call filename file_name"),
        ({"text": "x", "File Name": "a"}, "text, File Name; call File Name file_name"),
        ({"path": "sub\\b.png", "n": "b.png"}, "path, n; call path or n file_name"),
        ({"picture": "extensionless"}, "picture; call picture file_name"),
        ({"name": "of a person", "year": "1"}, "name, year"),
        ({"file_name": "", "filename": "a.png"}, "file_name, filename"),
        ({"a.png": "b.png", "x": "y"}, "a.png, x; the first line has to have the names of the co"),
    ],
)
def test_the_column_that_has_the_pictures_is_named(
    tmp_path: Path, kind: str, packed: bool, columns: dict[str, str], says: str
):
    folder = tmp_path / "data"
    pictures(folder, "a.png", "sub/b.png", "extensionless")
    if kind.endswith(".csv"):
        text = ",".join(columns) + "\n" + ",".join(columns.values())
        (folder / kind).write_text(text)
    elif kind.endswith(".jsonl"):
        (folder / kind).write_text(json.dumps(columns))
    else:
        write_parquet(folder / kind, {name: [value] for name, value in columns.items()})
    read_from = tar_of(folder, tmp_path / "data.tar") if packed else folder
    with pytest.raises(UndustError, match=rf"{kind} line \d: has no file_name") as error:
        read(read_from)
    assert str(error.value).split("its columns: ")[1].startswith(says)
    assert ("; " in says) == (str(error.value).count("; ") == 2)


@pytest.mark.parametrize(("mark", "said"), [(";", "';'"), ("\t", "tabs"), ("|", "'|'")])
def test_a_table_without_commas_is_one_fault(tmp_path: Path, mark: str, said: str):
    pictures(tmp_path, "a.png", "b.png")
    lines = [["file_name", "text"], ["a.png", "red, as a brick"], ["b.png", "blue"]]
    (tmp_path / "metadata.csv").write_text("\n".join(mark.join(line) for line in lines))
    report = check(tmp_path)
    assert report.broken == [
        f"{tmp_path}/metadata.csv line 1: has {said} between the names of columns; commas are read"
    ]
