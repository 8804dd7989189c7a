"""The base of all data of a recipe, and its errors in one line."""

from __future__ import annotations

from collections.abc import Sized
from typing import ClassVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from undust.errors import demand, limit_entries, printable, quoted


class Frozen(BaseModel):
    """Plain values; an unknown one is refused by name."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    kind: ClassVar[str] = ""  # its name in errors, where it is not the class's

    @model_validator(mode="before")
    @classmethod
    def _few(cls, fields: object) -> object:
        if isinstance(fields, dict):
            known = cast("dict[object, object]", fields)
            called = cls.kind or cls.__name__
            limit_entries(called, known)
            for name, value in known.items():
                if isinstance(value, list | tuple):
                    limit_entries(f"{called}: {printable(name)}", cast("Sized", value))
        return fields


def reason(error: ValidationError) -> str:
    """The first thing that a validation found wrong, in one line."""
    first = error.errors()[0]
    name = printable(".".join(str(part) for part in first["loc"]) or "the name of a field")
    if first["type"] == "missing":
        return f"{name} is missing"
    if first["type"] == "extra_forbidden":
        return f"{name}: is not known"
    return f"{name}: {demand(first)}, not {quoted(first['input'])}"
