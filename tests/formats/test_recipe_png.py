from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from undust.errors import UndustError
from undust.formats.metadata.containers import SIGNATURE
from undust.formats.recipe_png import LIMIT, read_recipe, read_texts, write_picture

RECIPE = {
    "prompt": "웃는 고양이, smiling\n“quoted” \\ 🐱",
    "negative": "blurry",
    "steps": 20,
    "guidance": 4.5,
    "sampler": "dpmpp-2m",
    "schedule": "karras",
    "seed": 2**63 - 1,
    "width": 8,
    "height": 4,
    "model": "emoji",
    "model_hash": "0123456789",
}


def picture(mode: str = "RGB") -> Image.Image:
    return Image.linear_gradient("L").resize((8, 4)).convert(mode)


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png_with(path: Path, *chunks: bytes) -> Path:
    """A whole PNG of Pillow's with the chunks put in before its end."""
    picture().save(path, "PNG")
    content = path.read_bytes()
    path.write_bytes(content[:-12] + b"".join(chunks) + content[-12:])
    return path


def test_a_picture_keeps_its_pixels_and_its_recipe(tmp_path: Path):
    path = tmp_path / "a.png"
    write_picture(path, picture(), RECIPE)
    assert read_recipe(path) == RECIPE
    with Image.open(path) as image:
        assert image.tobytes() == picture().tobytes()


def test_others_read_the_texts_too(tmp_path: Path):
    write_picture(tmp_path / "a.png", picture(), RECIPE)
    with Image.open(tmp_path / "a.png") as image:
        texts = image.text
    assert json.loads(texts["undust"]) == RECIPE
    assert texts["parameters"].startswith(RECIPE["prompt"])
    assert "Sampler: DPM++ 2M" in texts["parameters"]


@pytest.mark.parametrize(
    ("prompt", "kind"), [("café", b"tEXt"), ("고양이", b"iTXt")], ids=["latin", "korean"]
)
def test_the_chunk_for_web_uis_is_the_one_they_write(tmp_path: Path, prompt: str, kind: bytes):
    write_picture(tmp_path / "a.png", picture(), {"prompt": prompt})
    assert kind + b"parameters\0" in (tmp_path / "a.png").read_bytes()


def test_the_same_picture_and_recipe_give_the_same_bytes(tmp_path: Path):
    image = picture()
    write_picture(tmp_path / "a.png", image, RECIPE)
    image.info |= {"dpi": (72, 72), "icc_profile": b"somebody's", "exif": b"Exif\0\0"}
    write_picture(tmp_path / "b.png", image, dict(reversed(RECIPE.items())))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_picture_cut_at_any_byte_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "cut.png"
    write_picture(path, picture(), RECIPE)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(UndustError, match=r"cut\.png is (not a PNG|damaged: it is cut short)"):
            read_recipe(path)


def test_a_changed_recipe_is_noticed(tmp_path: Path):
    path = tmp_path / "a.png"
    write_picture(path, picture(), RECIPE)
    path.write_bytes(path.read_bytes().replace(b'"steps": 20', b'"steps": 21'))
    with pytest.raises(UndustError, match="checksum"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ({}, "no undust recipe$"),
        ({"parameters": "a cat"}, "no undust recipe; it has A1111"),
        ({"undust": "{"}, "damaged recipe"),
        ({"undust": "[" * 100_000}, "damaged recipe"),
        ({"undust": "[]"}, "not an object"),
    ],
)
def test_a_picture_without_a_recipe_is_refused(tmp_path: Path, texts: dict[str, str], reason: str):
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    picture().save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(UndustError, match=reason):
        read_recipe(tmp_path / "a.png")


def test_what_is_no_picture_with_texts_is_refused(tmp_path: Path):
    picture().save(tmp_path / "a.bmp")
    with pytest.raises(
        UndustError, match=r"a\.bmp is not a PNG, JPEG, WebP, AVIF, TIFF or GIF picture"
    ):
        read_recipe(tmp_path / "a.bmp")
    with pytest.raises(UndustError, match="No such file"):
        read_recipe(tmp_path / "absent.png")
    with pytest.raises(UndustError, match="is a folder, not a file"):
        read_recipe(tmp_path)


def test_compressed_texts_are_read(tmp_path: Path):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("undust", json.dumps(RECIPE, ensure_ascii=False), zip=True)
    info.add_text("parameters", "a cat", zip=True)
    picture().save(tmp_path / "a.png", pnginfo=info)
    assert read_recipe(tmp_path / "a.png") == RECIPE
    assert read_texts(tmp_path / "a.png")["parameters"] == "a cat"


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_a_text_that_unpacks_to_too_much_is_refused(tmp_path: Path, kind: bytes):
    bomb = zlib.compress(bytes(LIMIT * 50), 9)
    head = b"undust\0" + (b"\0" if kind == b"zTXt" else b"\1\0\0\0")
    path = png_with(tmp_path / "a.png", chunk(kind, head + bomb))
    assert path.stat().st_size < LIMIT / 10
    with pytest.raises(UndustError, match="more than 1,048,576 bytes"):
        read_recipe(path)


def test_a_text_that_is_too_long_is_refused(tmp_path: Path):
    text = json.dumps({"prompt": "a" * LIMIT}).encode()
    path = png_with(tmp_path / "a.png", chunk(b"tEXt", b"undust\0" + text))
    with pytest.raises(UndustError, match="more than 1,048,576 bytes"):
        read_recipe(path)
    with pytest.raises(UndustError, match="1,048,576 at most"):
        write_picture(tmp_path / "b.png", picture(), {"prompt": "a" * LIMIT})
    assert not (tmp_path / "b.png").exists()


def test_the_long_texts_of_others_are_passed_over(tmp_path: Path):
    own = chunk(b"iTXt", b'undust\0\0\0\0\0{"seed": 1}')
    path = png_with(tmp_path / "a.png", chunk(b"tEXt", b"workflow\0" + b"a" * 3 * LIMIT), own)
    assert read_recipe(path) == {"seed": 1}


@pytest.mark.parametrize(
    "recipe", [{"prompt": "\ud800"}, {"guidance": float("nan")}, {"prompt": object()}]
)
def test_a_recipe_that_cannot_be_written_is_refused(tmp_path: Path, recipe: dict):
    with pytest.raises(UndustError, match="not valid JSON"):
        write_picture(tmp_path / "a.png", picture(), recipe)
    assert list(tmp_path.iterdir()) == []


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@given(recipe=st.dictionaries(TEXT | st.sampled_from(sorted(RECIPE)), JSON, max_size=6))
def test_any_recipe_comes_back(tmp_path_factory, recipe: dict):
    path = tmp_path_factory.getbasetemp() / "any.png"
    write_picture(path, picture(), recipe)
    assert read_recipe(path) == recipe


CHUNKS = st.builds(
    chunk,
    st.sampled_from([b"tEXt", b"zTXt", b"iTXt", b"IEND", b"IDAT"]),
    st.sampled_from(
        [b"undust\0", b"undust\0\0", b"undust\0\1\0\0\0", b"parameters\0", b""]
    ).flatmap(lambda head: st.binary(max_size=30).map(lambda rest: head + rest)),
)


@given(
    content=st.binary(max_size=100)
    | st.lists(CHUNKS | st.binary(max_size=9), max_size=5).map(b"".join)
)
def test_any_bytes_give_texts_or_an_error(tmp_path_factory, content: bytes):
    path = tmp_path_factory.getbasetemp() / "any.png"
    path.write_bytes(SIGNATURE + content)
    for read in (read_texts, read_recipe):
        try:
            assert isinstance(read(path), dict)
        except UndustError as error:
            assert "any.png" in str(error)
