"""Comments of GIF and MP4 files, built by the rules of their formats."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from pathlib import Path

import pytest

from undust.errors import UndustError
from undust.formats.metadata import containers
from undust.formats.recipe_png import read_recipe, read_texts

RECIPE = {"prompt": "웃는 고양이 🐱", "steps": 20}
NOTE = b"undust:" + json.dumps(RECIPE).encode()
SETTINGS = "a cat, 웃는 고양이\nSteps: 20, Sampler: Euler a, Seed: 1"
# GIF: screen of 1×1 with a table of two colours; an image with a table of its own.
HEAD = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
IMAGE = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0x81) + bytes(12) + b"\x02\x02\x44\x01\x00"
DELAY = b"!\xf9\x04\x00\x0e\x00\x00\x00"


def gif_comment(content: bytes, length: int = 255) -> bytes:
    parts = [content[i : i + length] for i in range(0, len(content), length)]
    return b"!\xfe" + b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


def gif(path: Path, *blocks: bytes) -> Path:
    path.write_bytes(HEAD + b"".join(blocks) + b";")
    return path


def box(kind: bytes, content: bytes, *, long: bool = False) -> bytes:
    if long:
        return struct.pack(">I4sQ", 1, kind, 16 + len(content)) + content
    return struct.pack(">I4s", 8 + len(content), kind) + content


def moov(comment: bytes, *, long: bool = False) -> bytes:
    found = box(b"data", struct.pack(">II", 1, 0) + comment)
    for kind in (b"\xa9cmt", b"ilst"):
        found = box(b"free", b"") + box(kind, found, long=long)
    meta = box(b"meta", bytes(4) + box(b"hdlr", bytes(25)) + found)
    return box(b"moov", box(b"mvhd", bytes(100)) + box(b"udta", meta, long=long))


START = box(b"ftyp", b"isom" + bytes(4) + b"isommp41")


def mp4(path: Path, *boxes: bytes) -> Path:
    path.write_bytes(START + b"".join(boxes))
    return path


@pytest.mark.parametrize("length", [1, 7, 255])
def test_a_gif_comment_is_found_wherever_it_is(tmp_path: Path, length: int):
    comment = gif_comment(NOTE, length)
    other = gif_comment(b"made by hand")
    for blocks in ((comment, DELAY, IMAGE), (other, IMAGE, DELAY, IMAGE, comment)):
        assert read_recipe(gif(tmp_path / "a.gif", *blocks)) == RECIPE


@pytest.mark.parametrize("long", [False, True])
def test_an_mp4_comment_is_found_wherever_it_is(tmp_path: Path, long: bool):
    media, index = box(b"mdat", bytes(1000), long=long), moov(NOTE, long=long)
    for boxes in ((media, index), (index, box(b"free", b""), media)):
        assert read_recipe(mp4(tmp_path / "a.mp4", *boxes)) == RECIPE
    to_the_end = struct.pack(">I4s", 0, b"mdat") + bytes(1000)
    assert read_recipe(mp4(tmp_path / "a.mp4", index, to_the_end)) == RECIPE


def test_settings_of_other_programs_are_found(tmp_path: Path):
    content = SETTINGS.encode()
    assert read_texts(gif(tmp_path / "a", gif_comment(content), IMAGE)) == {"parameters": SETTINGS}
    assert read_texts(mp4(tmp_path / "b", moov(content))) == {"parameters": SETTINGS}
    assert read_texts(mp4(tmp_path / "b", moov(b"holidays"))) == {}


def test_files_without_a_recipe_and_without_its_place_are_refused(tmp_path: Path):
    for path in (
        gif(tmp_path / "a.gif"),
        gif(tmp_path / "b.gif", gif_comment(b"hello"), IMAGE),
        mp4(tmp_path / "a.mp4"),
        mp4(tmp_path / "b.mp4", box(b"moov", box(b"udta", b""))),
    ):
        with pytest.raises(UndustError, match=rf"{path.name} has no undust recipe$"):
            read_recipe(path)


def test_every_cut_of_a_gif_is_refused(tmp_path: Path):
    content = gif(tmp_path / "a.gif", gif_comment(NOTE), DELAY, IMAGE).read_bytes()
    for length in range(len(content)):
        (tmp_path / "a.gif").write_bytes(content[:length])
        with pytest.raises(UndustError, match=r"a\.gif is (not a PNG|damaged: it is cut short)"):
            read_recipe(tmp_path / "a.gif")


def test_every_cut_of_an_mp4_within_a_box_is_refused(tmp_path: Path):
    content = mp4(tmp_path / "a.mp4", moov(NOTE), box(b"mdat", bytes(9))).read_bytes()
    between = {len(START), len(content) - 17}
    for length in set(range(len(content))) - between:
        (tmp_path / "a.mp4").write_bytes(content[:length])
        with pytest.raises(UndustError, match=r"a\.mp4 is (not a PNG|damaged: it is cut short)"):
            read_recipe(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    "wrong",
    [
        struct.pack(">I4s", 7, b"moov"),  # shorter than its own head
        struct.pack(">I4sQ", 1, b"moov", 2**64 - 1),
        struct.pack(">I4sQ", 1, b"moov", 15),
        struct.pack(">I4s", 2**31, b"moov"),
    ],
)
def test_a_box_of_impossible_length_is_refused(tmp_path: Path, wrong: bytes):
    with pytest.raises(UndustError, match="damaged: it is cut short"):
        read_recipe(mp4(tmp_path / "a.mp4", wrong))


def test_unknown_blocks_of_a_gif_are_refused(tmp_path: Path):
    with pytest.raises(UndustError, match="damaged: it has an unknown block"):
        read_recipe(gif(tmp_path / "a.gif", b"?", gif_comment(NOTE)))


def test_a_long_comment_costs_neither_memory_nor_time(tmp_path: Path):
    """16 MiB, of which a MiB is kept; joining its blocks one by one would copy 500 GiB."""
    long = 16 * containers.LIMIT * b"."
    for start, told in ((b"undust:", "its recipe has more than"), (b"", "no undust recipe")):
        for path in (
            gif(tmp_path / "a.gif", gif_comment(start + long), IMAGE),
            mp4(tmp_path / "a.mp4", moov(start + long)),
        ):
            tracemalloc.start()
            before = time.process_time()
            with pytest.raises(UndustError, match=told):
                read_recipe(path)
            assert time.process_time() - before < 10
            assert tracemalloc.get_traced_memory()[1] < 6 * containers.LIMIT
            tracemalloc.stop()


def test_many_long_comments_are_refused(tmp_path: Path):
    comment = gif_comment(containers.LIMIT * b".")
    with pytest.raises(UndustError, match="its comments have more than 4,194,304 bytes"):
        read_recipe(gif(tmp_path / "a.gif", *5 * [comment]))


def test_a_damaged_recipe_is_refused(tmp_path: Path):
    for content in (b"undust:", b"undust:{", b"undust:[]", b'undust:{"a": "\xff', 9 * b"undust:["):
        for path in (gif(tmp_path / "a", gif_comment(content)), mp4(tmp_path / "b", moov(content))):
            with pytest.raises(UndustError, match="has a damaged recipe"):
                read_recipe(path)
