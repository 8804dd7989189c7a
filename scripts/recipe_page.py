#!/usr/bin/env python3
"""Write docs/recipes.md, the keys of training recipes, from the models that read them.

.venv/bin/python scripts/recipe_page.py            write the page
.venv/bin/python scripts/recipe_page.py --check    exit with 1 if it is not up to date
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_json

from undust.training.config_keys import tables
from undust.training.kinds import KINDS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
HEAD = """# The keys of training recipes

A recipe is a TOML file for `undust train`. Each key can be set from outside, too, such as
`--set run.steps=1000`. Unknown keys are refused. Keys of networks are those of config.json in
diffusers and transformers, whose documentation tells more. `[dust]`, the former name of
`[diffusion]`, still works. This page is written by `scripts/recipe_page.py`.
"""
BASICS = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}


def main() -> int:
    """Writes the page, or compares it."""
    page = "\n".join([HEAD, *_page()]) + "\n"
    if "--check" in sys.argv[1:]:
        return int(not PAGE.is_file() or PAGE.read_text("utf-8") != page)
    PAGE.write_text(page, "utf-8", newline="\n")
    return 0


def _page() -> Iterator[str]:
    shown: set[tuple[str, type[BaseModel]]] = set()
    for kind, recipe in KINDS.items():
        yield f'\n## `kind = "{kind}"`\n\n{_first_line(recipe)}'
        for name, table in tables(recipe):
            if (name, table) in shown and name:
                yield f"\n### `[{name}]`\n\nAs above."
                continue
            shown.add((name, table))
            forms = [form for other, form in tables(recipe) if other == name]
            process = table.model_fields.get("process") if len(forms) > 1 else None
            of = f", process {_type(process.annotation)}" if process else ""
            if name:
                yield f"\n### `[{name}]`{of}\n\n{_first_line(table)}"
            yield "\n| key | value | default | meaning |\n|---|---|---|---|"
            for key, info in table.model_fields.items():
                if info.annotation is types.NoneType:
                    continue  # TOML has no such value
                if not any(other == f"{name}.{key}".lstrip(".") for other, _ in tables(recipe)):
                    cells = f"`{key}`", _type(info.annotation), _default(info), _cell(info)
                    yield f"| {' | '.join(cells)} |"


def _first_line(table: type[BaseModel]) -> str:
    return (table.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")


def _cell(info: FieldInfo) -> str:
    return (info.description or "").replace("|", "\\|")


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    if info.default_factory is not None:
        return "by other keys"
    if info.default is None:
        return ""
    return f"`{to_json(info.default).decode()}`"


def _type(annotation: Any) -> str:
    inner = get_args(annotation)
    match get_origin(annotation):
        case None:
            return BASICS.get(annotation, getattr(annotation, "__name__", str(annotation)))
        case origin if origin is Annotated:
            return _type(inner[0])
        case origin if origin is Literal:
            return ", ".join(f"`{value}`" for value in inner)
        case origin if origin in (Union, types.UnionType):
            kinds = [_type(each) for each in inner if each is not type(None)]
            return " or ".join(dict.fromkeys(kinds))
        case origin if origin is tuple:
            kinds = dict.fromkeys(_type(each) for each in inner if each is not ...)
            return f"list of {' and '.join(kinds)}"
        case _:
            return "table of lists" if inner and len(inner) > 1 else "list"


if __name__ == "__main__":
    sys.exit(main())
