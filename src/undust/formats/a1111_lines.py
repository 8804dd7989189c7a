"""The lines of AUTOMATIC1111's text: those of the prompts, the settings, and what others added.

`formats/a1111.py` says what the settings mean.
"""

from __future__ import annotations

import json
import re

from undust.errors import limit_entries

NEGATIVE = "Negative prompt:"
NEGATIVES = re.compile(rf"^[ \t]*{NEGATIVE}", re.MULTILINE | re.IGNORECASE)
FEWEST = 3  # a last line with fewer settings than this is part of the prompt
COMMON_KEYS = ("Steps", "Sampler", "CFG scale", "Seed", "Size", "Model", "Model hash")
# Names that a line begins with where the settings take several lines.
LINE_KEYS = (*COMMON_KEYS, "Schedule type", "Scheduler", "Clip skip", "Denoising strength", "VAE")
# The length of a key is limited, so that no line takes quadratic time.
SETTINGS_LINE = re.compile(r"^Steps: \d{1,9}, \w", re.MULTILINE)  # how the web UI begins it
SETTING = re.compile(r"(\w[\w \-/]{1,60}):\s*")
# A decimal comma, or commas between the thousands: "CFG scale: 7,5, Seed: 1".
COMMAS = re.compile(r"(-?\d+(?:,\d+)+)\s*(?=$|,\s*(?:$|\w[\w \-/]{1,60}:))")
QUOTED = re.compile(r'("(?:\\.|[^\\"])+")\s*(?:,|$)')
NAMED = re.compile(r"(\w[\w \-/]{1,60}):(?:\s+|$)(.*)", re.DOTALL)  # a line after the settings
AFTER = "after the settings"  # what lines without a name are called
JSON = json.JSONDecoder()
NAMES = {  # in small letters -> as the web UI writes them
    name.lower(): name for name in (*LINE_KEYS, "Hires upscale", "Hires strength")
}


def parted(text: str) -> tuple[list[str], str, list[str]]:
    """The lines of the prompts, the line of settings, and the lines after it.

    Picture sites and extensions add lines, so the settings are the last line that has two of the
    usual names, with the lines before it from the one of the steps; failing that the last line, if
    it has enough of any.
    """
    lines = _lines(text.strip())
    for place in reversed(range(len(lines))):
        first = _first_line(lines, place)
        line = ", ".join(each.strip().removesuffix(",") for each in lines[first : place + 1])
        lower = line.lower()
        if sum(f"{name.lower()}:" in lower for name in COMMON_KEYS) > 1:
            found = settings_in(line)
            if len(found) >= FEWEST and sum(name in COMMON_KEYS for name, _ in found) > 1:
                return lines[:first], line, lines[place + 1 :]
    if len(settings_in(lines[-1])) >= FEWEST:
        return lines[:-1], lines[-1], []
    return lines, "", []


def _lines(text: str) -> list[str]:
    """The lines of a text; of one whose ends of lines were lost or escaped, where they were."""
    if 0 < text.count("\n") == text.count("\r\n"):
        text = text.replace("\r\n", "\n")
    if "\n" not in text:
        text = text.replace("\r", "\n")
    if "\n" not in text and re.search(r"\\nSteps: \d", text):
        text = text.replace("\\r", "").replace("\\n", "\n")
    begun = SETTING.match(text)
    if "\n" not in text and not (begun and begun[1].lower() in NAMES):
        *_, last = [None, *re.finditer(r"\s(?=Steps: \d{1,9}, \w)", text)]
        if last:
            text = f"{text[: last.start()]}\n{text[last.end() :]}"
            text = re.sub(rf"\s(?={NEGATIVE})", "\n", text, count=1)
    return text.split("\n")


def _first_line(lines: list[str], last: int) -> int:
    """The line with the steps, from which to the last one every line begins with another setting.

    That one itself if there is none: the web UI writes one line.
    """
    names = set[str]()
    for place in range(last, max(last - len(LINE_KEYS), -1), -1):
        begun = SETTING.match(lines[place].strip())
        own = {name for name, _ in settings_in(lines[place])} if begun else set[str]()
        if not begun or NAMES.get(begun[1].lower()) not in LINE_KEYS or own & names:
            return last
        names |= own
        if "Steps" in own:
            return place
    return last


def settings_in(line: str) -> list[tuple[str, str]]:
    """Names and values in a line; commas inside quotation marks, JSON or a number end no value."""
    found: list[tuple[str, str]] = []
    place = 0
    while name := SETTING.search(line, place):
        start = name.end()
        value = QUOTED.match(line, start) or COMMAS.match(line, start)
        if value:
            found.append((name[1], _unquoted(value[1])))
            place = value.end()
            continue
        place = _end_of_json(line, start) or line.find(",", start)
        place = len(line) if place < 0 else place
        found.append((name[1], line[start:place].strip()))
    limit_entries("parameters", found)
    exact = {name for name, _ in found}
    usual = ((name, NAMES.get(name.lower(), name)) for name, _ in found)
    names = [name if known in exact else known for name, known in usual]
    return [(name, value) for name, (_, value) in zip(names, found, strict=True)]


def _end_of_json(line: str, start: int) -> int:
    """The end of JSON that begins there, if a comma or the end of the line follows; else 0."""
    if line[start : start + 1] not in ("[", "{"):
        return 0
    try:
        _, end = JSON.raw_decode(line, start)
    except (ValueError, RecursionError):
        return 0
    return end if re.compile(r"\s*(?:,|$)").match(line, end) else 0


def named_after(lines: list[str], notes: list[str]) -> dict[str, str]:
    """The lines after the settings by their names, such as dynamic prompts' `Template:`."""
    found: dict[str, str] = {}
    name = ""
    for line in lines:
        if keyed := NAMED.match(line):
            name, line = keyed[1], keyed[2]
        key = name or AFTER
        found[key] = f"{found[key]}\n{line}" if key in found else line
    limit_entries("parameters", found)
    found = {name: text.strip() for name, text in found.items() if text.strip()}
    if AFTER in found:
        notes.append("text after the settings is not part of the prompts")
    return found


def _unquoted(text: str) -> str:
    if len(text) > 1 and text.startswith('"') and text.endswith('"'):
        try:
            return str(json.loads(text))
        except ValueError:
            pass  # a stray quotation mark, as people type them
    return text
