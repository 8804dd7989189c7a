"""The texts in a picture or film: PNG text chunks, EXIF, XMP and comments.

Keys are PNG keywords. EXIF's UserComment counts as `parameters`, as the web UIs use it; MakerNote
with the prefix `undust:` is our own recipe, which EXIF has no better place for, and so is a comment
of a GIF or an MP4 with that prefix.
"""

from __future__ import annotations

import os
import re
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast
from xml.etree import ElementTree

from PIL import Image, IptcImagePlugin, UnidentifiedImageError

from undust.errors import UndustError, printable
from undust.formats.a1111_lines import SETTINGS_LINE
from undust.formats.metadata import comments
from undust.formats.metadata.comments import LIMIT, DamageError
from undust.regular import open_regular

KEY, A1111_KEY = "undust", "parameters"
TOTAL_LIMIT = 4 * LIMIT  # bytes of all texts
SIGNATURE = b"\x89PNG\r\n\x1a\n"
KINDS = ("JPEG", "MPO", "WEBP", "AVIF", "TIFF")  # by Pillow
READ = ("PNG", "GIF", "MP4", *KINDS)
EXIF_IFD, USER_COMMENT, MAKER_NOTE = 0x8769, 0x9286, 0x927C
IMAGE_DESCRIPTION, XP_COMMENT = 0x010E, 0x9C9C  # where converters and Windows keep comments
OWN_NOTE = b"undust:"  # what the recipe in a MakerNote or a comment begins with
SCHEMES = {"fooocus", "a1111"}  # Fooocus' MakerNote: the format of its UserComment
XMP_KEYS = ("XML:com.adobe.xmp", "xmp")
XMP_NAMES = (
    "{http://ns.adobe.com/exif/1.0/}UserComment",
    "{http://purl.org/dc/elements/1.1/}description",
)
XMP_ITEM = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
IPTC_CAPTION = (2, 120)  # caption/abstract, where Mochi Diffusion writes its settings
RAW_PROFILES = ("Raw profile type exif", "Raw profile type APP1")  # ImageMagick's EXIF in PNG


@dataclass
class Texts:
    """Texts by key, and a note on each that could not be read."""

    found: dict[str, str] = field(default_factory=dict[str, str])
    notes: list[str] = field(default_factory=list[str])


def read(path: Path) -> Texts:
    """All texts of a PNG, JPEG, WebP, AVIF or TIFF picture; the comments of a GIF or an MP4 film.

    Raises UndustError for a file that is absent, of no such kind, damaged or cut short, and for an
    `undust` or `parameters` text of more than a MiB; other texts like that are noted.
    """
    try:
        with open_regular(path) as file:
            start, size = file.read(12), os.fstat(file.fileno()).st_size
            file.seek(0)
            if start.startswith(SIGNATURE):
                return _png(file, size)
            if start.startswith(comments.GIF_STARTS):
                return _commented(comments.in_gif(file))
            if comments.is_mp4_start(start):
                return _commented(comments.in_mp4(file, size))
            return _pillow(file)
    except UnidentifiedImageError:
        raise UndustError(
            f"{path} is not a PNG, JPEG, WebP, AVIF, TIFF or GIF picture or an MP4 film"
        ) from None
    except DamageError as damage:
        raise UndustError(f"{path} is damaged: {damage}") from damage
    except OSError as error:
        raise UndustError(f"{path} cannot be read: {error.strerror or error}") from error
    except UndustError:
        raise
    except Image.DecompressionBombError as error:
        raise UndustError(f"{path} is too large: {error}") from error
    except Exception as error:  # ValueError, struct.error and others, depending on the decoder
        raise UndustError(f"{path} is a damaged picture: {error}") from error


def is_mp4(path: Path) -> bool:
    """Whether a file is an MP4 film, by its first bytes."""
    with open_regular(path) as file:
        return comments.is_mp4_start(file.read(12))


def _commented(found: Iterator[bytes]) -> Texts:
    texts, total = Texts(), 0
    for comment in found:
        if (total := total + len(comment)) > TOTAL_LIMIT:
            raise DamageError(f"its comments have more than {TOTAL_LIMIT:,} bytes")
        _add_comment(texts, comment)
    return texts


def _add_comment(texts: Texts, comment: bytes) -> None:
    """Adds a comment that is our recipe or looks like a program's settings."""
    if len(comment) > LIMIT:
        if comment.startswith(OWN_NOTE):
            raise DamageError(f"its recipe has more than {LIMIT:,} bytes")
        texts.notes.append(f"its comment has more than {LIMIT:,} bytes")
    elif comment.startswith(OWN_NOTE):
        texts.found.setdefault(KEY, comment.removeprefix(OWN_NOTE).decode("ascii", "replace"))
    elif _tells(told := _bytes_as_text(comment).strip("\0")):
        texts.found.setdefault(A1111_KEY, told)


def _png(file: BinaryIO, size: int) -> Texts:
    """Walks through the chunks (PNG specification, third edition, 5.3 and 11.3.3)."""
    texts, kind, total = Texts(), b"", 0
    file.seek(len(SIGNATURE))
    exif: list[bytes] = []
    while kind != b"IEND":
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or length + 4 > size - file.tell():
            raise DamageError("it is cut short")
        end = file.tell() + length + 4
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            key = file.read(min(length, 80)).partition(b"\0")[0].decode("latin-1")
            file.seek(end - length - 4)
            try:
                text = _chunk(file, kind, length, key)
                if (total := total + len(text)) > TOTAL_LIMIT:
                    raise DamageError(f"its texts have more than {TOTAL_LIMIT:,} bytes")
                texts.found[key] = text
            except DamageError as damage:
                if key in (KEY, A1111_KEY):
                    raise
                texts.notes.append(f"{printable(key)}: {damage}")
        elif kind == b"eXIf" and length <= LIMIT:
            exif.append(file.read(length))
        file.seek(end)
    for key in RAW_PROFILES:
        if key in texts.found:
            exif.append(_raw_profile(texts.found.pop(key)))
    for block in exif:
        _add_exif(texts, _exif(block))
    _add_xmp(texts)
    return texts


def _chunk(file: BinaryIO, kind: bytes, length: int, key: str) -> str:
    """A text chunk's text. Raises DamageError for one that is too long or does not fit its CRC."""
    if length > LIMIT + 80:
        raise DamageError(f"its text {key!r} has more than {LIMIT:,} bytes")
    content = file.read(length)
    if zlib.crc32(kind + content) != int.from_bytes(file.read(4), "big"):
        raise DamageError(f"its text {key!r} does not match its checksum")
    rest = content[len(key) + 1 :]
    packed = kind == b"zTXt"
    if packed:
        rest = rest[1:]  # the compression method; there is only one
    elif kind == b"iTXt":
        packed = rest[:1] == b"\1"
        # After the flag and the method: language, translated keyword, text.
        rest = (rest[2:].split(b"\0", 2) + 2 * [b""])[2]
    try:
        text = zlib.decompressobj().decompress(rest, LIMIT + 1) if packed else rest
        if len(text) > LIMIT:
            raise DamageError(f"a text in it has more than {LIMIT:,} bytes")
        return text.decode("utf-8", "replace") if kind == b"iTXt" else _bytes_as_text(text)
    except zlib.error as error:
        raise DamageError(f"a text in it cannot be read: {error}") from error


def _pillow(file: BinaryIO) -> Texts:
    texts = Texts()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(file) as image:
            if image.format not in KINDS:
                raise UnidentifiedImageError
            info = cast("dict[str, object]", image.info)
            try:
                exif = image.getexif()
            except Exception as error:  # struct.error, KeyError, …: as for any damaged EXIF
                exif = None
                texts.notes.append(f"its EXIF cannot be read: {error}")
            comment, xmp = info.get("comment"), info.get("xmp")
            if exif is not None:
                _add_exif(texts, exif)
            caption = _iptc_caption(image)
    if caption:
        _add_comment(texts, caption)
    if isinstance(comment, bytes) and len(comment) <= LIMIT:
        _add_comment(texts, comment)
    if isinstance(xmp, bytes | str) and len(xmp) <= LIMIT:
        texts.found["xmp"] = xmp if isinstance(xmp, str) else _bytes_as_text(xmp)
    _add_xmp(texts)
    return texts


def _iptc_caption(image: Image.Image) -> bytes:
    """The caption of a JPEG or TIFF picture by IPTC (IIM 4.2, 2:120); empty if there is none."""
    try:
        found = IptcImagePlugin.getiptcinfo(cast(Any, image)) or {}
    except Exception:  # SyntaxError, struct.error, …: as for any damaged EXIF
        return b""
    caption = found.get(IPTC_CAPTION, b"")
    return caption if isinstance(caption, bytes) else b""


def _exif(block: bytes) -> Image.Exif | None:
    exif = Image.Exif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exif.load(block)
    except Exception:  # struct.error, SyntaxError, …: Pillow trips over each fault in its own way
        return None
    return exif


def _raw_profile(text: str) -> bytes:
    """EXIF in hexadecimal digits, after its name and its length."""
    digits = "".join(text.split()[2:])
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return b""


def _add_exif(texts: Texts, exif: Image.Exif | None) -> None:
    """Adds the texts in EXIF's first directory and in that for photographs."""
    if exif is None:
        return
    try:
        first: dict[int, Any] = dict(exif)
        photo: dict[int, Any] = dict(exif.get_ifd(EXIF_IFD))
    except Exception as error:  # as above: a damaged directory
        texts.notes.append(f"its EXIF cannot be read: {error}")
        return
    order = "utf-16-be" if exif.endian == ">" else "utf-16-le"
    for tags in (photo, first):  # Fooocus writes all its tags into the first
        if comment := _user_comment(tags.get(USER_COMMENT), order):
            if len(comment) > LIMIT:
                raise DamageError(f"its UserComment has more than {LIMIT:,} characters")
            if _tells(comment):
                texts.found.setdefault(A1111_KEY, comment)
            elif comment.strip():
                texts.notes.append(f"its UserComment has no settings: {printable(comment)}")
        note = _as_bytes(tags.get(MAKER_NOTE))
        if note.startswith(OWN_NOTE):
            if len(note) > LIMIT:
                raise DamageError(f"its recipe has more than {LIMIT:,} bytes")
            texts.found.setdefault(KEY, note.removeprefix(OWN_NOTE).decode("ascii", "replace"))
        elif (scheme := note.rstrip(b"\0").decode("latin-1")) in SCHEMES:
            texts.found.setdefault("fooocus_scheme", scheme)
    windows = _as_bytes(first.get(XP_COMMENT)).decode("utf-16-le", "replace")
    for comment in (_bytes_as_text(_as_bytes(first.get(IMAGE_DESCRIPTION))), windows):
        if len(comment) <= LIMIT and SETTINGS_LINE.search(comment):
            texts.found.setdefault(A1111_KEY, comment.rstrip("\0"))
    for value in first.values():  # ComfyUI: prompt:{…} and workflow:{…} in Model, Make and others
        if isinstance(value, str) and len(value) <= LIMIT:
            found = re.match(r"(prompt|workflow):\s*(?=\{)", value, re.IGNORECASE)
            if found:
                text = _bytes_as_text(_as_bytes(value))
                texts.found.setdefault(found[1].lower(), text.partition(":")[2])


def _tells(text: str) -> bool:
    """Whether a comment looks like a program's settings."""
    return text.lstrip().startswith("{") or "Steps:" in text or "Negative prompt:" in text


def _as_bytes(value: object) -> bytes:
    """An EXIF value's bytes; Pillow decodes those that are marked as ASCII as Latin-1."""
    if isinstance(value, str):
        return value.encode("latin-1", "replace")
    return value if isinstance(value, bytes) else b""


def _user_comment(value: object, order: str) -> str:
    """The text of a UserComment: an encoding in eight bytes, then the text (EXIF 2.32, 4.6.5).

    order: the file's byte order, for a UNICODE text that does not tell its own.
    """
    content = _as_bytes(value)
    code, rest = content[:8].rstrip(b"\0 ").upper(), content[8:]
    if code == b"UNICODE":
        text = _utf16(rest, order)
    elif code == b"JIS":
        text = _japanese(rest)
    elif code in (b"ASCII", b"UTF-8", b"UTF8", b""):
        text = _any_text(rest, order)
    else:
        text = _any_text(content, order)
    return text.strip("\0").removeprefix("\ufeff")


def _utf16(content: bytes, order: str) -> str:
    """UTF-16 of either byte order: by its mark, or the order that gives more ASCII."""
    for mark, own in ((b"\xfe\xff", "utf-16-be"), (b"\xff\xfe", "utf-16-le")):
        if content.startswith(mark):
            return content[2:].decode(own, "replace")
    if b"\0" not in content:
        try:
            return content.decode()  # UTF-8 despite the given encoding
        except UnicodeDecodeError:
            pass
    orders = sorted(("utf-16-be", "utf-16-le"), key=lambda each: each != order)
    return max(
        (content.decode(each, "replace") for each in orders),
        key=lambda text: sum(letter.isascii() and letter != "\0" for letter in text),
    )


def _any_text(content: bytes, order: str) -> str:
    """Text with no encoding given, or ASCII, which is often wrong."""
    marked = content.startswith((b"\xfe\xff", b"\xff\xfe"))
    if marked or content.rstrip(b"\0").count(b"\0") * 4 > len(content):
        return _utf16(content, order)
    return _bytes_as_text(content)


def _japanese(content: bytes) -> str:
    for encoding in ("iso2022_jp", "shift_jis", "euc_jp"):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    return _bytes_as_text(content)


def _bytes_as_text(content: bytes) -> str:
    """UTF-8 if valid, although PNG's tEXt should be Latin-1; else Latin-1."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _add_xmp(texts: Texts) -> None:
    """Adds exif:UserComment of an XMP packet, where Draw Things writes its JSON.

    Failing that dc:description: Draw Things' settings in words, and on macOS an IPTC caption.
    """
    for key in XMP_KEYS:
        for comment in filter(_tells, _xmp_comments(texts.found.pop(key, ""))):
            texts.found.setdefault(A1111_KEY, comment)


def _xmp_comments(packet: str) -> Iterator[str]:
    if "<!" in packet.replace("<!--", ""):  # a DTD could define entities that grow without bound
        return
    try:
        root = ElementTree.fromstring(packet.strip("\0 \t\r\n\ufeff"))
    except (ElementTree.ParseError, ValueError):
        return
    for name in XMP_NAMES:
        for element in root.iter():
            if comment := element.get(name):
                yield comment
            if element.tag == name:
                first = element.find(f".//{XMP_ITEM}")  # of several languages
                yield "".join((element if first is None else first).itertext()).strip()
