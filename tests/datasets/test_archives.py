"""Tar archives: WebDataset's layout, and archives that are damaged or hostile."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from containers import tar_of, write_tar
from undust.datasets.archives import Archive
from undust.datasets.image_folder import check, read, scan
from undust.datasets.samples import Contents
from undust.errors import UndustError


def png(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(file, "PNG")
    return file.getvalue()


def groups(path: Path) -> list[str]:
    return [sample.group for sample in read(path)]


def special(
    name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = ""
) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type, header.size, header.linkname = kind, size, link
    return header


def test_captions_columns_and_maps_have_the_pictures_name(tmp_path: Path):
    tar = write_tar(
        tmp_path / "a.tar",
        [
            ("b.jpg", png("blue")),
            ("b.cls", b"7\n"),
            ("a.txt", b"a red\n picture"),
            ("a.json", json.dumps({"caption": "from json", "width": 4, "split": "test"}).encode()),
            ("a.png", png()),
            ("a.depth.png", png("white")),
            ("c.webp", png("green")),
            ("c.caption", b"in a .caption"),
            ("d.txt", b"of no picture"),
        ],
    )
    a, b, c = read(tar)
    assert (dict(a.captions), a.split, a.column("width")) == (
        {"caption": "from json", "text": "a red picture"},
        "test",
        "4",
    )
    assert a.beside("depth").getpixel((0, 0)) == (255, 255, 255, 255)
    assert (b.column("cls"), b.has_beside("depth"), b.column("folder")) == ("7", False, None)
    assert dict(c.captions) == {"text": "in a .caption"}
    assert c.image().size == (4, 3)
    assert scan(tar).skipped == ["a.tar/d.txt"]


def test_shards_are_one_data_set(tmp_path: Path):
    """By a folder, by a pattern and by splits in their names; a name is that of one picture."""
    for split, names in {"train-000": "ac", "train-001": "ab", "val-000": "d"}.items():
        members = [(f"{name}.png", png()) for name in names]
        write_tar(tmp_path / f"shards/set-{split}.tar", members)
    (tmp_path / "shards/README.md").write_text("of the set")
    samples = read(tmp_path / "shards")
    assert [(sample.group, sample.split) for sample in samples] == [
        ("a.png", "train"),
        ("set-train-001.tar/a.png", "train"),
        ("b.png", "train"),
        ("c.png", "train"),
        ("d.png", "validation"),
    ]
    assert scan(tmp_path / "shards").skipped == ["README.md"]
    assert groups(tmp_path / "shards/set-train-{000..001}.tar") == [
        *("a.png", "set-train-001.tar/a.png", "b.png", "c.png"),
    ]
    assert groups(tmp_path / "shards/set-{val-000,train-000}.tar") == ["a.png", "c.png", "d.png"]
    with pytest.raises(UndustError, match=r"set-train-002\.tar does not exist, of 4 files in"):
        read(tmp_path / "shards/set-train-{000..003}.tar")
    with pytest.raises(UndustError, match="stands for more than 100,000 files"):
        read(tmp_path / "{000000..999999}{0,1}.tar")


def test_a_folder_packed_is_the_folder(tmp_path: Path):
    """With metadata, splits, classes, hidden files and parallel folders."""
    folder = tmp_path / "folder"
    for name in ("train/images/a.png", "train/depth/a.png", "val/images/b.png", ".x/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png())
    (folder / "train/images/a.txt").write_text("a caption")
    found, packed = scan(folder), scan(tar_of(folder, tmp_path / "all.tar"))
    for field in ("captions", "group", "split", "columns"):
        own = [getattr(sample, field) for sample in found.samples]
        assert [getattr(sample, field) for sample in packed.samples] == own
    assert [[*sample.maps] for sample in packed.samples] == [["depth"], []]
    assert packed.hidden == ["all.tar/.x"]


def hostile(content: Contents) -> set[str]:
    return {name.removeprefix("a.tar/") for name in content.skipped}


def test_members_that_are_no_files_are_named(tmp_path: Path):
    tar = write_tar(
        tmp_path / "a.tar",
        [
            ("a.png", png()),
            ("/etc/b.png", png()),
            ("../c.png", png()),
            ("bad\udcff.png", png()),
            ("d.png", special("d.png", tarfile.SYMTYPE, link="/etc/passwd")),
            ("e.png", special("e.png", tarfile.LNKTYPE, link="a.png")),
            ("f.png", special("f.png", tarfile.CHRTYPE)),
            ("g.png", special("g.png", tarfile.FIFOTYPE)),
            ("h", special("h", tarfile.DIRTYPE)),
            ("a.png", png("blue")),
        ],
    )
    assert hostile(scan(tar)) == {
        "etc/b.png (its name leads out of the archive)",
        "../c.png (its name leads out of the archive)",
        "'bad\\udcff.png' (its name is not UTF-8)",
        *("d.png (a link)", "e.png (a link)", "f.png (a device)", "g.png (a pipe)"),
        "a.png (an earlier one of the same name)",
    }
    assert [sample.image().getpixel((0, 0)) for sample in read(tar)] == [(0, 0, 255, 255)]


def test_a_sparse_file_is_named(tmp_path: Path):
    holes = special("b.png", tarfile.GNUTYPE_SPARSE)
    tar = write_tar(tmp_path / "a.tar", [("a.png", png()), ("b.png", holes)])
    assert hostile(scan(tar)) == {"b.png (a sparse file)"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data[:-11000], r"is damaged or cut off: b\.png is cut off"),
        (lambda data: data[:1024], "has no end mark; it may be cut off"),
        (lambda data: data + data, "goes on after its end mark"),
        (lambda data: data[:1024] + b"x" * 512 + data[1536:], "there is no header at byte 1,024"),
        (lambda data: data[:1148] + b"77777777777" + data[1159:], "there is no header at byte"),
        (lambda data: b"\x1f\x8b" + data, "is compressed with gzip, .*; gunzip it first"),
        (lambda data: b"", "is not a tar archive: empty file"),
        (lambda data: b"x" * 5000, "is not a tar archive: "),
        (lambda data: bytes(10240), "has no pictures"),
    ],
)
def test_a_damaged_archive_is_one_line(change, says: str, tmp_path: Path):
    whole = write_tar(tmp_path / "a.tar", [("a.png", png()), ("b.png", os.urandom(9000))])
    whole.write_bytes(change(whole.read_bytes()))
    with pytest.raises(UndustError, match=says) as caught:
        read(whole)
    assert str(caught.value).startswith(str(whole))


@pytest.mark.parametrize("size", [-(10**6), 10**12, 2**63])
def test_a_size_that_cannot_be_is_one_line(tmp_path: Path, size: int):
    """A size below zero would lead back to an earlier header, again and again."""
    header = special("b.png")
    header.size = size
    block = header.tobuf(tarfile.GNU_FORMAT)
    tar = write_tar(tmp_path / "a.tar", [("a.png", png())])
    tar.write_bytes(tar.read_bytes()[:1024] + block + bytes(1024))
    with pytest.raises(UndustError, match=r"a\.tar is damaged or cut off: "):
        read(tar)
    assert groups_skipping(tar) == ["a.png"]


def groups_skipping(path: Path) -> list[str]:
    return [sample.group for sample in read(path, on_error="skip")]


def test_a_huge_name_is_not_read(tmp_path: Path):
    long = special("././@LongLink", tarfile.GNUTYPE_LONGNAME, 2**30)
    tar = write_tar(tmp_path / "a.tar", [("a.png", png())])
    tar.write_bytes(tar.read_bytes()[:1024] + long.tobuf(tarfile.GNU_FORMAT) + bytes(2**11))
    with pytest.raises(UndustError, match="a header of 1,073,741,824 bytes"):
        read(tar)


def test_wrong_columns_are_named(tmp_path: Path):
    tar = write_tar(
        tmp_path / "a.tar",
        [
            *((f"{name}.png", png()) for name in "abcd"),
            ("a.json", b"[1]"),
            ("b.json", b'{"text": 3}'),
            ("c.json", b"\xff"),
            ("d.txt", b"\xff"),
        ],
    )
    assert check(tar).broken == [
        f"{tar}/a.png: a.json is a list, not an object",
        f"{tar}/b.png: text is a number, not a string",
        f"{tar}/c.png: c.json is not UTF-8",
        f"{tar}/d.txt is not UTF-8",
    ]


def test_threads_read_at_once_and_leave_no_file_open(tmp_path: Path):
    colours = ["red", "green", "blue", "white"] * 8
    tar = write_tar(
        tmp_path / "a.tar", [(f"{n:02}.png", png(name)) for n, name in enumerate(colours)]
    )
    samples = read(tar)
    handles = Path("/proc/self/fd")
    before = len([*handles.iterdir()]) if handles.exists() else 0
    with ThreadPoolExecutor(8) as threads:
        images = [*threads.map(lambda sample: sample.image(), samples)]
    expected = [Image.new("RGBA", (4, 3), name).tobytes() for name in colours]
    assert [image.tobytes() for image in images] == expected
    if before:
        assert len([*handles.iterdir()]) == before


def test_a_member_is_a_file_of_its_own(tmp_path: Path):
    content = os.urandom(3000)
    archive = Archive(write_tar(tmp_path / "a.tar", [("x", b"before"), ("y", content), ("z", b"")]))
    with archive.open(tmp_path / "a.tar/y") as file:
        assert (file.seek(-10, os.SEEK_END), file.read()) == (2990, content[-10:])
        assert (file.seek(100), file.read(50), file.tell()) == (100, content[100:150], 150)
        assert (file.seek(5000), file.read()) == (5000, b"")
    with pytest.raises(UndustError, match="does not exist"):
        archive.open(tmp_path / "a.tar/w")


WHOLE = [
    ("a.png", png()),
    ("a.txt", b"a caption"),
    ("sub/b.png", png()),
    ("é" * 99 + ".png", png()),
]


@given(
    st.lists(st.tuples(st.integers(0, 6000), st.binary(max_size=12)), max_size=4),
    st.integers(0, 12000),
)
@example([], 0)
@example([(124, b"\xff" * 12)], 12000)
def test_any_changed_archive_is_samples_or_an_error(edits: list[tuple[int, bytes]], end: int):
    with tempfile.TemporaryDirectory() as name:
        path = write_tar(Path(name) / "a.tar", WHOLE)
        data = bytearray(path.read_bytes())
        for place, content in edits:
            data[place : place + len(content)] = content
        path.write_bytes(data[:end])
        for on_error in ("refuse", "skip"):
            try:
                samples = read(path, on_error=on_error)
            except UndustError as error:
                assert "\n" not in str(error)
            else:
                assert all(sample.image().size for sample in samples if not edits)
