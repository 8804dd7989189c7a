"""A dictionary of named parts that answers a wrong name with the nearest right one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn, TypeVar

from undust.errors import unknown

T = TypeVar("T")


class Registry(dict[str, T]):
    """name -> part; `registry[name]` raises UndustError with a suggestion for a name it lacks.

    elsewhere: what other programs call some of the parts -> their names here.
    """

    def __init__(self, kind: str, elsewhere: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.kind, self.elsewhere = kind, elsewhere

    def __missing__(self, name: str) -> NoReturn:
        raise unknown(self.kind, name, self, self.elsewhere)
