"""Metadata that people wrote by hand or with other programs, and captions that are none."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from containers import tar_of, write_parquet
from undust.datasets import metadata
from undust.datasets.image_folder import check, read, scan, write
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


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=4),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be"]),
)
def test_text_has_the_encoding_that_its_byte_order_mark_names(texts: list[str], encoding: str):
    """UTF-16, as of PowerShell's ">" and of spreadsheets, is the same text."""
    lines = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    table = "text\r\n" + "".join('"{}"\r\n'.format(text.replace('"', '""')) for text in texts)
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    for name, content in {"metadata.jsonl": lines, "metadata.csv": table}.items():
        stored = (mark + content).encode(encoding)
        found = [
            row for _, row in metadata.rows(Path(name), lambda _, stored=stored: BytesIO(stored))
        ]
        assert found == [{"text": text} for text in texts]


def test_captions_in_utf_16(tmp_path: Path):
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "a.txt").write_bytes("주황 고양이\r\n".encode("utf-16"))
    assert [sample.captions.get("text") for sample in scan(tmp_path).samples] == [
        "주황 고양이",
        None,
    ]
    (tmp_path / "b.txt").write_bytes("cut".encode("utf-16")[:-1])
    assert check(tmp_path).broken == [f"{tmp_path}/b.txt is not UTF-8"]


@pytest.mark.parametrize("head", ["", "file_name,text\n", "\n \n", "\ufeff"])
@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_metadata_without_rows_are_a_fault(tmp_path: Path, name: str, head: str):
    """Else no picture is read, and nobody is told why."""
    if name == "metadata.jsonl" and head.startswith(("file", "\ufeff")):
        return
    pictures(tmp_path, "a.png")
    (tmp_path / name).write_text(head, "utf-8")
    said = f"{tmp_path / name} has no rows; without it all pictures in its folder are read"
    assert check(tmp_path).broken == [said]


def test_columns_without_a_name_are_none(tmp_path: Path):
    """As the index of a data frame, or the commas at the ends of a spreadsheet's lines."""
    pictures(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text(",file_name,words,,\n0,a.png,a cat,,\n")
    found = scan(tmp_path)
    assert found.samples[0].captions == {"words": "a cat"}
    assert [*found.columns] == ["file_name", "words"]


# Captions that are none


BLANK = {"a.png": " ", "b.png": "", "c.png": "\t\n"}


@pytest.mark.parametrize("layout", ["folder", "tar", "parquet"])
@pytest.mark.parametrize("last", ["  ", "a cat"])
def test_a_column_in_which_all_is_blank_is_named(tmp_path: Path, layout: str, last: str):
    folder = pictures(tmp_path / "data", *BLANK, "d.png")
    rows = [{"file_name": name, "text": text} for name, text in {**BLANK, "d.png": last}.items()]
    write(folder, rows)
    place = folder
    if layout == "tar":
        place = tar_of(folder, tmp_path / "data.tar")
    elif layout == "parquet":
        images = [{"bytes": (folder / row["file_name"]).read_bytes(), "path": ""} for row in rows]
        texts = [row["text"] or None for row in rows]
        place = write_parquet(tmp_path / "data.parquet", {"image": images, "text": texts})
    report = check(place)
    found = report.contents
    assert (report.pictures, report.broken) == (4, [])
    if last.strip():
        assert (found.blank, found.notes(), dict(report.captions)) == (False, [], {"text": 1})
    else:
        assert (found.blank, found.notes()) == (True, ["columns without any value: text"])


@pytest.mark.parametrize("packed", [False, True])
def test_blank_caption_files_are_counted(tmp_path: Path, packed: bool):
    folder = pictures(tmp_path / "data", "cat/a.png", "dog/b.png", "dog/c.png", "dog/d.png")
    (folder / "cat/a.txt").write_text(" \n")
    (folder / "dog/b.caption").write_text("")
    (folder / "dog/c.txt").write_text("")
    (folder / "dog/c.caption").write_text("a dog")
    (folder / "dog/e.txt").write_text("of no picture")
    found = scan(tar_of(folder, tmp_path / "data.tar") if packed else folder)
    assert not found.blank
    first, second, third = found.notes()
    assert first == "captions of 1 picture are from files beside them"
    assert second == "caption files without text: those of 2 pictures"
    assert third.startswith("text files without a picture of their name, not used: 1: ")
    assert third.endswith("dog/e.txt")
    (folder / "dog/c.caption").write_text("")
    assert scan(tar_of(folder, tmp_path / "data.tar") if packed else folder).blank


def test_data_without_places_for_captions_are_not_blank(tmp_path: Path):
    """An unconditional run, one of classes, and one with a caption in another column."""
    folder = pictures(tmp_path, "a.png")
    assert not scan(folder).blank
    for row in ({"year": 3, "artist": ""}, {"artist": "x", "text": ""}):
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", **row}))
        assert not scan(folder).blank


def test_tables_of_other_names_are_told(tmp_path: Path):
    folder = pictures(tmp_path, "a.png")
    for name in ("captions.csv", "metadata.json"):
        (folder / name).write_text("")
    (note,) = scan(folder).remarks
    assert note.startswith("tables not read, as none is called metadata.jsonl, metadata.csv, ")
    assert note.endswith(": 2: captions.csv, metadata.json")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png"}')
    assert scan(folder).remarks == []


def test_a_table_of_names_alone_is_no_data_set(tmp_path: Path):
    table = write_parquet(tmp_path / "table.parquet", {"file_name": ["a.png"], "text": ["x"]})
    with pytest.raises(
        UndustError, match=r"; a table with file_name is metadata\.parquet in the f"
    ):
        read(table)
