"""A CLIP tokenizer's folder: vocab.json and merges.txt, or tokenizer.json, and the settings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken

from undust.conditioning.tokenizer import END, HALF, START, WORD_END, Tokenizer
from undust.errors import UndustError, printable, quoted
from undust.formats.files import atomic_write
from undust.formats.folder import TOKENIZER_LIMIT, read_json, write_json
from undust.networks.config import LARGEST
from undust.regular import read_text

DECODER = "added_tokens_decoder"
SMALLEST = 512  # pieces: all bytes, inside and at the end of a word
ADDED = 0.01  # share of a vocabulary that may be words without a merge
UNBOUNDED = 10**30  # about what transformers writes where it was told no length
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added word


def save(folder: Path, tokenizer: Tokenizer) -> None:
    """Writes a folder from which transformers' CLIPTokenizer reads the same tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", tokenizer.vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in tokenizer.merges)]
    atomic_write(folder / "merges.txt", ("\n".join(lines) + "\n").encode())
    ends = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": tokenizer.padding}
    write_json(folder / "special_tokens_map.json", ends)
    settings: dict[str, Any] = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokenizer.length,
        **ends,
    }
    if tokenizer.added:
        settings[DECODER] = {
            str(number): {"content": word.content} | {flag: getattr(word, flag) for flag in FLAGS}
            for number, word in tokenizer.added.items()
        }
    write_json(folder / "tokenizer_config.json", settings)


def load(folder: Path, positions: int = 77) -> Tokenizer:
    """The tokenizer in a folder, for a text encoder with this number of positions.

    Raises UndustError naming the file that is absent or damaged.
    """
    whole = folder / "tokenizer.json"  # the only file that transformers 5 writes
    one = read_json(whole, TOKENIZER_LIMIT) if whole.exists() else {}
    if one and not (folder / "vocab.json").exists():
        path = whole
        vocabulary, merges = _in_one_file(whole, one)
    else:
        path, rules = folder / "vocab.json", folder / "merges.txt"
        vocabulary, merges = read_json(path, TOKENIZER_LIMIT), _merges(rules)
        _check_whole(rules, vocabulary, merges)
    for piece, number in vocabulary.items():
        _check(path, piece, number)
    if HALF.search("".join(vocabulary)):
        raise UndustError(f"{path} is damaged: a token has half of a surrogate pair")
    where = folder / "tokenizer_config.json"
    settings: dict[str, Any] = read_json(where)
    length = settings.get("model_max_length", UNBOUNDED)
    if isinstance(length, int | float) and length >= UNBOUNDED:
        length = positions
    if not isinstance(length, int) or not 3 <= length <= 4096:
        raise UndustError(f"{where}: model_max_length is {quoted(length)}")
    added = _added(folder, settings, one, vocabulary)
    return Tokenizer(vocabulary, merges, length, _padding(folder, settings), added)


def _added(
    folder: Path, settings: Mapping[str, Any], one: Mapping[str, Any], vocabulary: Mapping[str, int]
) -> dict[int, AddedToken]:
    """The added words outside of the vocabulary, from three possible files."""
    added: dict[int, AddedToken] = {}
    for path, number, fields in _said(folder, settings, one):
        match fields:
            case {"content": str(word), **flags} if not HALF.search(word):
                _check(path, word, number)
            case _:
                raise UndustError(f"{path} adds {quoted(fields)}, which is not a word")
        known = {flag: flags[flag] for flag in FLAGS if flag in flags}
        if not all(isinstance(value, bool) for value in known.values()):
            raise UndustError(f"{path} adds {printable(word)} with {quoted(known)}")
        if vocabulary.get(word) == number:
            continue  # such as the two ends
        first = added.setdefault(number, AddedToken(word, **known)).content
        if first != word:
            raise UndustError(
                f"{path} gives {printable(word)} the id {number}, which {printable(first)} has"
            )
    return added


def _said(
    folder: Path, settings: Mapping[str, Any], one: Mapping[str, Any]
) -> Iterator[tuple[Path, Any, Any]]:
    """A file, the id of an added word, and its other fields; the newest file first."""
    config, older, whole = (
        folder / name for name in ("tokenizer_config.json", "added_tokens.json", "tokenizer.json")
    )
    decoder, listed = settings.get(DECODER, {}), one.get("added_tokens", [])
    if not isinstance(decoder, dict) or not isinstance(listed, list):
        wrong = whole if isinstance(decoder, dict) else config
        raise UndustError(f"{wrong} is damaged: its added tokens are not a list")
    for number, fields in cast("dict[str, Any]", decoder).items():
        yield config, int(number) if re.fullmatch("[0-9]{1,8}", number) else number, fields
    for word, number in (read_json(older) if older.exists() else {}).items():
        yield older, number, {"content": word}
    for fields in cast("list[Any]", listed):
        yield whole, fields.get("id") if isinstance(fields, dict) else None, fields


def _check(path: Path, piece: str, number: object) -> None:
    if type(number) is not int or not 0 <= number < LARGEST:
        raise UndustError(f"{path} gives {printable(piece)} the id {quoted(number)}")


def _padding(folder: Path, settings: dict[str, Any]) -> str:
    """The padding token.

    Of the two files that may name it the older one counts, unless the newer one is from a version
    of transformers that no longer used the older one.
    """
    older = folder / "special_tokens_map.json"
    last = read_json(older) if DECODER not in settings and older.exists() else {}
    match {**settings, **last}.get("pad_token"):
        case str(token) | {"content": str(token)}:
            return token
        case None:
            return END
        case other:
            raise UndustError(f"{folder}: pad_token is {quoted(other)}, not a token")


def _merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = read_text(path, TOKENIZER_LIMIT).splitlines()
    except OSError as error:
        raise UndustError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UndustError(f"{path} cannot be read: {error}") from error
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise UndustError(f"{path}, line {number}: expected two tokens and a space")
        merges.append((pair[0], pair[1]))
    return merges


def _check_whole(
    path: Path, vocabulary: Mapping[str, object], merges: Sequence[tuple[str, str]]
) -> None:
    """Raises UndustError for merges that were cut off: words would silently have other tokens.

    Each piece of several letters is made by a merge, but for words that were added to the
    vocabulary, a few. Small vocabularies are those of tests, without all bytes.
    """
    made = {left + right for left, right in merges}
    lacking = [piece for piece in vocabulary if len(piece.removesuffix(WORD_END)) > 1]
    lacking = [piece for piece in lacking if piece not in made]
    if len(vocabulary) > SMALLEST and len(lacking) > ADDED * len(vocabulary):
        raise UndustError(
            f"{path} is cut off, or of another vocab.json: no merge makes {len(lacking):,} of its "
            f"{len(vocabulary):,} pieces, such as {printable(lacking[0])}"
        )


def _in_one_file(
    path: Path, content: Mapping[str, Any]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Vocabulary and merges of a tokenizer.json."""
    match content.get("model"):
        case {"type": "BPE", "vocab": dict(vocab), "merges": [*rows]}:
            vocabulary = cast("dict[str, Any]", vocab)
        case _:
            raise UndustError(f"{path} is not supported: its model is not a byte-pair encoding")
    merges: list[tuple[str, str]] = []
    for row in cast("list[object]", rows):
        match row.split(" ") if isinstance(row, str) else row:
            case [str(left), str(right)]:
                merges.append((left, right))
            case _:
                raise UndustError(f"{path}: a merge is {quoted(row)}; expected two tokens")
    return vocabulary, merges
