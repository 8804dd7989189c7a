"""Dictionaries by name, whose error for an unknown name suggests the closest one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn, TypeVar

from undust.errors import unknown

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
