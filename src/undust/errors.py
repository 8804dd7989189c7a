"""Errors for people: one line that says what was wrong, where, and what would be right."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UndustError(Exception):
    """Something the user can put right; the message is one line and needs no traceback."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UndustError:
    """Says that `name` is none of the known ones, which they are, and which was perhaps meant."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    guess = f" did you mean '{near[0]}'?" if near else ""
    return UndustError(f"unknown {kind} '{name}';{guess} known: {', '.join(names)}")
