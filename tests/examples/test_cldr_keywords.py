"""Keywords from files laid out as the Unicode CLDR's."""

from __future__ import annotations

from pathlib import Path

import pytest
from cldr_keywords import FOLDER, Keywords

from undust.errors import UndustError

# Three entries of CLDR 41's annotations/en.xml and one of annotationsDerived/en.xml.
PLAIN = """<?xml version="1.0" encoding="UTF-8" ?>
<!DOCTYPE ldml SYSTEM "../../common/dtd/ldml.dtd">
<ldml><identity><language type="en"/></identity><annotations>
<annotation cp="🚗">automobile | car</annotation>
<annotation cp="🚗" type="tts">automobile</annotation>
<annotation cp="❤">heart</annotation>
<annotation cp="❤" type="tts">red heart</annotation>
<annotation cp="🎻">violin</annotation>
<annotation cp="🎻" type="tts">violin</annotation>
</annotations></ldml>
"""
DERIVED = """<ldml><annotations>
<annotation cp="👍🏿">+1 | dark skin tone | hand | thumb</annotation>
<annotation cp="👍🏿" type="tts">thumbs up: dark skin tone</annotation>
</annotations></ldml>
"""


@pytest.fixture
def cldr(tmp_path: Path) -> Path:
    for part, text in (("annotations", PLAIN), ("annotationsDerived", DERIVED)):
        (tmp_path / part).mkdir()
        (tmp_path / part / "en.xml").write_text(text, "utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("🚗", ["car"]),
        ("❤️", ["heart"]),  # with the variation selector that CLDR leaves out
        ("🎻", []),
        ("👍🏿", ["+1", "dark skin tone", "hand", "thumb"]),
        ("😀", []),
    ],
)
def test_keywords_without_the_name(cldr: Path, text: str, words: list[str]) -> None:
    assert Keywords("en", cldr)(text) == words


def test_no_files_no_keywords(cldr: Path, tmp_path: Path) -> None:
    assert Keywords("ko", cldr)("🚗") == []
    assert Keywords("en", tmp_path / "nothing")("🚗") == []


@pytest.mark.parametrize("content", [b"", b"<ldml><annotation", b"\xff\xfe\x00", b"no xml"])
def test_a_broken_file_is_named(cldr: Path, content: bytes) -> None:
    (cldr / "annotations/en.xml").write_bytes(content)
    with pytest.raises(UndustError, match=r"cannot read CLDR's keywords in .*en\.xml: "):
        Keywords("en", cldr)("🚗")


def test_the_systems_own_files() -> None:
    """TextConditioner of all the versions since CLDR has annotations."""
    if not FOLDER.is_dir():
        pytest.skip("CLDR's files are not installed (Debian: unicode-cldr-core)")
    assert "car" in Keywords("en")("🚗")
    assert "하트" in Keywords("ko")("💚")
