"""The keys of a recipe: their tables, their former names, and messages about wrong ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from inspect import isclass
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from undust.errors import demand, printable

RENAMED = {"dust": "diffusion"}
"""Former names of a recipe's outermost keys -> their names now."""


def renamed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's tree with the present names of its keys, but for one that is there under both."""
    return {
        key if RENAMED.get(key, key) in tree else RENAMED[key]: value for key, value in tree.items()
    }


def tables(kind: type[BaseModel], name: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """The tables of a recipe by their dotted names, "" for the outermost.

    A table that has one of several forms is yielded once for each.
    """
    yield name, kind
    for field, info in kind.model_fields.items():
        for inner in _models(info.annotation):
            yield from tables(inner, f"{name}.{field}".lstrip("."))


def fault(error: ValidationError, tree: object, kinds: Mapping[str, type[BaseModel]]) -> str:
    """The first error of a recipe: the dotted key, the demand, and the key probably meant."""
    first = error.errors()[0]
    place, message = _place(first, tree), demand(first)
    table = cast("Mapping[str, Any]", tree) if isinstance(tree, Mapping) else {}
    kind, diffusion = table.get("kind"), table.get("diffusion")
    has_process = kind == "diffusion" and isinstance(diffusion, Mapping)
    if first["type"] in ("model_type", "model_attributes_type", "dict_type"):
        message = "has to be a table"
    elif first["type"] == "tuple_type":
        message += _such_as(first["input"])
    elif first["type"].startswith("union_tag"):
        tag = first.get("ctx", {})["discriminator"]
        message = message.removeprefix(f"{tag}: ")
        if message == f"has no {tag}":
            message = f"is missing; possible are {', '.join(kinds)}"
        place.append(tag.strip("'"))
    elif place[:1] == ["diffusion"] and len(place) > 1 and has_process:
        process = cast("Mapping[str, Any]", diffusion).get("process", "scaled-linear")
        message += f", with process {printable(process)}"
    if first["type"] == "extra_forbidden" and isinstance(kind, str):
        others = [other for other, model in kinds.items() if place[0] in model.model_fields]
        message += (
            f' in a recipe of kind "{kind}"; it is a key of kind "{others[0]}"'
            if others and kind not in others
            else _meant(place[-1], ".".join(place[:-1]), kinds[kind])
        )
    where = ".".join(map(printable, place))
    return f"{where}: {message}" if where else message


def _place(first: ErrorDetails, tree: object) -> list[str]:
    """The keys down to an error; pydantic puts the names of forms and types between them."""
    place: list[str] = []
    missing = first["type"] == "missing"
    loc = first["loc"]
    if isinstance(tree, Mapping) and loc[:1] == (cast("Mapping[str, Any]", tree).get("kind"),):
        loc = loc[1:]  # the kind, which may also be the name of a key
    for number, part in enumerate(loc):
        if isinstance(tree, Mapping) and part in tree:
            tree = cast("Mapping[object, object]", tree)[part]
        elif isinstance(tree, list | tuple) and isinstance(part, int):
            values = cast("list[object]", tree)
            tree = values[part] if part < len(values) else None  # too few of them
        elif not (missing and number == len(loc) - 1):
            continue
        place.append(str(part))
    return place


def _such_as(given: object) -> str:
    """The list that is probably meant by a value that is none, after "has to be a list"."""
    if isinstance(given, int | float) and not isinstance(given, bool):
        return f", such as [{given}]"
    parts = given.strip("[] ").split(",") if isinstance(given, str) else []
    parts = [part.strip(" \"'") for part in parts]
    if all(re.fullmatch(r"-?[\d.]+", part) for part in parts):
        return f", such as [{', '.join(parts)}]" if parts else ""
    names = all(re.fullmatch(r"[\w.-]+", part) for part in parts)
    listed = json.dumps(parts if names else [given], ensure_ascii=False)
    return f"{' of names' if names else ''}, such as {printable(listed)}"


def _meant(key: str, above: str, kind: type[BaseModel]) -> str:
    """A suggestion for an unknown key of a table: the closest known ones."""
    known: dict[str, list[str]] = {}
    for name, table in tables(kind):
        known.setdefault(name, []).extend(table.model_fields)
    here = known.get(above, [])
    prefix = f"{above}." if above else ""
    if near := get_close_matches(key, here, n=1):
        return f"; did you mean {prefix}{near[0]}?"
    if elsewhere := [f"{name}.{key}" for name, keys in known.items() if name and key in keys]:
        return f"; did you mean {' or '.join(elsewhere)}?"
    return f"; known here: {', '.join(dict.fromkeys(here))}"


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
