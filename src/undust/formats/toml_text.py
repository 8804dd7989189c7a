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
    for key, value in tree.items():
        if isinstance(value, Mapping) or _are_tables(value):
            inner.append((key, value))
        elif value is not None:
            yield f"{_key(key)} = {_value(value)}"
    for key, value in inner:
        name = ".".join(map(_key, (*path, key)))
        for each in (value,) if isinstance(value, Mapping) else value:
            yield ""
            yield f"[{name}]" if isinstance(value, Mapping) else f"[[{name}]]"
            yield from _table(each, (*path, key))


def _are_tables(value: object) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    return bool(value) and all(isinstance(each, Mapping) for each in cast("Sequence[Any]", value))


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case Mapping():
            tree = cast("Mapping[str, object]", value)
            pairs = [f"{_key(k)} = {_value(v)}" for k, v in tree.items() if v is not None]
            return f"{{{', '.join(pairs)}}}"
        case list() | tuple():
            several = cast("Sequence[object]", value)
            return f"[{', '.join(_value(each) for each in several if each is not None)}]"
        case _:
            text = re.sub(r"[\ud800-\udfff]", "\ufffd", str(value))
            return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
