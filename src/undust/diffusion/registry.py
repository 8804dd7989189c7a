"""Dictionaries by name, whose error for an unknown name suggests the closest one."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import NoReturn, TypeVar

from undust.errors import UndustError, quoted, unknown

T = TypeVar("T")


class Registry(dict[str, T]):
    """name -> entry; `registry[name]` raises UndustError with a suggestion for an unknown name.

    elsewhere: names in other programs -> names here.
    """

    def __init__(self, kind: str, elsewhere: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.kind, self.elsewhere = kind, elsewhere

    def __missing__(self, name: str) -> NoReturn:
        raise unknown(self.kind, name, self, self.elsewhere)


def build(registry: Registry[Callable[..., T]], text: str, *arguments: object) -> T:
    """An entry called with settings: "NAME" or "NAME:key=number,key=number".

    The settings are its keyword-only parameters. Raises UndustError for an unknown name or setting,
    for a value that is not a number, and as the entry does.
    """
    name, _, rest = text.partition(":")
    entry = registry[name.strip()]
    parameters = inspect.signature(entry).parameters.values()
    known = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    settings: dict[str, float] = {}
    for pair in filter(None, rest.split(",")):
        key, _, value = (part.strip() for part in pair.partition("="))
        if key not in known:
            raise unknown(f"setting of {registry.kind} {name.strip()}", key, known)
        try:
            settings[key] = float(value)
        except ValueError:
            settings[key] = math.nan
        if not math.isfinite(settings[key]):
            raise UndustError(f"{registry.kind} {text}: {key} is {quoted(value)}, not a number")
    return entry(*arguments, **settings)


def check_setting(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raises UndustError for a setting that is not above `low` and at most `high`."""
    if not low < value <= high:
        limit = f" and at most {high:g}" if high < math.inf else ""
        raise UndustError(f"{name}: {value:g} is not above {low:g}{limit}")
