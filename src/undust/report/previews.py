"""The previews of a run, as many and as large as a page can hold."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from PIL import Image

from undust.errors import UndustError
from undust.pictures import from_image, read_image
from undust.regular import open_regular, read_text

MOST = 100  # previews
MAX_FILE = 64 * 2**20  # bytes of one
MAX_SIDE = 1600  # pixels of one that is made smaller
LEAST_SIDE = 320
QUALITY = 82
MAX_CAPTIONS = 256
MAX_CAPTION = 300  # characters
NAME = re.compile(r"step-(\d{1,15})\.png")


@dataclass(frozen=True)
class Preview:
    """One preview: its step, its file's bytes as a data URL, its size and its cells' captions."""

    step: int
    content: bytes
    kind: str
    width: int
    height: int
    captions: tuple[str, ...]

    @property
    def url(self) -> str:
        """The picture as a data URL (RFC 2397)."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.content).decode()}"

    @property
    def enlarged(self) -> int:
        """The whole factor by which a small one is shown larger."""
        return max(1, min(4, 1100 // self.width, 800 // self.height))

    @property
    def wide(self) -> bool:
        """Whether it would be too small on a phone without scrolling."""
        return self.width > 2 * self.height


def read(folder: Path, budget: int) -> tuple[list[Preview], list[str]]:
    """The previews in `samples`, oldest first, of at most `budget` bytes, and notes on changes.

    Too many are thinned evenly, too large ones are made smaller; the first and the newest stay.
    """
    by_step: dict[int, Path] = {}
    with suppress(OSError):
        for path in folder.iterdir():
            if found := NAME.fullmatch(path.name):
                by_step[int(found[1])] = path
    steps = sorted(by_step)
    chosen = [steps[place] for place in evenly(len(steps), MOST)]
    beside = _lines(folder / "captions.txt")
    previews, notes, broken = list[Preview](), list[str](), list[str]()
    smaller, left = 0, budget
    share = budget // max(1, len(chosen))
    # The newest first: it is shown large, and may take more than its share.
    for step in reversed(chosen):
        try:
            preview = _read(by_step[step], step, beside)
        except UndustError as error:
            broken.append(str(error))
            continue
        allowed = min(left, share if previews else max(share, budget // 4))
        if len(preview.content) > allowed:
            preview, smaller = _smaller(preview, allowed), smaller + 1
        if len(preview.content) <= left:
            previews.append(preview)
            left -= len(preview.content)
    previews.reverse()
    if len(previews) + len(broken) < len(steps):
        notes.append(f"{len(previews)} of {len(steps):,} previews are on this page")
    if smaller:
        notes.append(f"{smaller} of them are smaller or compressed, to limit the size of this page")
    notes += broken[:5]
    if len(broken) > 5:
        notes.append(f"{len(broken) - 5} more previews cannot be read")
    return previews, notes


def evenly(size: int, most: int) -> list[int]:
    """At most `most` of `size` places, evenly spaced, with the first and the last."""
    if size <= most:
        return list(range(size))
    return [round(place * (size - 1) / (most - 1)) for place in range(most)]


def _read(path: Path, step: int, beside: tuple[str, ...]) -> Preview:
    """Raises UndustError for a file that is not a whole picture."""
    flat = read_image(path)
    try:
        with open_regular(path) as file:
            content = file.read(MAX_FILE + 1)
        with Image.open(io.BytesIO(content)) as image:
            kind = str(image.format).lower()
            text = cast("object", getattr(image, "text", {}).get("captions", ""))
    except Exception as error:
        raise UndustError(f"{path} cannot be read as a picture: {error}") from error
    captions = _cells(text) if isinstance(text, str) and text else beside
    if kind not in ("png", "jpeg", "webp", "gif") or len(content) > MAX_FILE:
        kind, content = "png", _encoded(flat, "PNG")
    return Preview(step, content, kind, flat.width, flat.height, captions)


def _smaller(preview: Preview, allowed: int) -> Preview:
    """Compressed, and reduced until it has at most so many bytes or is as small as is useful."""
    with Image.open(io.BytesIO(preview.content)) as opened:
        image = opened.convert("RGBA")
    side = min(MAX_SIDE, max(image.size))
    while True:
        reduced = image.copy()
        reduced.thumbnail((side, side), Image.Resampling.LANCZOS)
        content = _encoded(reduced, "WEBP")
        if len(content) <= allowed or side <= LEAST_SIDE:
            width, height = reduced.size
            return replace(preview, content=content, kind="webp", width=width, height=height)
        side = max(LEAST_SIDE, min(int(side * 0.8), int(side * math.sqrt(allowed / len(content)))))


def _encoded(image: Image.Image, kind: str) -> bytes:
    flat = Image.fromarray(from_image(image, image.size).permute(1, 2, 0).numpy())
    file = io.BytesIO()
    flat.save(file, kind, quality=QUALITY)
    return file.getvalue()


def _lines(path: Path) -> tuple[str, ...]:
    with suppress(OSError, UndustError, ValueError):
        return _cells(read_text(path))
    return ()


def _cells(text: str) -> tuple[str, ...]:
    lines: Sequence[str] = text.splitlines()[:MAX_CAPTIONS]
    return tuple(line[:MAX_CAPTION] for line in lines) if any(lines) else ()
