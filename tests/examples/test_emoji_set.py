"""The emoji data set: names, the split, and pictures where the font is installed."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from emoji_set import (
    EmojiNames,
    EmojiRenderer,
    build,
    code_points,
    find_font,
    is_held_out,
)
from PIL import features

from undust.datasets import image_folder
from undust.errors import UndustError


@pytest.fixture(scope="module")
def names() -> EmojiNames:
    return EmojiNames()


@pytest.fixture(scope="module")
def renderer() -> EmojiRenderer:
    try:
        find_font()
    except UndustError as error:
        pytest.skip(str(error))
    return EmojiRenderer()


# The names in Unicode's emoji-test.txt, version 15.1.
UNICODE_NAMES = {
    "😻": "smiling cat with heart-eyes",
    "👒": "woman’s hat",
    "🅰️": "A button (blood type)",
    "🏳️‍🌈": "rainbow flag",
    "🇰🇷": "flag: South Korea",
    "🇦🇬": "flag: Antigua & Barbuda",
    "🇧🇱": "flag: St. Barthélemy",
    "🏴󠁧󠁢󠁷󠁬󠁳󠁿": "flag: Wales",
    "#️⃣": "keycap: #",
    "🔟": "keycap: 10",
    "🧑🏽": "person: medium skin tone",
    "🧑🏾‍🚀": "astronaut: medium-dark skin tone",
    "🧒🏻": "child: light skin tone",
    "🧑🏾‍🦰": "person: medium-dark skin tone, red hair",
    "👨‍🦲": "man: bald",
    "👱‍♀️": "woman: blond hair",
    "👱🏿": "person: dark skin tone, blond hair",
    "🧔🏽‍♂️": "man: medium skin tone, beard",
    "👩🏼‍🦯‍➡️": "woman with white cane facing right: medium-light skin tone",
    "🫱🏻‍🫲🏿": "handshake: light skin tone, dark skin tone",
    "👩🏽‍🤝‍👨🏼": "woman and man holding hands: medium skin tone, medium-light skin tone",
    "💏": "kiss",
    "💏🏽": "kiss: medium skin tone",
    "💋": "kiss mark",
    "👩‍❤️‍💋‍👨": "kiss: woman, man",
    "🧑🏻‍❤️‍🧑🏿": "couple with heart: person, person, light skin tone, dark skin tone",
    "👪": "family",
    "👨‍👩‍👧‍👦": "family: man, woman, girl, boy",
    "🧑‍🧑‍🧒": "family: adult, adult, child",
    "👨‍👨‍👦‍👦": "family: man, man, boy, boy",
}


@pytest.mark.parametrize(("text", "name"), UNICODE_NAMES.items(), ids=UNICODE_NAMES.values())
def test_english_names_are_unicodes(names: EmojiNames, text: str, name: str) -> None:
    assert names.caption(text, "en") == name


# The names in the Unicode CLDR's annotations, Korean, version 44.
KOREAN_NAMES = {
    "😻": "하트 눈 고양이 얼굴",
    "🇰🇷": "깃발: 대한민국",
    "🧑🏽‍🚀": "우주비행사: 갈색 피부",
    "🧑🏾‍🦰": "사람: 진한 갈색 피부, 빨간 머리",
    "👨‍👩‍👧": "가족: 남자, 여자, 여자 아이",
    "👩🏿‍❤️‍💋‍👨🏻": "키스: 여자, 남자, 검은색 피부, 하얀 피부",
}


@pytest.mark.parametrize(("text", "name"), KOREAN_NAMES.items(), ids=KOREAN_NAMES.values())
def test_korean_names_are_cldrs(names: EmojiNames, text: str, name: str) -> None:
    assert names.caption(text, "ko") == name


def test_every_caption_is_clean(names: EmojiNames) -> None:
    """No empty, padded or half-joined caption in any language, and tones after a colon."""
    for text in names:
        row = names.row(text)
        captions = {key: value for key, value in row.items() if key.startswith("text")}
        assert len([key for key in captions if not key.endswith("_keywords")]) == 14
        for caption in captions.values():
            assert caption == caption.strip()
            assert caption.rstrip(":,") == caption != ""
            assert not {"_", "\n"} & set(caption)
            assert "  " not in caption
        if "skin tone" in row["text"]:
            assert row["text"].index(": ") < row["text"].index("skin tone")


def test_a_row(names: EmojiNames) -> None:
    row = names.row("🕵🏽‍♂️")
    assert row["file_name"] == "1f575-1f3fd-200d-2642-fe0f.png"
    assert row["code_points"] == "U+1F575 U+1F3FD U+200D U+2642 U+FE0F"
    assert row["text"] == "man detective: medium skin tone"
    assert row["concept"] == "🕵️‍♂️"  # with the variation selector that the tone replaces


def test_variants_share_a_concept(names: EmojiNames) -> None:
    assert {names.concept(t) for t in ("👋", "👋🏻", "👋🏼", "👋🏽", "👋🏾", "👋🏿")} == {"👋"}
    assert names.concept("☝🏿") == "☝️"
    assert names.concept("🧑🏻‍❤️‍🧑🏿") == names.concept("🧑🏿‍❤️‍🧑🏻")
    assert names.concept("😻") == "😻"


def test_the_held_out_tenth(names: EmojiNames) -> None:
    def rule(text: str) -> bool:
        points = " ".join(f"U+{ord(c):04X}" for c in text).encode()
        toned = any(0x1F3FB <= ord(c) <= 0x1F3FF for c in text)
        return toned and int.from_bytes(hashlib.sha256(points).digest(), "big") % 10 == 0

    held_out = [text for text in names if is_held_out(text)]
    assert held_out == [text for text in names if rule(text)]
    toned = [text for text in names if "skin tone" in names.caption(text, "en")]
    assert 0.08 < len(held_out) / len(toned) < 0.12
    assert all(names.row(text)["split"] == "test" for text in held_out)
    parts_seen = {names.concept(text) for text in names if not is_held_out(text)}
    assert {names.concept(text) for text in held_out} <= parts_seen


def test_the_rule_by_hand() -> None:
    """`printf 'U+1F9D1 U+1F3FD' | sha256sum` as a whole number ends in 0; the other's in 9."""
    assert is_held_out("🧑🏽")
    assert not is_held_out("👋🏻")


def test_code_points_have_at_least_four_digits() -> None:
    assert code_points("#️⃣") == "U+0023 U+FE0F U+20E3"


def test_the_font_has_it_or_not(renderer: EmojiRenderer) -> None:
    drawn = ["😻", "🇰🇷", "🏴󠁧󠁢󠁷󠁬󠁳󠁿", "#️⃣", "👨‍👩‍👧‍👦", "🧑🏾‍🚀", "❤️", "🫱🏻‍🫲🏿"]
    absent = {
        "an unassigned character": "\U0010ffff",
        "two emoji": "😀😀",
        "a sequence that is none": "😀\u200d🚀",
        "a tone on what takes none": "🚀🏽",
        "a region that is none": "🇽🇽",
        "half a flag and more": "🇰🇷🇰",
        "nothing": "",
    }
    assert [text for text in drawn if not renderer.can_draw(text)] == []
    assert [why for why, text in absent.items() if renderer.can_draw(text)] == []


@pytest.mark.parametrize("size", [16, 64, 128])
def test_pictures_are_centred_on_white(renderer: EmojiRenderer, size: int) -> None:
    for text in ("😀", "🇰🇷", "🐍", "📏", "👨‍👩‍👧‍👦", "🗽", "🕳️"):
        picture = renderer.draw(text, size)
        assert (picture.mode, picture.size) == ("RGB", (size, size))
        ink = (np.asarray(picture).min(axis=2) < 250).nonzero()
        for places in ink:
            before, after = places.min(), size - 1 - places.max()
            assert before >= max(1, size // 64) or size == 16
            assert abs(int(before) - int(after)) <= max(1, size // 32)


def test_tones_and_sequences_are_drawn(renderer: EmojiRenderer) -> None:
    tones = [np.asarray(renderer.draw(f"👋{tone}", 64)).mean() for tone in "🏻🏼🏽🏾🏿"]
    assert tones == sorted(tones, reverse=True)
    assert renderer.draw("🧑‍🚀", 64).tobytes() != renderer.draw("🧑", 64).tobytes()


def test_a_larger_picture_shows_the_same(renderer: EmojiRenderer) -> None:
    """128 pixels box-averaged to 64 are the 64-pixel picture, but for the filter's sharpness."""
    small = np.asarray(renderer.draw("😻", 64), dtype=float)
    large = np.asarray(renderer.draw("😻", 128).reduce(2), dtype=float)
    assert np.abs(small - large).mean() < 4


SOME = ["😀", "🧑🏾‍🚀", "👋🏻", "👋", "🇰🇷", "#️⃣"]


def test_build(renderer: EmojiRenderer, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    folder = tmp_path / "new/emoji"
    assert build(folder, 32, lambda done, total: seen.append((done, total)), only=SOME) == 6
    assert seen == [(n, 6) for n in range(1, 7)]
    samples = image_folder.read(folder)
    assert {s.captions["text"] for s in samples} >= {"flag: South Korea", "keycap: #"}
    assert {s.group for s in samples if "waving hand" in s.captions["text"]} == {"👋"}
    report = image_folder.check(folder)
    assert (report.broken, report.contents.unlisted, report.groups) == ([], [], 5)
    assert report.sizes == {(32, 32): 6}
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert rows == sorted(
        rows, key=lambda row: [int(p[2:], 16) for p in row["code_points"].split()]
    )


def test_build_again_makes_the_same_bytes(renderer: EmojiRenderer, tmp_path: Path) -> None:
    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    build(tmp_path, 32, only=SOME)
    first = contents()
    (tmp_path / "metadata.jsonl").unlink()  # as a build that was killed leaves it
    (tmp_path / "1f600.png").write_bytes(first["1f600.png"][:100])
    (tmp_path / "1f44b.png").rename(tmp_path / "1f44b.tmp")
    (tmp_path / "metadata.tmp").write_text('{"file_')
    (tmp_path / ".undust-0.tmp").mkdir()
    build(tmp_path, 32, only=SOME)
    assert contents() == first


@pytest.mark.parametrize("stranger", ["holiday.png", "notes.txt", "1f600.jpg", "metadata.jsonl"])
def test_build_leaves_what_is_not_its_own(
    renderer: EmojiRenderer, tmp_path: Path, stranger: str
) -> None:
    (tmp_path / stranger).write_text('{"file_name": "holiday.png"}\n')
    with pytest.raises(UndustError, match=f"holds {stranger}"):
        build(tmp_path, 32, only=SOME)
    assert [path.name for path in tmp_path.iterdir()] == [stranger]


def test_build_refuses(renderer: EmojiRenderer, tmp_path: Path) -> None:
    build(tmp_path / "small", 16, only=["😀"])
    with pytest.raises(UndustError, match="holds emoji of 16 pixels"):
        build(tmp_path / "small", 32, only=["😀"])
    with pytest.raises(UndustError, match=r"'🕵' \(U\+1F575\) is not a fully qualified emoji"):
        build(tmp_path / "unknown", only=["🕵"])
    for size in (0, -1, 7, 5000):
        with pytest.raises(UndustError, match=f"of {size} pixels"):
            build(tmp_path / "never", size)
    (tmp_path / "file").write_text("")
    with pytest.raises(UndustError, match="cannot build the data set in"):
        build(tmp_path / "file", only=["😀"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "small"]


def test_a_missing_font_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HOME", "XDG_DATA_HOME", "XDG_DATA_DIRS"):
        monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(UndustError, match="apt install fonts-noto-color-emoji"):
        find_font()


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "emoji", None)
    with pytest.raises(UndustError, match=r"pip install 'undust\[data\]'"):
        EmojiNames()


def test_a_missing_raqm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda feature: feature != "raqm")
    with pytest.raises(UndustError, match="lacks Raqm"):
        EmojiRenderer()


def test_another_font_of_that_name_is_refused(
    renderer: EmojiRenderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    (tmp_path / "fonts").mkdir()
    (tmp_path / "fonts/NotoColorEmoji.ttf").write_bytes(b"no font")
    with pytest.raises(UndustError, match="no colour bitmaps"):
        EmojiRenderer()


def test_a_face_is_yellow(renderer: EmojiRenderer) -> None:
    """Colours come out as red, green and blue, in the font of any year."""
    red, green, blue = np.asarray(renderer.draw("😀", 64))[28, 32]
    assert red > 200
    assert green > 150
    assert blue < 120
