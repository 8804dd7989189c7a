"""Parquet files with pictures, as `datasets`, pandas and pyarrow write them."""

from __future__ import annotations

import io
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from containers import write_parquet
from undust.datasets import parquet_pictures
from undust.datasets.image_folder import check, read, scan
from undust.errors import UndustError

arrow = pytest.importorskip("pyarrow")


def png(number: int = 0, size: tuple[int, int] = (4, 3)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256, 0)).save(file, "PNG")
    return file.getvalue()


def images(*names: str | None) -> list[dict[str, Any]]:
    return [{"bytes": png(number), "path": name} for number, name in enumerate(names)]


def number_of(image: Image.Image) -> int:
    pixel = image.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel[0] + 256 * pixel[1]


def test_splits_captions_and_names_are_those_of_hugging_face(tmp_path: Path):
    for split in ("train", "test"):
        table = {
            "image": images("cat/0.png", "dog/0.png", "cat/0.png", None),
            "caption": ["one", None, "  ", "four"],
            "concept": [None, None, None, "four"],
            "width": [4, 4, None, 4],
            "score": [0.5] * 4,
        }
        write_parquet(tmp_path / f"data/{split}-00000-of-00002.parquet", table)
    (tmp_path / "README.md").write_text("---")
    found = scan(tmp_path)
    assert found.kind == "Parquet, 2 .parquet files"
    assert [(sample.group, sample.split) for sample in found.samples] == [
        ("cat/0.png", "test"),
        ("dog/0.png", "test"),
        ("test-00000-of-00002.parquet/2", "test"),
        ("four", "test"),
        ("train-00000-of-00002.parquet/0", "train"),
        ("train-00000-of-00002.parquet/1", "train"),
        ("train-00000-of-00002.parquet/2", "train"),
        ("four", "train"),
    ]
    assert [sample.column("folder") for sample in found.samples[:4]] == ["cat", "dog", "cat", None]
    assert [dict(each.captions) for each in found.samples[:4]] == [
        *({"caption": "one"}, {}, {}, {"caption": "four"}),
    ]
    assert found.samples[0].columns == {"caption": "one", "width": "4"}
    assert found.skipped == ["README.md"]
    assert found.counts() == [
        "columns without pictures, text or whole numbers, not used: score (double)",
        "absent files of the data set: test-00001-of-00002.parquet, train-00001-of-00002.parquet",
    ]


def test_names_of_classes_are_those_of_the_data_set(tmp_path: Path):
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = arrow.schema([("image", arrow.binary()), ("label", arrow.int64())], metadata)
    table = arrow.table({"image": [png(), png(), png()], "label": [1, 0, -1]}, schema)
    arrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert [sample.column("label") for sample in read(tmp_path)] == ["dog", "cat", None]


@pytest.mark.parametrize(
    ("columns", "picture", "maps"),
    [
        ({"picture_of_it": images("a")}, "picture_of_it", []),
        ({"content": [png()]}, "content", []),
        (
            {"conditioning_image": images("b"), "image": images("a")},
            "image",
            ["conditioning_image"],
        ),
        ({"blob": [b"x"], "photo": images("a")}, "photo", ["blob"]),
    ],
)
def test_the_column_of_pictures_is_found(
    columns: dict[str, Any], picture: str, maps: list[str], tmp_path: Path
):
    (sample,) = read(write_parquet(tmp_path / "a.parquet", {**columns, "text": ["t"]}))
    assert sample.image().size == (4, 3)
    assert [*sample.maps] == maps
    assert dict(sample.captions) == {"text": "t"}
    if picture == "image":
        assert sample.beside("conditioning_image").size == (4, 3)


def test_a_table_without_clear_pictures_names_its_columns(tmp_path: Path):
    none = write_parquet(tmp_path / "none.parquet", {"text": ["a"], "width": [1], "x": [0.5]})
    with pytest.raises(UndustError, match=r"no column of pictures: .* text, width, x \(double\)"):
        read(none)
    two = write_parquet(tmp_path / "two.parquet", {"left": images("a"), "right": images("b")})
    with pytest.raises(UndustError, match="several columns of pictures, left, right; call"):
        read(two)


def test_rows_without_a_usable_picture_or_text_are_named(tmp_path: Path):
    text = arrow.Array.from_buffers(
        arrow.string(),
        4,
        [None, arrow.py_buffer(_int32(0, 1, 2, 3, 4)), arrow.py_buffer(b"a\xffbc")],
    )
    pictures = [{"bytes": each} for each in (png(), png(), None, b"no picture")]
    path = write_parquet(tmp_path / "a.parquet", {"image": pictures, "text": text})
    assert check(path).broken == [
        f"{path} row 1: is not UTF-8",
        f"{path}/row 2 has no bytes",
        f"{path}/row 3 cannot be read as a picture: it is none of "
        + check(path).broken[-1].split("none of ")[1],
    ]
    assert [sample.group for sample in read(path, on_error="skip")] == ["a.parquet/0"]


def _int32(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(4, "little") for number in numbers)


@pytest.mark.parametrize("group", [1000, 7, 100])
def test_pictures_are_read_in_any_order_by_many_threads(
    tmp_path: Path, group: int, monkeypatch: pytest.MonkeyPatch
):
    """With few and small blocks, so that each is read again and again."""
    monkeypatch.setattr(parquet_pictures, "BLOCKS", 2)
    monkeypatch.setattr(parquet_pictures, "BLOCK_ROWS", 5)
    pictures = [png(number) for number in range(300)]
    for shard in range(2):
        table = {"image": pictures[150 * shard : 150 * (shard + 1)]}
        write_parquet(tmp_path / f"{shard}.parquet", table, row_group_size=group)
    samples = read(tmp_path)
    order = [(97 * k) % 300 for k in range(300)]
    with ThreadPoolExecutor(4) as threads:
        found = [*threads.map(lambda number: number_of(samples[number].image()), order[:60])]
    assert found == order[:60]
    handles = Path("/proc/self/fd")
    before = len([*handles.iterdir()]) if handles.exists() else 0
    assert [number_of(sample.image()) for sample in samples] == [*range(300)]
    if before:
        assert len([*handles.iterdir()]) <= before


def test_large_row_groups_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parquet_pictures, "LARGE_GROUP", 100)
    write_parquet(tmp_path / "a.parquet", {"image": [png(number) for number in range(9)]})
    (remark,) = scan(tmp_path).remarks
    assert remark.startswith("a.parquet has row groups of 0.0 GiB: pictures in random order")


def test_pyarrow_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_parquet(tmp_path / "a.parquet", {"image": [png()]})
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UndustError, match=r"needs pyarrow: pip install 'undust\[parquet\]'"):
        read(path)


VALUES = st.none() | st.text(max_size=4) | st.sampled_from(["train", "test", "val"])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "bytes": st.none() | st.just(png()) | st.binary(max_size=6),
            "path": st.none() | st.sampled_from(["a.png", "../a.png", "/a", "b/a.png", "\0", ""]),
            "text": VALUES,
            "split": VALUES,
            "concept": VALUES,
        }
    ),
    max_size=6,
)


@given(ROWS, st.integers(1, 4))
def test_any_rows_are_samples_or_errors(rows: list[dict[str, Any]], group: int):
    with tempfile.TemporaryDirectory() as name:
        columns: dict[str, Any] = {
            key: arrow.array([row[key] for row in rows], arrow.string())
            for key in ("text", "split", "concept")
        }
        columns["image"] = arrow.array(
            [{"bytes": row["bytes"], "path": row["path"]} for row in rows],
            arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())]),
        )
        path = write_parquet(Path(name) / "a.parquet", columns, row_group_size=group)
        good = [
            row
            for row in rows
            if row["bytes"] == png() and (row["split"] or "train") in ("train", "test", "val")
        ]
        try:
            samples = read(path, on_error="skip")
        except UndustError as error:
            assert not good
            assert "\n" not in str(error)
            return
        assert len(samples) == len(good)
        for sample, row in zip(samples, good, strict=True):
            assert sample.captions.get("text", "") == ((row["text"] or "").strip() and row["text"])
            assert sample.split == {"val": "validation"}.get(row["split"], row["split"] or "train")


def test_damage_within_a_row_group_is_that_of_the_pictures_after_it(tmp_path: Path):
    path = write_parquet(
        tmp_path / "a.parquet",
        {"image": images(*(f"{number}" for number in range(200)))},
        compression="none",
        use_dictionary=False,
        data_page_size=500,
        write_batch_size=8,
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    path.write_bytes(data)
    reads: list[list[str]] = []
    for order in (1, -1):
        errors: list[str] = []
        for sample in scan(path).samples[::order]:
            try:
                sample.image()
                errors.append("")
            except UndustError as error:
                errors.append(str(error))
        reads.append(errors[::order])
    assert reads[0] == reads[1]
    good = reads[0].index(next(filter(None, reads[0])))
    assert good > 0
    for number, error in enumerate(reads[0][good:], good):
        assert error.startswith(f"{path}/row {number}/{number}: {path} cannot be read as Parquet")


@given(
    st.lists(st.tuples(st.integers(0, 1500), st.binary(max_size=8)), max_size=4),
    st.integers(0, 2000),
)
def test_any_changed_file_is_samples_or_an_error(edits: list[tuple[int, bytes]], end: int):
    with tempfile.TemporaryDirectory() as name:
        path = write_parquet(
            Path(name) / "a.parquet", {"image": images("a", "b"), "text": ["x", "y"]}
        )
        data = bytearray(path.read_bytes())
        for place, content in edits:
            data[place : place + len(content)] = content
        path.write_bytes(data[:end] if end < 1000 else data)
        try:
            read(path)
        except UndustError as error:
            assert "\n" not in str(error)
