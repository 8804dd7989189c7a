"""Tokens against transformers' CLIPTokenizer, in any language."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers.decoders import ByteLevel
from transformers import CLIPTokenizer

from undust.conditioning.tokenizer import END, LEARNT, START, Tokenizer, train
from undust.errors import UndustError
from undust.formats import tokenizer_files

CAPTIONS = [
    "grinning face with big eyes",
    "woman scientist: medium skin tone",
    "flag: South Korea",
    "활짝 웃는 얼굴",
    "과학자: 중간 피부색",
    "it's a cat's face, isn't it?",
    "keycap: 10",
]
PROMPTS = [
    "",
    " ",
    "a cat",
    "A  Cat\twith\n웃는 얼굴",
    "웃는 고양이 🐱 and a 개!!",
    "🧑🏽‍🚀 astronaut: medium skin tone",
    "don't can't we'll I'm you've he'd",
    "10,000 km/h — “fast”…",
    "Ünïcode Straße İstanbul ŒUVRE",
    "각",  # Hangul in parts: composed by NFC
    "日本語とEnglishの混在",
    "<|endoftext|> inside <|startoftext|>",
    "a<|endoftext|>b",
    "\u00a0\u3000\u200b zero-width",
    "x" * 100,
]


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return train(CAPTIONS, size=700, length=16)


@pytest.fixture(scope="module")
def theirs(ours: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer_files.save(folder, ours)
    return CLIPTokenizer.from_pretrained(folder)


def reference(tokenizer: CLIPTokenizer, prompts: list[str]) -> list[list[int]]:
    options = {"padding": "max_length", "max_length": 16, "truncation": True}
    return tokenizer(prompts, **options)["input_ids"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_are_those_of_transformers(ours: Tokenizer, theirs: CLIPTokenizer, prompt: str):
    assert ours([prompt]).tolist() == reference(theirs, [prompt])


@given(st.text(max_size=30))
@example("a <|ENDOFTEXT|> b<|endoftext|>c")
@example("각 가\u0301 ﷺ")
@example("\x00\x1f\x85\u2028")
def test_tokens_of_any_text_are_those_of_transformers(
    ours: Tokenizer, theirs: CLIPTokenizer, text: str
):
    assert ours([text]).tolist() == reference(theirs, [text])


def test_a_batch_is_its_prompts_alone(ours: Tokenizer):
    rows = ours(PROMPTS)
    assert rows.shape == (len(PROMPTS), 16)
    assert rows.tolist() == [ours([prompt])[0].tolist() for prompt in PROMPTS]


@given(st.text(max_size=40))
def test_every_text_has_tokens_and_they_say_what_it_says(ours: Tokenizer, text: str):
    """No piece is unknown: put together again they are the words, spaces aside."""
    pieces = ours.pieces(text)
    joined = ByteLevel().decode([piece.removesuffix("</w>") for piece in pieces])
    normal = unicodedata.normalize("NFC", text)
    assert START not in pieces
    if END not in pieces:
        expected = "".join("".join(c.lower() for c in normal).split())
        assert "".join(joined.split()).replace("\u0307", "") == expected.replace("\u0307", "")


def test_words_that_were_learnt_are_few_pieces(ours: Tokenizer):
    assert ours.pieces("face") == ["face</w>"]
    assert len(ours.pieces("웃는 얼굴")) < 6
    assert len(ours.pieces("qzxj")) == 4


def test_rows_begin_and_end_as_they_should(ours: Tokenizer):
    start, end = ours.vocabulary[START], ours.vocabulary[END]
    (row,) = ours(["face"]).tolist()
    assert row == [start, ours.vocabulary["face</w>"], *[end] * 14]
    assert (start, end) == (len(ours.vocabulary) - 2, len(ours.vocabulary) - 1)


def test_training_is_a_function_of_the_captions(ours: Tokenizer):
    again = train(CAPTIONS, size=700, length=16)
    assert (again.vocabulary, again.merges) == (ours.vocabulary, ours.merges)
    assert 580 < len(train(CAPTIONS, size=600, length=16).vocabulary) <= 600


def test_a_folder_gives_the_tokenizer_back(ours: Tokenizer, theirs: CLIPTokenizer, tmp_path: Path):
    """Our own two files, and the one that transformers 5 writes."""
    tokenizer_files.save(tmp_path / "ours", ours)
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        read = tokenizer_files.load(tmp_path / folder)
        assert dict(read.vocabulary) == dict(ours.vocabulary)
        assert list(read.merges) == list(ours.merges)
        assert read.length == 16


def test_a_tokenizer_needs_its_ends_and_its_pieces():
    ends = {START: 0, END: 1}
    with pytest.raises(UndustError, match=r"lacks <\|endoftext\|>"):
        Tokenizer({START: 0}, [])
    with pytest.raises(UndustError, match="merges 'a b' outside its vocabulary"):
        Tokenizer({**ends, "a": 2, "b": 3}, [("a", "b")])


def test_half_of_a_letter_has_no_tokens(ours: Tokenizer):
    for read in (ours.words, ours.pieces, lambda text: ours([text])):
        with pytest.raises(UndustError, match=r"'\\ud83d', a lone surrogate"):
            read("a cat \ud83d")


@pytest.mark.parametrize(
    ("piece", "number", "said"),
    [
        ("a", -1, "gives a the id -1"),
        ("a", 2**64, "gives a the id 18446744073709551616"),
        ("a", True, "gives a the id True"),
        ("two\nlines", None, r"gives 'two\\nlines' the id None"),
        ("\ud800", 5, "half of a surrogate"),
    ],
)
def test_a_damaged_vocabulary_is_named(ours: Tokenizer, tmp_path: Path, piece, number, said: str):
    tokenizer_files.save(tmp_path, ours)
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps({**ours.vocabulary, piece: number}))
    with pytest.raises(UndustError, match=rf"vocab\.json .*{said}"):
        tokenizer_files.load(tmp_path)


def test_a_damaged_folder_is_named(ours: Tokenizer, tmp_path: Path):
    tokenizer_files.save(tmp_path, ours)
    (tmp_path / "merges.txt").write_text("a b c\n")
    with pytest.raises(UndustError, match=r"merges\.txt, line 1"):
        tokenizer_files.load(tmp_path)
    with (tmp_path / "merges.txt").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(UndustError, match=r"merges\.txt is larger than"):
        tokenizer_files.load(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UndustError, match=r"merges\.txt"):
        tokenizer_files.load(tmp_path)
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(UndustError, match=r"vocab\.json"):
        tokenizer_files.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    with pytest.raises(UndustError, match=r"tokenizer\.json is not supported"):
        tokenizer_files.load(tmp_path)


def test_a_long_word_is_learnt_from_its_beginning():
    """Else the time is quadratic: hours for a megabyte without spaces, as of encoded pictures."""
    long = "sky " * 9 + "x" * 2**21
    learnt = train([long], 600, 8)
    assert learnt == train([long[:LEARNT]], 600, 8)
    assert "sky</w>" in learnt.pieces(long)


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_merges_that_were_cut_off_are_refused(ours: Tokenizer, tmp_path: Path, share: float):
    """They would be rules of another tokenizer, with other tokens for the same words."""
    tokenizer_files.save(tmp_path, ours)
    lines = (tmp_path / "merges.txt").read_text("utf-8").splitlines(keepends=True)
    kept = int(len(lines) * share)
    (tmp_path / "merges.txt").write_text("".join(lines[:kept]), "utf-8")
    with pytest.raises(UndustError, match=r"merges\.txt is cut off, or of another vocab\.json"):
        tokenizer_files.load(tmp_path)
    (tmp_path / "merges.txt").write_text("".join(lines), "utf-8")
    words = {**ours.vocabulary, "<mine>": len(ours.vocabulary)}  # added in place
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    assert len(tokenizer_files.load(tmp_path).vocabulary) == len(words)
