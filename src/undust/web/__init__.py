"""What pages of one HTML file have in common: a policy, data within them, and their style."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from undust.regular import read_text

FOLDER = Path(__file__).parent


def base_style() -> str:
    """The style sheet of all pages: colours, text, tables, sliders; light, dark and for print."""
    return read_text(FOLDER / "base.css")


def early_script() -> str:
    """A script for the head of a page: class "js" on its root, before the page is laid out."""
    return read_text(FOLDER / "early.js")


@cache
def page_template(path: Path, /, **filters: Callable[[Any], str]) -> Template:
    """A page's template, which escapes all texts and refuses names that it is not given."""
    environment = Environment(
        loader=FileSystemLoader(path.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(path.name)


def security_policy(style: str, *scripts: str) -> str:
    """A content security policy: no network, and only this style and these scripts."""

    def source(text: str) -> str:
        digest = hashlib.sha256(text.encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    allowed = " ".join(map(source, scripts))
    return (
        f"default-src 'none'; img-src data:; style-src {source(style)}; script-src {allowed}; "
        "base-uri 'none'; form-action 'none'"
    )


def inert_json(value: object) -> str:
    """JSON that is inert within a script element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
