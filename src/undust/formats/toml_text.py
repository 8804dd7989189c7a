"""Plain values as TOML, which the standard library only reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast


def dumps(tree: Mapping[str, Any]) -> str:
    """The tree as TOML, tables after values. None, which TOML lacks, is left out."""
    return "".join(f"{line}\n" for line in _table(tree, ())).lstrip("\n")


def _table(tree: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    inner: list[tuple[str, Any]] = []
    for key, each in tree.items():
        if isinstance(each, Mapping) or _are_tables(each):
            inner.append((key, each))
        elif each is not None:
            yield f"{_key(key)} = {value(each)}"
    for key, own in inner:
        name = ".".join(map(_key, (*path, key)))
        for each in (own,) if isinstance(own, Mapping) else own:
            yield ""
            yield f"[{name}]" if isinstance(own, Mapping) else f"[[{name}]]"
            yield from _table(each, (*path, key))


def _are_tables(value: object) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    return bool(value) and all(isinstance(each, Mapping) for each in cast("Sequence[Any]", value))


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else value(name)


def value(given: object) -> str:
    """A value as TOML in one line."""
    match given:
        case bool():
            return "true" if given else "false"
        case int() | float():
            return repr(given)
        case Mapping():
            tree = cast("Mapping[str, object]", given)
            pairs = [f"{_key(k)} = {value(v)}" for k, v in tree.items() if v is not None]
            return f"{{{', '.join(pairs)}}}"
        case list() | tuple():
            several = cast("Sequence[object]", given)
            return f"[{', '.join(value(each) for each in several if each is not None)}]"
        case _:
            text = re.sub(r"[\ud800-\udfff]", "\ufffd", str(given))
            return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
