"""Errors for people: one line that says what was wrong, where, and what would be right."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping, Sized
from difflib import get_close_matches
from typing import Any

LONGEST = 1000  # characters of a message
NAME = 120  # characters of a name in it
MOST = 1000  # entries of a configuration, and of a list in it


class UndustError(Exception):
    """Something the user can put right; the message is one line and needs no traceback.

    Paths and names in it may be anybody's: what cannot be printed is escaped, and what is too long
    is cut.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_cut(_escaped(message), LONGEST))


def unknown(
    kind: str, name: str, known: Iterable[str], elsewhere: Mapping[str, str] | None = None
) -> UndustError:
    """Says that `name` is none of the known ones, which they are, and which was perhaps meant.

    elsewhere: what other programs call some of them -> what is known for it.
    """
    names = sorted(known)
    meant = {_bare(other): own for other, own in (elsewhere or {}).items()}
    meant |= {_bare(own): own for own in names}
    near = get_close_matches(_bare(name), meant, n=1)
    guess = f" did you mean '{meant[near[0]]}'?" if near else ""
    return UndustError(f"unknown {kind} '{printable(name)}';{guess} known: {', '.join(names)}")


def _bare(name: str) -> str:
    """A name's letters and digits alone, for "DPM++ 2M", dpmpp_2m and dpmpp-2m are one name."""
    return re.sub(r"[\W_]+", "", name.lower().replace("++", "pp"))


def printable(name: object) -> str:
    """A name found in a file, fit for an error's one line: short, what is unprintable escaped."""
    text = str(name)
    return _cut(text if text.isprintable() else repr(text), NAME)


def quoted(value: object) -> str:
    """A value, as Python writes it, but of what is long or deep only some: fit for an error."""
    return _QUOTING.repr(value)


def limit_entries(what: str, values: Sized) -> None:
    """Raises UndustError for more values than any configuration has.

    Those who check values complain of each, and take a thousand times its bytes for that.
    """
    if len(values) > MOST:
        raise UndustError(f"{what} has {len(values):,} entries, more than can be meant")


def demand(details: Mapping[str, Any]) -> str:
    """A finding of pydantic's as a predicate of the field: "has to be less than or equal to 8"."""
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
        case _:
            pass
    message = re.sub(r"(, unable .*|, got .*| after validation.*| or instance of .*)$", "", message)
    return re.sub(r"^[\w ]+? should ", "has to ", message)


_QUOTING = reprlib.Repr()
_QUOTING.maxlevel, _QUOTING.maxstring, _QUOTING.maxlong, _QUOTING.maxother = 3, 60, 40, 60


def _escaped(text: str) -> str:
    """The text, what cannot be printed as Python would write it."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
