"""A part of an explanation as one picture: its question, figures and effects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image

from undust.explain.chart import chart_image
from undust.explain.effect import mean_and_deviation
from undust.explain.explanation import ExplainedPart
from undust.explain.figures import Figure, Frames, LineChart, TextTable
from undust.explain.labels import draw_label, drawn_width
from undust.explain.texts import COMMON, Translation

WIDTH = 860  # pixels
MARGIN, GAP = 16, 8
ROOM = WIDTH - 2 * MARGIN  # within the margins
TITLE, HEADING, TEXT = 26, 18, 15  # pixels of letters
MAX_FRAMES = 6
CHART_SCALE = 1.25


def part_sheet(part: ExplainedPart, texts: Translation) -> Image.Image:
    """Title, question and claim, all figures one below the other, and the measured effects."""
    say, common = texts.part(part.name), texts.part(COMMON)
    blocks = [
        _lines([f"{part.number}. {say('title')}"], TITLE),
        _paragraph(say("question"), HEADING),
        _paragraph(f"{common('claim')}: {say('without')}", TEXT),
    ]
    for figure in part.result.figures:
        blocks.append(_lines(_wrapped(figure.title, HEADING, ROOM), HEADING))
        blocks += _figure(figure)
        if figure.note:
            blocks.append(_paragraph(figure.note, TEXT))
    blocks.append(_lines([common("effects")], HEADING))
    for effect in part.result.effects:
        changed, whole = (
            "{:.{digits}f} ± {:.{digits}f}".format(
                *mean_and_deviation(values), digits=effect.digits
            )
            for values in (effect.values, effect.reference)
        )
        numbers = f"{common('part_whole')} {whole}, {common('part_changed')} {changed}"
        verdict = common(effect.verdict.replace(" ", "_"))
        blocks.append(_paragraph(f"{effect.text}: {numbers} → {verdict}", TEXT))
    return _stacked(blocks)


def _figure(figure: Figure) -> Iterator[Image.Image]:
    if isinstance(figure, LineChart):
        image = chart_image(figure)
        factor = CHART_SCALE / 2
        size = round(image.width * factor), round(image.height * factor)
        yield image.resize(size, Image.Resampling.LANCZOS)
    elif isinstance(figure, TextTable):
        yield _table(figure)
    else:
        yield _frames(figure)


def _frames(figure: Frames) -> Image.Image:
    """Pictures with their labels, as many beside each other as there is room for."""
    count = len(figure.images)
    kept = range(count)
    if count > MAX_FRAMES:
        kept = [round(k * (count - 1) / (MAX_FRAMES - 1)) for k in range(MAX_FRAMES)]
    width = figure.images[0].width
    scale = min(1.0, ROOM / width)
    width = min(width, ROOM)
    across = max(1, (ROOM + GAP) // (width + GAP))
    cells: list[Image.Image] = []
    for place in kept:
        image = figure.images[place].convert("RGB")
        if scale < 1:
            size = width, max(1, round(image.height * scale))
            image = image.resize(size, Image.Resampling.LANCZOS)
        label = _lines(_wrapped(figure.labels[place], TEXT, width), TEXT, width)
        cells.append(_stacked([image, label], width, 0, 2))
    rows = [_beside(cells[first : first + across]) for first in range(0, len(cells), across)]
    return _stacked(rows, ROOM, 0, GAP)


def _table(figure: TextTable) -> Image.Image:
    """Columns as wide as their longest cell, at most an equal share of the width."""
    rows = [figure.columns, *figure.rows]
    most = ROOM // len(figure.columns) - GAP
    needed = [max(drawn_width(row[k], TEXT) for row in rows) for k in range(len(figure.columns))]
    spare = ROOM - sum(min(width, most) + GAP for width in needed)
    wide = sum(width > most for width in needed)
    widths = [width if width <= most else most + spare // max(1, wide) for width in needed]
    drawn = [
        _beside(
            [
                _lines(_wrapped(cell, TEXT, width), TEXT, width)
                for cell, width in zip(row, widths, strict=True)
            ]
        )
        for row in rows
    ]
    return _stacked(drawn, ROOM, 0, 4)


def _paragraph(text: str, size: int) -> Image.Image:
    return _lines(_wrapped(text, size, ROOM), size)


def _wrapped(text: str, size: int, width: int) -> list[str]:
    """The text in lines of at most this width, broken at spaces; a longer word stays whole."""
    lines: list[str] = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and drawn_width(longer, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _lines(lines: Sequence[str], size: int, width: int | None = None) -> Image.Image:
    image = Image.new("RGB", (width or ROOM, round(size * 1.4) * len(lines)), "white")
    for number, line in enumerate(lines):
        draw_label(image, (0, round(size * 1.4) * number), line, size)
    return image


def _beside(images: Sequence[Image.Image]) -> Image.Image:
    size = sum(image.width + GAP for image in images), max(image.height for image in images)
    row = Image.new("RGB", size, "white")
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width + GAP
    return row


def _stacked(
    images: Sequence[Image.Image], width: int = WIDTH, margin: int = MARGIN, gap: int = GAP
) -> Image.Image:
    height = sum(image.height + gap for image in images) - gap + 2 * margin
    sheet = Image.new("RGB", (width, height), "white")
    top = margin
    for image in images:
        sheet.paste(image, (margin, top))
        top += image.height + gap
    return sheet
