"""CLIP's own vocabulary: its size, its known numbers, and transformers' tokens for any text."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from undust.conditioning import clip as module
from undust.conditioning.clip import clip
from undust.conditioning.tokenizer import END, START, Tokenizer
from undust.errors import UndustError
from undust.formats import tokenizer_files

Pair = tuple[Tokenizer, Callable[[str], list[list[int]]]]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> CLIPTokenizer:
    """transformers' tokenizer of the same merges, from files that are written here."""
    folder = tmp_path_factory.mktemp("clip")
    with gzip.open(module.MERGES, "rt", encoding="utf-8") as file:
        (folder / "merges.txt").write_text(file.read(), "utf-8")
    tokenizer_files.write_json(folder / "vocab.json", clip().vocabulary)
    return CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module", params=[END, "!"])
def pair(request, theirs: CLIPTokenizer) -> Pair:
    """A tokenizer, and what it should say. transformers' own "!" cannot be both padding and word:
    where it pads, it is no word any more, though the model was taught one."""
    number = {END: 49407, "!": 0}[request.param]

    def expected(text: str) -> list[list[int]]:
        [ids] = theirs([text], max_length=77, truncation=True)["input_ids"]
        return [ids + [number] * (77 - len(ids))]

    return clip(request.param), expected


def test_the_numbers_are_clips():
    """The ends, the first merges, and the tokens of a prompt that every CLIP documentation has."""
    vocabulary = clip().vocabulary
    assert len(vocabulary) == 49408
    assert (vocabulary[START], vocabulary[END]) == (49406, 49407)
    assert (vocabulary["!"], vocabulary["!</w>"], vocabulary["in"]) == (0, 256, 512)
    (row,) = clip()(["a photo of a cat"]).tolist()
    assert row[:8] == [49406, 320, 1125, 539, 320, 2368, 49407, 49407]
    (row,) = clip()(["a photo of a dog"]).tolist()
    assert row[5] == 1929


def test_what_pads_is_still_a_word():
    """As OpenCLIP reads it: the number of "!" alone is 256, that of padding 0."""
    assert clip("!")(["cat!"])[0, :6].tolist() == [49406, 2368, 256, 49407, 0, 0]


@given(text=st.text(max_size=60))
@example("a <|ENDOFTEXT|> b<|endoftext|>c !")
@example("각 가\u0301 ﷺ 🧑🏽‍🚀")
@example("\x00\x1f\x85\u2028")
@example("don't 10,000 km/h — “fast”…")
@example("word " * 90)
def test_any_text_has_the_tokens_of_transformers(pair, text):
    ours, expected = pair
    assert ours([text]).tolist() == expected(text)


@given(words=st.lists(st.sampled_from(sorted(clip().vocabulary)), max_size=12))
def test_known_words_have_the_tokens_of_transformers(pair, words):
    ours, expected = pair
    text = " ".join(word.removesuffix("</w>") for word in words)
    assert ours([text]).tolist() == expected(text)


def test_a_folder_keeps_the_padding(pair, tmp_path: Path):
    ours, _ = pair
    tokenizer_files.save(tmp_path, ours)
    assert tokenizer_files.load(tmp_path) == ours
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    found = theirs(["a cat"], padding="max_length", max_length=77)["input_ids"]
    assert ours(["a cat"]).tolist() == found


@pytest.mark.parametrize(
    ("older", "newer", "padding"),
    [
        ({"pad_token": "!"}, {"pad_token": END}, "!"),  # as Stable Diffusion 2 is published
        ({"pad_token": {"content": "!", "lstrip": False}}, {}, "!"),
        (None, {"pad_token": "!"}, "!"),
        ({}, {}, END),
    ],
)
def test_the_padding_is_found_in_either_file(older, newer, padding, tmp_path: Path):
    tokenizer_files.save(tmp_path, clip())
    if older is None:
        (tmp_path / "special_tokens_map.json").unlink()
    else:
        tokenizer_files.write_json(tmp_path / "special_tokens_map.json", older)
    tokenizer_files.write_json(tmp_path / "tokenizer_config.json", newer)
    assert tokenizer_files.load(tmp_path).padding == padding


def test_a_padding_that_is_none_is_refused(tmp_path: Path):
    tokenizer_files.save(tmp_path, clip())
    tokenizer_files.write_json(tmp_path / "special_tokens_map.json", {"pad_token": 3})
    with pytest.raises(UndustError, match="pad_token is 3"):
        tokenizer_files.load(tmp_path)
    with pytest.raises(UndustError, match="vocabulary lacks padding"):
        clip("padding")


def test_the_licence_lies_beside():
    licence = (module.MERGES.parent / "clip_merges.LICENSE.txt").read_text("utf-8")
    assert "MIT License" in licence
    assert "Copyright (c) 2021 OpenAI" in licence
