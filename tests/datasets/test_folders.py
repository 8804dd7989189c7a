"""Folders of pictures as people, systems and other programs leave them."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from containers import write_parquet
from undust.datasets import storage
from undust.datasets.image_folder import check, read, scan
from undust.errors import UndustError

NFC, NFD = (unicodedata.normalize(form, "고양이.png") for form in ("NFC", "NFD"))


def pictures(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
    return folder


def names(folder: Path) -> list[str]:
    return [sample.path.relative_to(folder).as_posix() for sample in read(folder)]


def captions(folder: Path) -> dict[str, str]:
    return {sample.path.name: sample.captions.get("text", "") for sample in read(folder)}


# Captions beside pictures


def test_captions_are_in_text_files_beside_the_pictures(tmp_path: Path):
    pictures(tmp_path, "10_ohwx person/a.png", "b.PNG", "c.jpg", "d.png", "e.png", "f.png")
    (tmp_path / "10_ohwx person/a.txt").write_text("ohwx person,\r\n  smiling\n")
    (tmp_path / "b.TXT").write_bytes(b"\xef\xbb\xbfa b")  # a byte order mark
    (tmp_path / "c.jpg.txt").write_text("with its whole name")
    (tmp_path / "d.caption").write_text("a caption")
    (tmp_path / "e.txt").write_text(" \n")
    (tmp_path / "e.caption").write_text("not the empty one")
    (tmp_path / "readme.txt").write_text("of no picture")
    assert captions(tmp_path) == {
        "a.png": "ohwx person, smiling",
        "b.PNG": "a b",
        "c.jpg": "with its whole name",
        "d.png": "a caption",
        "e.png": "not the empty one",
        "f.png": "",
    }
    found = scan(tmp_path)
    assert (found.sidecars, found.unread_sidecars) == (5, 0)
    assert found.skipped == ["readme.txt"]


def test_metadata_wins_over_text_files_and_those_over_nothing(tmp_path: Path):
    pictures(tmp_path, "a.png", "b.png")
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"beside {name}")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "from metadata"}\n{"file_name": "b.png", "text": "  "}\n'
    )
    assert captions(tmp_path) == {"a.png": "from metadata", "b.png": "beside b"}
    found = scan(tmp_path)
    assert (found.sidecars, found.unread_sidecars) == (1, 1)


def test_a_text_file_in_another_encoding_is_named(tmp_path: Path):
    pictures(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes("고양이".encode("cp949"))
    with pytest.raises(UndustError, match=r"a\.txt is not UTF-8"):
        read(tmp_path)
    assert check(tmp_path).broken == [f"{tmp_path / 'a.txt'} is not UTF-8"]


# Metadata


def test_every_column_of_text_is_a_caption(tmp_path: Path):
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "caption": "c", "prompt": "p", "width": 4, "concept": "x"}\n'
        '{"file_name": "b.png", "caption": " ", "tags": ["t"]}\n'
    )
    a, b = read(tmp_path)
    assert dict(a.captions) == {"caption": "c", "prompt": "p"}
    assert dict(b.captions) == {}


def test_columns_of_which_nothing_is_read_are_named(tmp_path: Path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    row = {"file_name": "a.png", "caption": ["a", "b"], "score": 0.5, "year": 7, "nothing": None}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    found = "not used: caption (a list), score (a number)"
    assert scan(tmp_path).notes()[0].endswith(found)


def test_a_table_is_read_like_lines_of_json(tmp_path: Path):
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.csv").write_bytes(
        b"\xef\xbb\xbffile_name,text,split\r\n"
        b'a.png,"red, with ""quotes""\r\nand a line",train\r\n\r\nb.png,,validation\r\n'
    )
    a, b = read(tmp_path)
    assert (a.captions["text"], a.split) == ('red, with "quotes"\r\nand a line', "train")
    assert (dict(b.captions), b.split) == ({}, "validation")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (b"file_name,text\na.png\n", "line 2: has 1 values, and the first line 2 columns"),
        (b"name,text\na.png,x\n", "line 2: has no file_name.*its columns: name, text"),
        (b"file_name,text,text\na.png,x,y\n", "line 1: names a column twice"),
        (b"file_name\n\xff.png\n", "line 2: is not UTF-8"),
        (b'file_name,text\na.png,"x\n', "line 2: is not a line of a table"),
        (b"file_name\nc.png\n", "line 2: the picture 'c.png' does not exist"),
    ],
)
def test_a_bad_table_is_named(tmp_path: Path, table: bytes, says: str):
    pictures(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_bytes(table)
    with pytest.raises(UndustError, match=rf"metadata\.csv {says}"):
        read(tmp_path)


@given(st.binary())
def test_any_table_is_samples_or_an_error(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    folder = pictures(tmp_path_factory.mktemp("table"), "a.png")
    (folder / "metadata.csv").write_bytes(b"file_name,text\na.png,x\n" + data)
    try:
        assert {sample.path.name for sample in read(folder)} == {"a.png"}
    except UndustError as error:
        assert str(error).isprintable()
    shutil.rmtree(folder)


def test_the_same_fault_of_many_lines_is_one(tmp_path: Path):
    """A column of another name; the pictures of such lines are not listed once more."""
    pictures(tmp_path, *(f"{n}.png" for n in range(8)))
    (tmp_path / "metadata.jsonl").write_text("\n".join(f'{{"image": "{n}.png"}}' for n in range(8)))
    report = check(tmp_path)
    (message,) = report.broken
    assert "metadata.jsonl lines 1, 2, 3, 4, 5 and 3 more: has no file_name" in message
    assert message.endswith("its columns: image; call image file_name")


def test_a_broken_line_is_listed_once(tmp_path: Path):
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": 3}\n{"file_name": "b.png", "split": "half"}\n'
    )
    report = check(tmp_path)
    assert len(report.broken) == 2
    assert report.contents.unlisted == []


def test_metadata_in_parquet_is_read(tmp_path: Path):
    pictures(tmp_path, "a.png", "b.png")
    write_parquet(
        tmp_path / "metadata.parquet",
        {"file_name": ["b.png", "a.png", "c.png"], "text": ["of b", None, "of c"], "n": [1, 2, 3]},
    )
    wrong = rf"{tmp_path}/metadata\.parquet line 3: the picture 'c\.png' does not exist"
    with pytest.raises(UndustError, match=wrong):
        read(tmp_path)
    b, a = read(tmp_path, on_error="skip")
    assert (b.path.name, dict(b.captions), b.column("n")) == ("b.png", {"text": "of b"}, "1")
    assert (a.path.name, dict(a.captions)) == ("a.png", {})
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        UndustError, match=r"metadata\.parquet cannot be read as Parquet: Parquet file"
    ):
        read(tmp_path)


def test_one_of_several_files_of_metadata_is_read(tmp_path: Path):
    pictures(tmp_path, "a.png", "sub/b.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "json"}')
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,table\n")
    (tmp_path / "sub/metadata.jsonl").write_text('{"file_name": "b.png"}')
    assert captions(tmp_path) == {"a.png": "json"}
    found = scan(tmp_path)
    assert found.skipped == ["metadata.csv", "sub/metadata.jsonl"]
    assert found.unlisted == ["sub/b.png"]


@pytest.mark.parametrize("name", ["sub\\a.png", ".\\sub\\a.png"])
def test_names_with_backslashes_are_found(tmp_path: Path, name: str):
    pictures(tmp_path, "sub/a.png")
    escaped = name.replace("\\", "\\\\")
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "{escaped}"}}')
    assert names(tmp_path) == ["sub/a.png"]


@pytest.mark.parametrize(("stored", "named"), [(NFC, NFD), (NFD, NFC)])
def test_names_in_another_form_of_unicode_are_found(tmp_path: Path, stored: str, named: str):
    folder = stored.removesuffix(".png")
    pictures(tmp_path, f"{folder}/{stored}")
    asked = f"{named.removesuffix('.png')}/{named}"
    (tmp_path / "metadata.jsonl").write_text(
        f'{{"file_name": "{asked}", "text": "cat"}}', encoding="utf-8"
    )
    assert captions(tmp_path) == {stored: "cat"}
    assert scan(tmp_path).unlisted == []


def test_a_caption_file_in_another_form_of_unicode_is_found(tmp_path: Path):
    pictures(tmp_path, NFD)
    (tmp_path / NFC).with_suffix(".txt").write_text("cat")
    assert captions(tmp_path) == {NFD: "cat"}


# Splits


@pytest.mark.parametrize("said", ["validation", "val", "dev", "Valid"])
def test_a_validation_split_is_held_out(tmp_path: Path, said: str):
    pictures(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "a.png", "split": "{said}"}}')
    assert [sample.split for sample in read(tmp_path)] == ["validation"]
    assert read(tmp_path, split="train") == []


@pytest.mark.parametrize("metadata", [True, False])
def test_folders_of_splits(tmp_path: Path, metadata: bool):
    """Hugging Face's layout: a folder a split, each with its own metadata or none."""
    for split in ("train", "test", "Validation"):
        pictures(tmp_path, f"{split}/0.png", f"{split}/sub/1.png")
        if metadata:
            (tmp_path / split / "metadata.jsonl").write_text(
                f'{{"file_name": "0.png", "text": "{split}"}}\n{{"file_name": "sub/1.png"}}\n'
            )
    samples = read(tmp_path)
    assert {(sample.group, sample.split) for sample in samples} == {
        ("Validation/0.png", "validation"),
        ("Validation/sub/1.png", "validation"),
        ("test/0.png", "test"),
        ("test/sub/1.png", "test"),
        ("train/0.png", "train"),
        ("train/sub/1.png", "train"),
    }
    if metadata:
        assert {sample.captions.get("text") for sample in samples} == {
            *("train", "test", "Validation"),
            None,
        }


def test_a_folder_called_test_without_one_called_train_is_no_split(tmp_path: Path):
    pictures(tmp_path, "test/a.png", "cat/b.png")
    assert {sample.split for sample in read(tmp_path)} == {"train"}


# Files that are not pictures, or not meant


def test_hidden_files_and_those_of_systems_are_skipped(tmp_path: Path):
    pictures(tmp_path, "a.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", "__MACOSX/a.jpg")
    pictures(tmp_path, "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", ".git/x.png", ".hidden.png")
    for name in ("._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07")
    assert names(tmp_path) == ["a.jpg"]
    found = scan(tmp_path)
    assert sorted(found.hidden) == [
        *(".DS_Store", "._a.jpg", ".git/ (1 file)", ".hidden.png"),
        *(".ipynb_checkpoints/ (1 file)", "@eaDir/ (1 file)", "Thumbs.db"),
        *("__MACOSX/ (1 file)", "desktop.ini"),
    ]
    assert found.skipped == []


def test_pictures_that_undust_wrote_are_no_data(tmp_path: Path):
    """Samples of runs, as of `undust train .`, would be trained on by the next run."""
    pictures(tmp_path, "a.png", "run/samples/step-2.png", "old/samples/step-2.png")
    pictures(tmp_path, "started/samples.png", "started/diffusion/samples/step-2.png")
    pictures(tmp_path, "undust-out/cat-1.png", "begun/prior/0.png", "logs/b.png")
    for name in ("run/run.json", "run/log.jsonl", "old/log.jsonl", "started/first-stage.toml"):
        (tmp_path / name).write_text("{}")
    for name in ("started/first-stage/run.lock", "begun/run.lock", "logs/log.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "old/checkpoints").mkdir()
    assert names(tmp_path) == ["a.png", "logs/b.png"]
    found = scan(tmp_path)
    assert found.outputs == [
        *("begun/ (2 files)", "old/ (2 files)", "run/ (3 files)", "started/ (4 files)"),
        "undust-out/ (1 file)",
    ]
    assert "folders of training runs or generated pictures, not used: 5: begun/" in found.notes()[1]
    assert names(tmp_path / "undust-out") == ["cat-1.png"]  # asked for
    assert names(tmp_path / "run/samples") == ["step-2.png"]


def test_a_data_set_in_a_hidden_folder_is_read(tmp_path: Path):
    assert names(pictures(tmp_path / ".cache" / "data", "a.png")) == ["a.png"]


def test_every_kind_that_is_read_is_found(tmp_path: Path):
    pictures(tmp_path, "a.png", "b.tga", "c.JPG", "d.jfif", "e.jp2", "f.ppm", "g.avif", "h.tiff")
    (tmp_path / "a.png").rename(tmp_path / "download")  # without an ending
    shutil.copy(tmp_path / "c.JPG", tmp_path / "i.image")
    assert len(names(tmp_path)) == 9
    assert check(tmp_path).pictures == 9


def test_other_files_are_named(tmp_path: Path):
    pictures(tmp_path, "a.png")
    others = {
        "a.heic": b"\0\0\0\x18ftypheic" + bytes(50),
        "a.json": b"{}",
        "a.mp4": b"\0\0\0\x18ftypmp42" + bytes(50),
        "a.pdf": b"%PDF-1.7",
        "a.svg": b"<svg/>",
        "notes.txt": b"to do",
    }
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    shutil.copy(tmp_path / "a.png", tmp_path / "raw.dng")  # a preview in a camera's raw file
    assert names(tmp_path) == ["a.png"]
    assert scan(tmp_path).skipped == sorted(["raw.dng", *others])


def test_links_are_followed_without_loops(tmp_path: Path):
    pictures(tmp_path / "elsewhere", "a.png", "sub/b.png")
    data = pictures(tmp_path / "data", "c.png")
    (data / "one").symlink_to(tmp_path / "elsewhere")
    (data / "two.png").symlink_to(tmp_path / "elsewhere/a.png")
    (data / "back").symlink_to(data)
    (data / "one/up").symlink_to(tmp_path / "elsewhere")
    (data / "again").symlink_to(data / "one")
    (data / "gone.png").symlink_to(tmp_path / "gone.png")
    (data / "nowhere").symlink_to(tmp_path / "nowhere")
    found = scan(data)
    assert len(found.samples) == 4
    assert {sample.path.name for sample in found.samples} == {"a.png", "b.png", "c.png", "two.png"}
    assert {Path(name).name for name in found.links} >= {"back", "up", "gone.png", "nowhere"}


def test_a_pipe_in_the_folder_is_skipped(tmp_path: Path):
    pictures(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    os.mkfifo(tmp_path / "other")
    assert names(tmp_path) == ["a.png"]
    assert scan(tmp_path).skipped == ["b.png", "other"]


def test_a_folder_with_nothing_that_can_be_read_says_what_is_there(tmp_path: Path):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(UndustError, match=r"nor pictures that can be read; .* 1: a\.heic"):
        read(tmp_path)


def test_a_picture_that_is_none_is_found_at_once(tmp_path: Path):
    """By its header, before anything is trained."""
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(UndustError, match=r"b\.png cannot be read as a picture"):
        read(tmp_path)
    assert [sample.path.name for sample in read(tmp_path, on_error="skip")] == ["a.png"]


def test_hidden_names():
    assert all(map(storage.is_hidden, (".x", "Thumbs.DB", "__MACOSX", "Desktop.ini", "@eaDir")))
    assert not any(map(storage.is_hidden, ("x.png", "_x.png", "thumbs.png", "cat", "@home")))
