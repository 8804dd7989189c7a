"""Prompt syntax: text with weights.

The syntax of AUTOMATIC1111, common on picture sites: (x) has the weight 1.1, ((x)) 1.21, [x] 1/1.1,
(x:1.3) 1.3; the word BREAK begins a new part. A backslash before a bracket, a backslash or BREAK
makes it plain text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from undust.errors import UndustError, printable

FACTORS = {"(": 1.1, "[": 1 / 1.1}
OPENING = {")": "(", "]": "["}
LARGEST = 1e30  # of a weight: a state times it is still in the range of float32

# All repetitions are possessive, so that no text takes quadratic time.
_MARK = re.compile(
    r"\\(?P<literal>[()\[\]\\]|BREAK\b)"
    r"|(?P<open>[(\[])"
    r"|:\s*+(?P<weight>[+-]?(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++))\s*+\)"
    r"|(?P<close>[)\]])"
    r"|(?P<cut>\bBREAK\b)"
)
_LITERAL = re.compile(r"[()\[\]\\]|\bBREAK\b")
# Syntax of other tools, and the equivalent here.
_END = r"(?=[\s,.;)]|$)"
_WEIGHT = "a weight is written (cat:1.3)"
_CHOICE = "each choice can be a prompt of its own"
_WORD = "an embedding is loaded with --embedding FILE=WORD"
_FOREIGN = {
    re.compile(
        r"<(?:lora|lyco|hypernet):[^<>]{0,200}>"
    ): "a LoRA is loaded with --lora FILE:WEIGHT",
    re.compile(r"(?<!\\)\[[^][]{0,200}[:|][^][]{0,200}(?<!\\)\]"): (
        "a change of prompt at some step is --guide then"
    ),
    # In a text of capitals it is a word.
    re.compile(r"(?<![A-Z])(?:\s|^)AND(?:\s+(?![A-Z]+\b)|$)"): (
        "a second prompt is added with --guide and"
    ),
    re.compile(r":\s{0,9}[+-]?[0-9]{1,9},[0-9]{1,9}\s{0,9}\)"): "a weight has a point, as in 1.3",
    # compel: cat++, (a cat)-- and (a cat)1.3; C++ and g++ are words.
    re.compile(
        rf"(?<!\w)(?![Nn]otepad)(?:[^\W\d_]{{2,40}}|[^\W\x00-\x7f])(?:\+\++|--+){_END}"
        rf"|(?<!\\)\)(?:\++|--+|[0-9]\.[0-9]{{1,9}}){_END}"
    ): _WEIGHT,
    re.compile(r"[\"'\w)]\.(?:and|blend|swap)\("): "prompts are combined with --guide",
    # NovelAI and Midjourney
    re.compile(r"(?<![$\\])\{[^{}|]{1,200}\}|[0-9]::[^:]{1,200}::|\w::-?[0-9]"): _WEIGHT,
    # Dynamic Prompts and SwarmUI
    re.compile(r"\{[^{}|]{0,200}\|[^{}]{0,200}\}|<(?:random|wildcard)[:[][^<>]{0,200}>"): _CHOICE,
    re.compile(r"(?<!\w)__[^\W_](?:[\w/*.-]{0,99}[^\W_])?(?:\*\*?)?__(?!\w)"): _CHOICE,
    # ComfyUI and SwarmUI
    re.compile(r"(?<!\w)embedding:[^\s,:)]{1,200}|<embed:[^<>]{0,200}>"): _WORD,
    re.compile(r"[（［｛][^（）［］｛｝]{1,200}[）］｝]|：\s?[0-9０-９.．]{1,9}\s?[)）]"): (
        f"{_WEIGHT}, with ASCII brackets and colon"
    ),
    re.compile(r"(?<!\S)--(?:ar|aspect|chaos|iw|niji|no|q|s|seed|style|stylize|v)(?= [\w:./])"): (
        "options are not part of the prompt: --size, --negative, --seed"
    ),
}


class Fragment(NamedTuple):
    """Text of one weight; text without syntax has the weight 1."""

    text: str
    weight: float


def parse(prompt: str) -> list[list[Fragment]]:
    """The parts between BREAKs, each a list of fragments; neighbours have different weights.

    Nested brackets multiply. An unclosed bracket extends to the end; an unmatched closing bracket
    is plain text, and so is a backslash before anything else. An empty part has no fragments.
    Raises UndustError for weights beyond 1e30.
    """
    marks = list(_MARK.finditer(prompt))
    factors, closing = _match(marks)
    parts: list[list[Fragment]] = [[]]
    # Products of the open brackets of each kind, the innermost last; the two kinds may overlap.
    products = {"(": [1.0], "[": [1.0]}

    def add(text: str) -> None:
        if text:
            parts[-1].append(Fragment(text, _finite(products["("][-1] * products["["][-1], text)))

    end = 0
    for number, mark in enumerate(marks):
        add(prompt[end : mark.start()])
        end = mark.end()
        if number in factors:
            products[mark[0]].append(products[mark[0]][-1] * factors[number])
        elif number in closing:
            products[OPENING[mark[0][-1]]].pop()
        elif mark["cut"]:
            parts.append([])
        else:
            add(mark["literal"] or mark[0])
    add(prompt[end:])
    return [_joined(part) for part in parts]


def foreign(prompt: str) -> list[str]:
    """A note for each kind of syntax of other tools in a prompt, which is plain text here."""
    found = ((pattern.search(prompt), instead) for pattern, instead in _FOREIGN.items())
    return [
        f"the prompt's {printable(match[0].strip())} is read as plain text; {instead}"
        for match, instead in found
        if match
    ]


def escape(text: str) -> str:
    """The prompt for exactly this text at weight 1, the inverse of `parse`."""
    return _LITERAL.sub(r"\\\g<0>", text)


def _match(marks: Sequence[re.Match[str]]) -> tuple[dict[int, float], set[int]]:
    """The factor of each opening bracket and the set of closing brackets, by index of mark."""
    factors: dict[int, float] = {}
    closing: set[int] = set()
    waiting: dict[str, list[int]] = {"(": [], "[": []}
    for number, mark in enumerate(marks):
        if kind := mark["open"]:
            factors[number] = FACTORS[kind]
            waiting[kind].append(number)
        elif (mark["weight"] or mark["close"]) and (opened := waiting[OPENING[mark[0][-1]]]):
            closing.add(number)
            last = opened.pop()
            factors[last] = float(mark["weight"] or factors[last])
    return factors, closing


def _joined(part: list[Fragment]) -> list[Fragment]:
    """Joins neighbours of equal weight to one fragment."""
    return [
        Fragment("".join(fragment.text for fragment in alike), weight)
        for weight, alike in groupby(part, key=lambda fragment: fragment.weight)
    ]


def _finite(weight: float, text: str) -> float:
    if not abs(weight) <= LARGEST:
        short = text.strip() if len(text) < 40 else text[:40].strip() + "…"
        raise UndustError(f"prompt: the weight of {short!r} is {weight:.3g}; about 1 is usual")
    return weight
