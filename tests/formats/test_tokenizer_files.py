"""Tokenizers' folders as transformers has written them over the years."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import CLIPTokenizer

from undust.conditioning.tokenizer import END, START, Tokenizer, train
from undust.errors import UndustError
from undust.formats import tokenizer_files

LENGTH = 12
PROMPTS = [
    "a <cat-toy> cat",
    "a <CAT-Toy>, <cat-toy>",
    "un<cat-toy>able <cat-toy>_1",
    "<Kept> <kept>",
    "the alone, alones and lonealone",
    "a <|endoftext|> <cat-toy>",
]


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    return train(["a cat", "a dog"], size=560, length=LENGTH)


@pytest.fixture
def folder(plain: Tokenizer, tmp_path: Path) -> Path:
    tokenizer_files.save(tmp_path, plain)
    return tmp_path


def change(path: Path, **fields: object) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | fields))


def words(first: int) -> dict[int, AddedToken]:
    return {
        first: AddedToken("<cat-toy>"),
        first + 1: AddedToken("<cat-toy>_1"),
        first + 2: AddedToken("<Kept>", special=True, normalized=False),
        first + 3: AddedToken("alone", single_word=True),
    }


def decoder(added: dict[int, AddedToken]) -> dict[str, dict[str, object]]:
    flags = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return {str(n): {flag: getattr(w, flag) for flag in flags} for n, w in added.items()}


def by_transformers(folder: Path, plain: Tokenizer) -> None:
    """What version 5 writes: tokenizer.json alone."""
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(words(len(plain.vocabulary)).values()))
    for path in folder.iterdir():
        path.unlink()
    tokenizer.save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


def in_the_settings(folder: Path, plain: Tokenizer) -> None:
    """What versions 4.34 and above do."""
    numbers = plain.vocabulary
    ends = {numbers[END]: AddedToken(END, special=True), numbers[START]: AddedToken(START)}
    listed = decoder({**ends, **words(len(numbers))})
    change(folder / "tokenizer_config.json", added_tokens_decoder=listed)


def in_a_file(folder: Path, plain: Tokenizer) -> None:
    """What those before did: words and numbers alone."""
    added = {word.content: number for number, word in words(len(plain.vocabulary)).items()}
    change(folder / "added_tokens.json", **added)


@pytest.mark.parametrize("write", [by_transformers, in_the_settings, in_a_file])
def test_added_words_are_read_and_written_again(plain: Tokenizer, folder: Path, write, tmp_path):
    write(folder, plain)
    read = tokenizer_files.load(folder)
    first = len(plain.vocabulary)
    assert {n: w.content for n, w in read.added.items()} == {
        n: w.content for n, w in words(first).items()
    }
    assert read.vocabulary == plain.vocabulary
    tokenizer_files.save(tmp_path / "again", read)
    again = tokenizer_files.load(tmp_path / "again")
    assert decoder(dict(again.added)) == decoder(dict(read.added))
    for place in (folder, tmp_path / "again"):
        theirs = CLIPTokenizer.from_pretrained(place)
        options = {"padding": "max_length", "max_length": LENGTH, "truncation": True}
        for prompt in PROMPTS:
            ids = read._engine.encode(prompt).ids  # pyright: ignore[reportPrivateUsage]
            assert read.row(ids) == theirs(prompt, **options).input_ids, prompt
            assert first in ids or "<cat-toy>" not in prompt


def test_a_word_of_several_vectors_has_them_all(plain: Tokenizer, folder: Path):
    """What diffusers makes of a prompt before the tokenizer sees it; they stand together."""
    in_a_file(folder, plain)
    read, n = tokenizer_files.load(folder), len(plain.vocabulary)
    a = plain.vocabulary["a</w>"]
    assert read.words("a <cat-toy> a <cat-toy>_1") == [[a], [n, n + 1], [a], [n + 1]]
    (row,) = read(["a <cat-toy>"]).tolist()
    assert row[1:4] == [a, n, n + 1]


def test_what_the_vocabulary_has_is_not_added(plain: Tokenizer, folder: Path):
    numbers = {word: plain.vocabulary[word] for word in (START, END, "!")}
    change(folder / "added_tokens.json", **numbers)
    assert tokenizer_files.load(folder) == plain
    assert "added_tokens_decoder" not in json.loads((folder / "tokenizer_config.json").read_text())


def test_padding_can_be_an_added_word(plain: Tokenizer, folder: Path):
    change(folder / "added_tokens.json", **{"<pad>": 900})
    change(folder / "special_tokens_map.json", pad_token="<pad>")
    assert tokenizer_files.load(folder)(["a"])[0, -1] == 900


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("newer", [END, "!", None])
@pytest.mark.parametrize("older", [END, "!", None])
def test_which_file_names_the_padding(plain: Tokenizer, folder: Path, newer, older, settled):
    for name, token in (("tokenizer_config", newer), ("special_tokens_map", older)):
        content = json.loads((folder / f"{name}.json").read_text())
        content.pop("pad_token")
        if token is not None:
            content["pad_token"] = token
        (folder / f"{name}.json").write_text(json.dumps(content))
    if settled:
        in_the_settings(folder, plain)
    theirs = CLIPTokenizer.from_pretrained(folder)
    assert tokenizer_files.load(folder).padding == theirs.pad_token


@pytest.mark.parametrize(
    ("said", "length"),
    [(10**30, 16), (1e30, 16), (1000000000000000019884624838656, 16), ("-", 16), (LENGTH, LENGTH)],
)
def test_no_length_means_the_encoders(folder: Path, said, length: int):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"model_max_length": said}
    settings = {key: value for key, value in settings.items() if value != "-"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert tokenizer_files.load(folder, 16).length == length


@pytest.mark.parametrize("length", [2, 5000, 1e20, 77.0, "77", True, None])
def test_other_lengths_are_refused(folder: Path, length):
    change(folder / "tokenizer_config.json", model_max_length=length)
    with pytest.raises(UndustError, match=r"tokenizer_config\.json: model_max_length is"):
        tokenizer_files.load(folder)


SETTINGS, OLDER, WHOLE = "tokenizer_config.json", "added_tokens.json", "tokenizer.json"


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        (OLDER, {"<x>": "5"}, r"added_tokens\.json gives <x> the id '5'"),
        (OLDER, {"<x>": 2**40}, "the id 1099511627776"),
        (OLDER, {"<x>": 5}, "cannot add <x> with the id 5"),
        (OLDER, {"!": 900}, "cannot add ! with the id 900"),
        (OLDER, {"": 900}, "with the id 900: one of them is empty"),
        (OLDER, {"\ud800": 900}, "which is not a word"),
        (OLDER, {"<x>": 900, "<y>": 900}, "gives <y> the id 900, which <x> has"),
        (SETTINGS, {"added_tokens_decoder": []}, r"tokenizer_config\.json is damaged"),
        (SETTINGS, {"added_tokens_decoder": {"900": "<x>"}}, "adds '<x>', which is not a word"),
        (SETTINGS, {"added_tokens_decoder": {"x": {"content": "<x>"}}}, "the id 'x'"),
        (
            SETTINGS,
            {"added_tokens_decoder": {"900": {"content": "<x>", "special": 1}}},
            "adds <x> with {'special': 1}",
        ),
        (WHOLE, {"added_tokens": {}}, r"tokenizer\.json is damaged"),
        (WHOLE, {"added_tokens": [5]}, "adds 5, which is not a word"),
        (WHOLE, {"added_tokens": [{"content": "<x>"}]}, "gives <x> the id None"),
    ],
)
def test_damaged_words_are_named(folder: Path, name: str, fields: dict[str, Any], said: str):
    change(folder / name, **fields)
    with pytest.raises(UndustError, match=said) as caught:
        tokenizer_files.load(folder)
    assert "\n" not in str(caught.value)


def test_two_files_that_disagree(folder: Path):
    change(folder / OLDER, **{"<x>": 900})
    change(folder / WHOLE, added_tokens=[{"id": 901, "content": "<x>"}])
    with pytest.raises(UndustError, match="cannot add <x> with the id 901"):
        tokenizer_files.load(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 10**9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
WORD = st.fixed_dictionaries(
    {}, optional={"id": JSON, "content": JSON, "special": JSON, "normalized": JSON}
)


@pytest.fixture(scope="module")
def any_folder(plain: Tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("any")
    tokenizer_files.save(folder, plain)
    return folder


@given(
    st.dictionaries(st.text(max_size=3) | st.just("900"), WORD | JSON, max_size=2) | JSON,
    st.dictionaries(st.text(max_size=3), st.integers(890, 902) | JSON, max_size=2),
    st.lists(WORD | JSON, max_size=2) | JSON,
)
def test_any_words_are_read_or_refused(any_folder: Path, new, old, whole):
    change(any_folder / SETTINGS, added_tokens_decoder=new)
    (any_folder / OLDER).write_text(json.dumps(old))
    (any_folder / WHOLE).write_text(json.dumps({"added_tokens": whole}))
    try:
        read = tokenizer_files.load(any_folder)
    except UndustError as error:
        assert "\n" not in str(error)
    else:
        assert read.words("a")
