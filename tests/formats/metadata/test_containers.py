"""The texts of picture files, by where they stand and how they are encoded."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from undust.errors import UndustError
from undust.formats.metadata import containers
from undust.formats.recipe_png import read_recipe, read_texts

TEXT = "a cat, 웃는 고양이\nSteps: 20, Sampler: Euler a, Seed: 1"
LATIN = TEXT.replace("웃는 고양이", "café")
IMAGE = Image.new("RGB", (8, 8), (200, 60, 40))
KINDS = {"JPEG": "jpg", "WEBP": "webp", "PNG": "png", "TIFF": "tif", "AVIF": "avif"}
BIG, LITTLE = TEXT.encode("utf-16-be"), TEXT.encode("utf-16-le")


def exif(photo: dict[int, Any], first: dict[int, Any] | None = None) -> Image.Exif:
    found = Image.Exif()
    for tag, value in (first or {}).items():
        found[tag] = value
    directory = found.get_ifd(containers.EXIF_IFD)
    directory.update(photo)
    found[containers.EXIF_IFD] = directory
    return found


def saved(folder: Path, kind: str, found: Image.Exif) -> Path:
    path = folder / f"a.{KINDS[kind]}"
    try:
        IMAGE.save(path, kind, exif=found)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow cannot write {kind}")
    return path


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png_with(path: Path, *chunks: bytes) -> Path:
    IMAGE.save(path, "PNG")
    content = path.read_bytes()
    path.write_bytes(content[:33] + b"".join(chunks) + content[33:])
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_user_comment_is_read_in_every_kind_of_file(tmp_path: Path, kind: str):
    path = saved(tmp_path, kind, exif({containers.USER_COMMENT: b"UNICODE\0" + BIG}))
    assert read_texts(path) == {"parameters": TEXT}


@pytest.mark.parametrize(
    ("comment", "text"),
    [
        (b"UNICODE\0" + BIG, TEXT),
        (b"UNICODE\0" + LITTLE, TEXT),
        (b"UNICODE\0\xfe\xff" + BIG, TEXT),
        (b"UNICODE\0\xff\xfe" + LITTLE, TEXT),
        (b"UNICODE\0" + LITTLE + b"\0\0", TEXT),
        (b"UNICODE\0" + TEXT.encode(), TEXT),  # mislabelled
        (b"Unicode\0" + BIG, TEXT),
        (b"ASCII\0\0\0" + LATIN.encode(), LATIN),
        (b"ASCII\0\0\0" + LATIN.encode("latin-1"), LATIN),
        (b"ASCII\0\0\0" + TEXT.encode(), TEXT),
        (b"UTF-8\0\0\0" + TEXT.encode(), TEXT),
        (b"JIS\0\0\0\0\0" + "猫\nSteps: 1".encode("iso2022_jp"), "猫\nSteps: 1"),
        (b"JIS\0\0\0\0\0" + "猫\nSteps: 1".encode("shift_jis"), "猫\nSteps: 1"),
        (bytes(8) + TEXT.encode(), TEXT),
        (bytes(8) + LITTLE, TEXT),
        (TEXT.encode(), TEXT),
        (b"\xef\xbb\xbf" + TEXT.encode(), TEXT),
        (b"\xff\xfe" + LITTLE, TEXT),
        (b'ASCII\0\0\0{"prompt": "a"}', '{"prompt": "a"}'),
    ],
)
def test_a_user_comment_is_read_in_every_encoding(tmp_path: Path, comment: bytes, text: str):
    path = saved(tmp_path, "JPEG", exif({containers.USER_COMMENT: comment}))
    assert read_texts(path)["parameters"] == text


@pytest.mark.parametrize(
    ("tag", "content"),
    [
        (containers.IMAGE_DESCRIPTION, TEXT.encode()),
        (containers.XP_COMMENT, LITTLE + b"\0\0"),
    ],
)
def test_the_web_uis_text_in_tags_of_the_first_directory(tmp_path: Path, tag: int, content: bytes):
    path = saved(tmp_path, "JPEG", exif({}, {tag: content}))
    assert containers.read(path).found == {"parameters": TEXT}
    path = saved(tmp_path, "JPEG", exif({}, {tag: content[:20]}))
    assert containers.read(path).found == {}


def test_bytes_that_are_no_utf8_cost_themselves_alone(tmp_path: Path):
    chunks = chunk(b"iTXt", b"parameters\0\0\0\0\0\xff" + TEXT.encode())
    assert containers.read(png_with(tmp_path / "a.png", chunks)).found["parameters"][1:] == TEXT


def test_hangul_alone_is_not_turned_round(tmp_path: Path):
    text = "Steps: 1\n" + "웃는고양이" * 50
    for encoding in ("utf-16-be", "utf-16-le"):
        comment = b"UNICODE\0" + text.encode(encoding)
        path = saved(tmp_path, "WEBP", exif({containers.USER_COMMENT: comment}))
        assert read_texts(path)["parameters"] == text


@pytest.mark.parametrize("kind", KINDS)
def test_our_own_recipe_is_read_from_the_maker_note(tmp_path: Path, kind: str):
    recipe = {"prompt": "웃는 고양이", "seed": 2**63 - 1}
    note = b"undust:" + json.dumps(recipe, ensure_ascii=True).encode()
    tags = {containers.USER_COMMENT: b"UNICODE\0" + BIG, containers.MAKER_NOTE: note}
    path = saved(tmp_path, kind, exif(tags))
    assert read_recipe(path) == recipe
    assert read_texts(path) == {"undust": json.dumps(recipe), "parameters": TEXT}


def test_tags_in_the_first_directory_are_read(tmp_path: Path):
    """Fooocus writes all of its tags there, as ASCII."""
    tags = {containers.USER_COMMENT: TEXT.encode(), containers.MAKER_NOTE: b"a1111"}
    path = saved(tmp_path, "JPEG", exif({}, tags))
    found = containers.read(path).found
    assert found == {"parameters": TEXT, "fooocus_scheme": "a1111"}


def test_comfyuis_graph_is_read_from_the_camera_tags(tmp_path: Path):
    tags = {0x0110: 'prompt:{"3": {}}', 0x010F: 'workflow:{"nodes": []}'}
    path = saved(tmp_path, "WEBP", exif({}, tags))
    assert containers.read(path).found == {"prompt": '{"3": {}}', "workflow": '{"nodes": []}'}


def test_a_jpegs_comment_counts_if_it_tells_settings(tmp_path: Path):
    for comment, found in ((TEXT, {"parameters": TEXT}), ("CREATOR: gd-jpeg v1.0", {})):
        IMAGE.save(tmp_path / "a.jpg", comment=comment.encode())
        assert read_texts(tmp_path / "a.jpg") == found


def test_a_cameras_user_comment_is_no_prompt(tmp_path: Path):
    path = saved(tmp_path, "JPEG", exif({containers.USER_COMMENT: b"ASCII\0\0\0Screenshot"}))
    texts = containers.read(path)
    assert texts.found == {}
    assert texts.notes == ["its UserComment has no settings: Screenshot"]


XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-'
    'syntax-ns#"><rdf:Description xmlns:exif="http://ns.adobe.com/exif/1.0/"><exif:UserComment>'
    '<rdf:Alt><rdf:li xml:lang="x-default">{}</rdf:li></rdf:Alt></exif:UserComment>'
    "</rdf:Description></rdf:RDF></x:xmpmeta>"
)


def test_xmp_is_read_from_png_and_jpeg(tmp_path: Path):
    packet = XMP.format('{"c": "웃"}')
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", packet)
    IMAGE.save(tmp_path / "a.png", pnginfo=info)
    IMAGE.save(tmp_path / "a.jpg", xmp=packet.encode())
    for name in ("a.png", "a.jpg"):
        assert read_texts(tmp_path / name) == {"parameters": '{"c": "웃"}'}


def test_a_description_in_xmp_is_read_after_the_comment(tmp_path: Path):
    described = XMP.replace("exif:UserComment", "dc:description").replace(
        "xmlns:exif", 'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:exif'
    )
    other = '</rdf:li><rdf:li xml:lang="de">eine Katze'
    IMAGE.save(tmp_path / "a.jpg", xmp=described.format(TEXT + other).encode())
    assert read_texts(tmp_path / "a.jpg") == {"parameters": TEXT}
    both = described.format(TEXT).replace(
        "<dc:d", "<exif:UserComment>{&quot;c&quot;: 1}</exif:UserComment><dc:d"
    )
    IMAGE.save(tmp_path / "b.jpg", xmp=both.encode())
    assert read_texts(tmp_path / "b.jpg") == {"parameters": '{"c": 1}'}
    IMAGE.save(tmp_path / "c.jpg", xmp=described.format("a day at the sea").encode())
    assert read_texts(tmp_path / "c.jpg") == {}


@pytest.mark.parametrize("caption", [TEXT, "a day at the sea"])
def test_iptcs_caption_is_read(tmp_path: Path, caption: str):
    """IIM 4.2 inside a Photoshop resource, as macOS writes captions into JPEG files."""
    text = caption.encode()
    record = b"\x1c\x02\x78" + struct.pack(">H", len(text)) + text
    resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(record)) + record
    resource += b"\0" * (len(record) % 2)
    segment = b"Photoshop 3.0\0" + resource
    IMAGE.save(tmp_path / "plain.jpg")
    plain = (tmp_path / "plain.jpg").read_bytes()
    path = tmp_path / "a.jpg"
    path.write_bytes(
        plain[:2] + b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment + plain[2:]
    )
    assert read_texts(path) == ({"parameters": TEXT} if caption is TEXT else {})


def test_xmp_with_entities_is_passed_over(tmp_path: Path):
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>' + XMP.format("{&b;")
    IMAGE.save(tmp_path / "a.jpg", xmp=bomb.encode())
    assert read_texts(tmp_path / "a.jpg") == {}


def test_imagemagicks_profiles_are_read(tmp_path: Path):
    block = exif({containers.USER_COMMENT: b"UNICODE\0" + BIG}).tobytes()
    profile = f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()
    content = b"Raw profile type exif\0\0" + zlib.compress(profile)
    path = png_with(tmp_path / "a.png", chunk(b"zTXt", content))
    assert read_texts(path) == {"parameters": TEXT}


@pytest.mark.parametrize("text", [TEXT, LATIN])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_utf8_in_a_latin_text_chunk(tmp_path: Path, text: str, encoding: str):
    if text is TEXT and encoding == "latin-1":
        pytest.skip("there is no Hangul in Latin-1")
    content = b"parameters\0" + text.encode(encoding)
    plain = png_with(tmp_path / "a.png", chunk(b"tEXt", content))
    assert read_texts(plain)["parameters"] == text
    packed = b"parameters\0\0" + zlib.compress(text.encode(encoding))
    path = png_with(tmp_path / "b.png", chunk(b"zTXt", packed))
    assert read_texts(path)["parameters"] == text


def test_the_damaged_and_long_texts_of_others_are_noted(tmp_path: Path):
    bomb = b"prompt\0\0" + zlib.compress(bytes(50 * containers.LIMIT))
    wrong = chunk(b"tEXt", b"Comment\0{}")[:-1] + b"?"
    texts = containers.read(png_with(tmp_path / "a.png", chunk(b"zTXt", bomb), wrong))
    assert texts.found == {}
    assert [note.partition(":")[0] for note in texts.notes] == ["prompt", "Comment"]


def test_many_texts_are_bounded(tmp_path: Path):
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(containers.LIMIT)))
    texts = containers.read(png_with(tmp_path / "a.png", *[bomb] * 50))
    assert len(texts.notes) == 46


@given(comment=st.binary(max_size=40), note=st.binary(max_size=20), order=st.booleans())
def test_any_tags_give_texts_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, comment: bytes, note: bytes, order: bool
):
    path = tmp_path_factory.getbasetemp() / "any comment.jpg"
    code = (b"UNICODE\0", b"")[order]
    tags = {containers.USER_COMMENT: code + comment, containers.MAKER_NOTE: b"undust:" + note}
    IMAGE.save(path, exif=exif(tags))
    assert all(isinstance(text, str) for text in read_texts(path).values())


@given(place=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 600))
def test_any_damage_gives_texts_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int, cut: int
):
    folder = tmp_path_factory.getbasetemp() / "containers"
    folder.mkdir(exist_ok=True)
    for kind in ("JPEG", "WEBP", "TIFF"):
        path = folder / f"whole.{kind}"
        if not path.exists():
            tags = {
                containers.USER_COMMENT: b"UNICODE\0" + BIG,
                containers.MAKER_NOTE: b"undust:{}",
            }
            IMAGE.save(path, kind, exif=exif(tags))
        content = bytearray(path.read_bytes())
        content[place % len(content)] = byte
        damaged = folder / "damaged"
        damaged.write_bytes(content[: len(content) - cut % len(content)])
        try:
            assert isinstance(containers.read(damaged).found, dict)
        except UndustError as error:
            assert "damaged" in str(error)
