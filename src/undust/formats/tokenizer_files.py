"""A CLIP tokenizer's folder: vocab.json and merges.txt, or tokenizer.json, and the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from undust.conditioning.tokenizer import END, HALF, START, Tokenizer
from undust.errors import UndustError, quoted, shown
from undust.formats.files import atomic_write
from undust.formats.folder import TOKENIZER_LIMIT, read_json, write_json
from undust.networks.config import LARGEST


def save(folder: Path, tokenizer: Tokenizer) -> None:
    """Writes the folder so that transformers' CLIPTokenizer reads the same tokens from it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", tokenizer.vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in tokenizer.merges)]
    atomic_write(folder / "merges.txt", ("\n".join(lines) + "\n").encode())
    ends = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": tokenizer.padding}
    write_json(folder / "special_tokens_map.json", ends)
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.length, **ends},
    )


def load(folder: Path) -> Tokenizer:
    """The tokenizer in a folder. Raises UndustError naming the file that is absent or damaged."""
    whole = folder / "tokenizer.json"  # the only file that transformers 5 writes
    if whole.is_file() and not (folder / "vocab.json").exists():
        path = whole
        vocabulary, merges = _in_one_file(whole)
    else:
        path = folder / "vocab.json"
        vocabulary, merges = read_json(path, TOKENIZER_LIMIT), _merges(folder / "merges.txt")
    for piece, number in vocabulary.items():
        if type(number) is not int or not 0 <= number < LARGEST:
            raise UndustError(f"{path} gives {shown(piece)} the number {quoted(number)}")
    if HALF.search("".join(vocabulary)):
        raise UndustError(f"{path} is damaged: a piece has half of a letter in it")
    settings: dict[str, Any] = read_json(folder / "tokenizer_config.json")
    length = settings.get("model_max_length", 77)
    if not isinstance(length, int) or not 3 <= length <= 4096:
        where = folder / "tokenizer_config.json"
        raise UndustError(f"{where}: model_max_length is {quoted(length)}")
    return Tokenizer(vocabulary, merges, length, _padding(folder, settings))


def _padding(folder: Path, settings: dict[str, Any]) -> str:
    """The token after the end; the older of the two files that may name it has the last word."""
    older = folder / "special_tokens_map.json"
    named: dict[str, Any] = {**settings, **(read_json(older) if older.is_file() else {})}
    match named.get("pad_token"):
        case str(token) | {"content": str(token)}:
            return token
        case None:
            return END
        case other:
            raise UndustError(f"{folder}: pad_token is {quoted(other)}, not a token")


def _merges(path: Path) -> list[tuple[str, str]]:
    try:
        if path.stat().st_size > TOKENIZER_LIMIT:
            raise UndustError(f"{path} is larger than {TOKENIZER_LIMIT:,} bytes: no merges")
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UndustError(f"{path} cannot be read: {error}") from error
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise UndustError(f"{path}, line {number}: two pieces and a space are needed")
        merges.append((pair[0], pair[1]))
    return merges


def _in_one_file(path: Path) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Vocabulary and merges of a tokenizer.json."""
    match read_json(path, TOKENIZER_LIMIT).get("model"):
        case {"type": "BPE", "vocab": dict(vocab), "merges": [*rows]}:
            vocabulary = cast("dict[str, Any]", vocab)
        case _:
            raise UndustError(f"{path} is not supported: it is not a byte-pair encoding")
    merges: list[tuple[str, str]] = []
    for row in cast("list[object]", rows):
        match row.split(" ") if isinstance(row, str) else row:
            case [str(left), str(right)]:
                merges.append((left, right))
            case _:
                raise UndustError(f"{path}: a merge is {quoted(row)}; two pieces are needed")
    return vocabulary, merges
