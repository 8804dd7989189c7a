"""The reader, writer and checker of picture folders."""

from __future__ import annotations

import json
import struct
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from undust.datasets import image_folder
from undust.datasets.image_folder import check, read, write
from undust.datasets.samples import Sample
from undust.errors import UndustError
from undust.pictures import read_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures and no metadata."""
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png")
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "sub/b.jpg")
    return tmp_path


def metadata(folder: Path, *lines: str | bytes) -> Path:
    encoded = [line.encode() if isinstance(line, str) else line for line in lines]
    (folder / image_folder.METADATA).write_bytes(b"\n".join(encoded))
    return folder


def huge_png() -> bytes:
    """A picture of 30,000 by 30,000 pixels in a few hundred bytes, by its header's word."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def test_what_is_written_is_read(folder: Path) -> None:
    rows = [
        {"file_name": "sub/b.jpg", "text": "blue “sea”", "text_ko": "바다", "concept": "water"},
        {"file_name": "a.png", "text": "red", "split": "test"},
    ]
    write(folder, rows)
    b, a = read(folder)
    assert b == Sample(
        folder / "sub/b.jpg",
        {"text": "blue “sea”", "text_ko": "바다"},
        "water",
        "train",
        rows[0],
        folder,
    )
    assert a == Sample(folder / "a.png", {"text": "red"}, "a.png", "test", rows[1], folder)
    assert read(folder, split="train") == [b]
    assert read(folder, split="test") == [a]
    assert [path.name for path in sorted(folder.iterdir())] == ["a.png", "metadata.jsonl", "sub"]


def test_pictures_without_metadata_have_no_captions(folder: Path) -> None:
    assert read(folder) == [
        Sample(folder / "a.png", {}, "a.png"),
        Sample(folder / "sub/b.jpg", {}, "sub/b.jpg"),
    ]


def test_metadata_from_other_tools_is_understood(folder: Path) -> None:
    """A byte order mark, Windows line ends, empty lines, nulls for gaps, fields of others."""
    metadata(
        folder,
        b'\xef\xbb\xbf{"file_name": "a.png", "text": "red", "text_ko": null, "width": 8}\r',
        b"  \r",
        b'{"file_name": "sub/b.jpg", "text": null, "concept": null, "split": null}\r',
        b"",
    )
    assert [dict(sample.captions) for sample in read(folder)] == [{"text": "red"}, {}]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"file_name": "a.png"', "is not JSON: Expecting ',' delimiter at character 22"),
        (b'{"file_name": "\xff.png"}', "is not UTF-8"),
        ("[" * 100_000, "is not JSON that can be read"),
        ('{"n": ' + "9" * 5000 + "}", "is not JSON that can be read"),
        ('["a.png"]', "is a list, not an object"),
        ('"a.png"', "is a string, not an object"),
        ("true", "is true or false, not an object"),
        ('{"text": "red"}', "has no file_name"),
        ('{"file_name": ""}', "has no file_name"),
        ('{"file_name": 7}', "file_name is a number, not a string"),
        ('{"file_name": "../a.png"}', "'../a.png' leads out of the folder"),
        ('{"file_name": "sub/../../x.png"}', "leads out of the folder"),
        ('{"file_name": "..\\\\a.png"}', "leads out of the folder"),
        ('{"file_name": "/etc/passwd"}', "has to be relative to the folder"),
        ('{"file_name": "C:\\\\a.png"}', "has to be relative to the folder"),
        ('{"file_name": "a.png", "text": "x", "text": "y"}', "names text twice"),
        ('{"file_name": "b.png", "file_name": "a.png"}', "names file_name twice"),
        ('{"file_name": "c.png"}', "the picture 'c.png' does not exist"),
        ('{"file_name": "sub"}', "the picture 'sub' does not exist"),
        ('{"file_name": "a\\u0000.png"}', "does not exist"),
        (json.dumps({"file_name": "a" * 5000}), "does not exist"),
        ('{"file_name": "./b.png/../b.png"}', "leads out of the folder"),
        ('{"file_name": "b.png", "text": 3}', "text is a number, not a string"),
        ('{"file_name": "b.png", "text_ko": ["x"]}', "text_ko is a list, not a string"),
        ('{"file_name": "b.png", "text": "\\ud83d"}', "half of a surrogate pair"),
        ('{"file_name": "b.png", "concept": {}}', "concept is an object, not a string"),
        ('{"file_name": "b.png", "split": "other"}', "split is 'other', expected train, val"),
        ('{"file_name": "./a.png"}', "file_name 'a.png' is already on line 1"),
    ],
)
def test_a_bad_line_is_named(folder: Path, line: str | bytes, says: str) -> None:
    Image.new("RGB", (4, 4)).save(folder / "b.png")
    good = '{"file_name": "a.png"}'
    metadata(folder, good, "", line, '{"file_name": "sub/b.jpg"}')
    with pytest.raises(UndustError) as caught:
        read(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'metadata.jsonl'} line 3: ")
    assert says in message
    assert "\n" not in message
    assert [s.path.name for s in read(folder, on_error="skip")] == ["a.png", "b.jpg"]
    assert check(folder).broken == [message]


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UndustError, match=r"holds neither metadata\.jsonl nor pictures"):
        read(tmp_path)
    with pytest.raises(UndustError, match="absent does not exist"):
        read(tmp_path / "absent")
    with pytest.raises(UndustError, match=r"is neither a folder of pictures nor a \.tar"):
        read(Path(__file__))
    assert read(metadata(tmp_path, b"")) == []


def test_broken_pictures_are_reported_or_skipped(folder: Path) -> None:
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_bytes(b"no picture at all")
    (folder / "bomb.png").write_bytes(huge_png())
    names = ["cut.png", "empty.png", "text.png", "bomb.png"]
    metadata(folder, *(json.dumps({"file_name": name}) for name in ["a.png", *names]))
    report = check(folder)
    assert report.pictures == 1
    assert len(report.broken) == len(names)
    for message, name in zip(report.broken, names, strict=True):
        assert message.startswith(f"{folder / name} ")
        assert "\n" not in message
    assert "bomb.png is too large: 30000x30000; 89,478,485 pixels at most" in report.broken[-1]
    assert [s.path.name for s in read(folder, on_error="skip")] == ["a.png"]
    others = f"; {len(names) - 1} more errors, which `undust data check` lists$"
    with pytest.raises(UndustError, match=others):
        read(folder)
    with pytest.raises(UndustError, match=r"cut\.png"):
        read_image(folder / "cut.png")


@pytest.mark.filterwarnings("error")
def test_a_picture_cut_anywhere_is_whole_or_an_error(folder: Path, tmp_path: Path) -> None:
    """What Pillow raises for broken bytes depends on where they break."""
    image = Image.effect_noise((16, 16), 50)
    for suffix in (".png", ".jpg", ".gif", ".webp", ".bmp", ".tiff"):
        path = tmp_path / f"picture{suffix}"
        image.save(path)
        data = path.read_bytes()
        for end in range(0, len(data), max(1, len(data) // 50)):
            path.write_bytes(data[:end])
            try:
                assert read_image(path).size == (16, 16)
            except UndustError as error:
                assert "\n" not in str(error)


def test_a_picture_is_turned_upright(tmp_path: Path) -> None:
    """Exif orientation 6: the camera was turned; the first row of the file is the right column."""
    image = Image.new("RGB", (4, 2), "white")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (2, 4)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is an empty file, not a picture"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git lfs pull fetches"),
        (b"<!DOCTYPE html>", "cannot be read as a picture: it is none of PNG, JPEG, "),
    ],
)
def test_files_in_the_place_of_pictures(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UndustError, match=said):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "lzw.tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_in_the_header_is_that_of_the_upright_picture(
    suffix: str, orientation: int, tmp_path: Path
) -> None:
    """Buckets are chosen by it. Of a TIFF Pillow turns the size, but not of the other formats."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    more = {"compression": "tiff_lzw"} if suffix == "lzw.tiff" else {}
    Image.new("RGB", (4, 2)).save(path := tmp_path / f"turned.{suffix}", exif=exif, **more)
    sample = Sample(path, {}, "")
    assert sample.size() == sample.image().size == ((4, 2) if orientation < 5 else (2, 4))


def test_check_counts(folder: Path) -> None:
    Image.new("L", (8, 6)).save(folder / "c.png")
    write(
        folder,
        [
            {"file_name": "a.png", "text": "red", "text_ko": "빨강", "concept": "colour"},
            {"file_name": "sub/b.jpg", "text": "blue", "concept": "colour", "split": "test"},
        ],
    )
    report = check(folder)
    assert report.pictures == 2
    assert report.splits == {"train": 1, "test": 1}
    assert report.sizes == {(8, 6): 1, (4, 4): 1}
    assert report.captions == {"text": 2, "text_ko": 1}
    assert report.lengths == {"text": {3: 1, 4: 1}, "text_ko": {2: 1}}
    assert report.groups == 1
    assert report.contents.unlisted == ["c.png"]
    assert report.broken == []


def test_write_leaves_the_old_file_when_it_fails(folder: Path) -> None:
    write(folder, [{"file_name": "a.png"}])
    before = (folder / "metadata.jsonl").read_bytes()
    with pytest.raises(UnicodeEncodeError):
        write(folder, [{"file_name": "a.png"}, {"file_name": "\ud800"}])
    assert (folder / "metadata.jsonl").read_bytes() == before
    assert not list(folder.glob("*.tmp"))
    with pytest.raises(UndustError, match=r"cannot write .*absent"):
        write(folder / "absent", [])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
FIELDS = st.sampled_from(["file_name", "text", "text_ko", "concept", "split", "other"])
NAMES = st.sampled_from(["a.png", "./a.png", "../a.png", "b.png", "train", "test", "\ud800"])
LINES = st.dictionaries(FIELDS, NAMES | JSON).map(lambda row: json.dumps(row).encode())


@given(st.lists(LINES | st.binary()).map(b"\n".join))
@example(b"")
@example(b'{"file_name": "a.png"}')
def test_any_bytes_are_samples_or_an_error(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Image.new("RGB", (2, 2)).save(folder / "a.png")
        (folder / "metadata.jsonl").write_bytes(data)
        try:
            samples = read(folder)
        except UndustError as error:
            assert "\n" not in str(error)
            assert str(error).isprintable()
            samples = read(folder, on_error="skip")
        assert [s.path.name for s in samples] in ([], ["a.png"])
        for sample in samples:
            assert sample.group
            assert all(isinstance(c, str) and c.encode() for c in sample.captions.values())
