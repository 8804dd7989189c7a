"""How originals are changed."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from random import Random
from typing import Any

from undust.formats import safetensors_file

WIDTHS = {name: dtype.itemsize for name, dtype in safetensors_file.DTYPES.items()}
Entries = dict[str, tuple[str, tuple[int, ...]]]  # name -> dtype, shape


# Stand for what cannot be written from values: brackets in brackets, and very many small values.
DEEP, MANY = "@deep@", "@many@"
LETTERS = ["", "\0", "\n", "\r", "\x1b[2J", "\x85", "\u2028", "\u202e", "\ud800", "é", "e\u0301"]
LETTERS += ["😀", "İ", "ß", "�", "..", "/", "\\", "%s", "{}", "'", '"', "*", "a(b", "١", " ", "x"]
NUMBERS = [0, 1, -1, 2, 3, 5, 7, 31, 64, 77, 255, 1000, 2**16, 2**20, 2**31, 2**32, 2**53, 2**63]
NUMBERS += [2**64, -(2**63), 10**30, 10**400, 0.0, -0.0, 0.5, 1e-9, 1e-320, 1e9, 1e38, 1e39, 1e308]
NUMBERS += [math.nan, math.inf, -math.inf, True, False]
OTHERS = [None, "", "x", [], {}, [[]], [{}], {"": {}}, [None], "null", "1", "F32", "I8", "../x"]
OTHERS += ["a" * 5000, "\n" * 50, "\ud800", [0] * 3000, ["x"] * 3000]
OTHERS += [{str(number): number for number in range(999)}]
OTHERS += [DEEP, MANY, MANY, [1, 2], [1.5], [-1], [2**62, 4], [2**32, 2**32]]
OTHERS += ["epsilon", "CrossAttnDownBlock2D"]


def nested(depth: int) -> object:
    value: object = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def text_changed(chance: Random, text: str) -> str:
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at, end = sorted(chance.randrange(len(text) + 1) for _ in range(2))
        match chance.randrange(5):
            case 0:
                text = text[:at] + chance.choice(LETTERS) + text[at:]
            case 1:
                text = text[:at] + text[min(end, at + 9) :]
            case 2:
                text = text[:at] + chance.choice(LETTERS) * chance.choice((2, 50, 2000)) + text[at:]
            case 3:
                text = text[:at] + chr(chance.choice((chance.randrange(256), 0xD800, 0x1F600)))
            case _:
                text = text[:end] + text[at:]  # a part twice
        text = text[: 2**16]
    return text


def value_changed(chance: Random, value: Any) -> Any:
    """A copy of plain values in which something is another."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        value = dict(value)
        key = chance.choice(list(value))
        match chance.randrange(9):
            case 0:
                del value[key]
            case 1:
                value[text_changed(chance, str(key))] = value.pop(key)
            case 2:
                value[text_changed(chance, str(key))] = value[key]
            case 3:
                other = chance.choice(list(value))
                value[key], value[other] = value[other], value[key]
            case _:
                value[key] = value_changed(chance, value[key])
        return value
    if isinstance(value, (list, tuple)) and value and chance.random() < 0.8:
        value = list(value)
        at = chance.randrange(len(value))
        match chance.randrange(6):
            case 0:
                del value[at]
            case 1:
                value.insert(at, value[at])
            case 2:
                value *= chance.choice((2, 100))
            case _:
                value[at] = value_changed(chance, value[at])
        return value
    if isinstance(value, str) and chance.random() < 0.5:
        return text_changed(chance, value)
    if isinstance(value, int | float) and abs(value) < 1e300 and chance.random() < 0.3:
        return chance.choice((value * 2, value + 1, -value, value / 2, str(value), [value]))
    if chance.random() < 0.05:
        return nested(chance.choice((5, 100, 300, 800)))
    return chance.choice(NUMBERS if chance.random() < 0.5 else OTHERS)


def json_changed(chance: Random, value: Any, *, often: float = 0.8) -> bytes:
    """Values as JSON, some of them others, and sometimes what no writer would write."""
    while chance.random() < often:
        value, often = value_changed(chance, value), often / 2
    text = json.dumps(value, ensure_ascii=chance.random() < 0.5)
    text = text.replace(f'"{DEEP}"', "[" * 99_999 + "]" * 99_999)
    if MANY in text:
        each = chance.choice(("[]", "{}", "1e5", "0", '"ab"', "null", '{"a":[]}'))
        number = chance.choice((10**4, 10**6, 2 * 10**6)) // len(each)
        many = f"[{','.join([each] * number)}]"
        if chance.random() < 0.2:
            many = (
                f"{{{','.join(f'{json.dumps(str(name))}:{each}' for name in range(number // 4))}}}"
            )
        text = text.replace(f'"{MANY}"', many, 1)
    if chance.random() < 0.1:  # a key twice
        pairs = re.findall(r'"\w+": ?(?:"[^"{]*"|[\w.]+|\[[^\[\]]*\])', text)
        at = text.find("{") + 1
        text = text[:at] + chance.choice(pairs or [""]) + "," + text[at:]
    content = text.encode("utf-8", "surrogatepass")
    return bytes_changed(chance, content) if chance.random() < 0.15 else content


def bytes_changed(chance: Random, content: bytes) -> bytes:
    made = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        at = chance.randrange(min(len(made), chance.choice((16, 64, 2**40))) or 1)
        match chance.randrange(6):
            case 0:
                made = made[:at]
            case 1:
                made[at:at] = chance.randbytes(chance.choice((1, 4, 300)))
            case 2:
                del made[at : at + chance.choice((1, 8, 100))]
            case 3 if made:
                made[at] ^= 1 << chance.randrange(8)
            case _ if made:
                made[at] = chance.choice((0, 255, 127, 128, chance.randrange(256)))
            case _:
                pass
    return bytes(made)


def weights(chance: Random, path: Path, entries: Entries, metadata: dict[str, str]) -> int:
    """Writes a safetensors file of such tensors, damaged or told wrongly; its bytes."""
    entries, way = dict(entries), chance.random()
    if way < 0.6:  # a whole file, of other tensors
        for _ in range(chance.choice((0, 1, 1, 1, 2, 5))):
            name = chance.choice(list(entries) or [""])
            dtype, shape = entries.get(name, ("F32", (2, 3)))
            match chance.randrange(6):
                case 0:
                    entries.pop(name, None)
                case 1:
                    entries.pop(name, None)
                    entries[text_changed(chance, name)] = (dtype, shape)
                case 2:
                    entries[text_changed(chance, name)] = (dtype, shape)
                case 3:
                    entries[name] = (chance.choice(list(WIDTHS)), shape)
                case _:
                    other = [max(0, n + chance.choice((-1, 0, 1, n, 30))) for n in shape] + [
                        1
                    ] * chance.choice((0, 0, 1, 3))
                    chance.shuffle(other)
                    entries[name] = (dtype, tuple(other[: chance.choice((0, 1, 2, 9))]))
        if metadata and chance.random() < 0.5:
            key = chance.choice(list(metadata))
            told = metadata[key]
            if told.startswith("{"):
                told = json_changed(chance, json.loads(told)).decode("utf-8", "ignore")
            metadata = {**metadata, key: told}
    head: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, (dtype, shape) in entries.items():
        start, end = end, end + math.prod(shape) * WIDTHS[dtype]
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json_changed(chance, head, often=0.0 if way < 0.6 else 0.9)
    length = len(text)
    if way > 0.95:
        length = chance.choice((0, 1, length // 2, length + 1, 2**31, 2**63, 2**64 - 1, 10**8))
    content = length.to_bytes(8, "little") + text
    content = bytes_changed(chance, content) if 0.85 < way < 0.95 else content
    filled = chance.choice((b"\0", b"\0", b"\x3c", b"\xff", b"\x7c")) * min(end, 2**16)
    end += chance.choice((-1, 1, 1000)) if chance.random() < 0.03 else 0
    with path.open("wb") as file:  # what lies behind is zeros that nobody wrote
        file.write(content + filled)
        file.truncate(len(content) + max(0, end))
    return path.stat().st_size
