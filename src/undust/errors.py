"""Errors for users: one line with the problem, its place and a valid alternative."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Generator, Iterable, Mapping, Sized
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

LONGEST = 1000  # characters of a message
NAME = 120  # characters of a name in it
MAX_ENTRIES = 1000  # of a configuration, and of a list in it


class UndustError(Exception):
    """An error that the user can fix; the message is one line and needs no traceback.

    It may contain paths and names from untrusted files: unprintable characters are escaped, and
    long messages are cut.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_cut(_escaped(message), LONGEST))


LISTED = 50  # names in an error


def unknown(
    kind: str, name: str, known: Iterable[str], elsewhere: Mapping[str, str] | None = None
) -> UndustError:
    """An error for an unknown name: lists the valid names and suggests the closest.

    elsewhere: names in other programs -> names here.
    """
    names = sorted(known)
    meant = {_bare(other): own for other, own in (elsewhere or {}).items()}
    meant |= {_bare(own): own for own in names}
    near = get_close_matches(_bare(name), meant, n=1)
    guess = f" did you mean '{meant[near[0]]}'?" if near else ""
    listed = ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")
    return UndustError(f"unknown {kind} '{printable(name)}';{guess} known: {listed}")


def _bare(name: str) -> str:
    """A name's letters and digits: "DPM++ 2M", dpmpp_2m and dpmpp-2m are the same name."""
    return re.sub(r"[\W_]+", "", name.lower().replace("++", "pp"))


@contextmanager
def naming(place: Path) -> Generator[None]:
    """Prefixes errors within it with a path, unless they have it."""
    try:
        yield
    except UndustError as error:
        if str(place) in str(error):
            raise
        raise UndustError(f"{place}: {error}") from error


def printable(name: object) -> str:
    """A name from a file for an error message: shortened, unprintable characters escaped."""
    text = str(name)
    return _cut(text if text.isprintable() else repr(text), NAME)


def quoted(value: object) -> str:
    """The repr of a value for an error message, shortened where it is long or deeply nested."""
    return _QUOTING.repr(value)


def first_line(error: Exception) -> str:
    """The kind of an error, and the first line of its text."""
    lines = (line.strip() for line in str(error).splitlines())
    return f"{type(error).__name__}: {next(filter(None, lines), 'no reason given')}"


def limit_entries(what: str, values: Sized) -> None:
    """Raises UndustError for more values than any configuration has.

    Validation makes an error for each, which takes a thousand times its memory.
    """
    if len(values) > MAX_ENTRIES:
        raise UndustError(f"{what} has {len(values):,} entries; at most {MAX_ENTRIES:,} are read")


def demand(details: Mapping[str, Any]) -> str:
    """An error of pydantic as a predicate: "has to be less than or equal to 8"."""
    message, context = details["msg"], details.get("ctx", {})
    match details["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return "is not known"
        case "value_error" | "assertion_error":
            return message.partition(", ")[2]
        case "int_parsing_size":
            return "has to be a smaller number"
        case "union_tag_not_found":
            return f"has no {context['discriminator']}"
        case "union_tag_invalid":
            given = printable(context["tag"])
            return f"{context['discriminator']}: '{given}' is none of {context['expected_tags']}"
        case "path_type":
            return "has to be a path"
        case "tuple_type":
            return "has to be a list"
        case _:
            pass
    message = re.sub(r"(, unable .*|, got .*| after validation.*| or instance of .*)$", "", message)
    return re.sub(r"^[\w ]+? should ", "has to ", message)


_QUOTING = reprlib.Repr()
_QUOTING.maxlevel, _QUOTING.maxstring, _QUOTING.maxlong, _QUOTING.maxother = 3, 60, 40, 60


def _escaped(text: str) -> str:
    """The text with unprintable characters escaped as in Python."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
