"""Pictures of a trace: a strip of its steps, the maps of its words, and frames of an animation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from undust.explain.labels import draw_label, drawn_width
from undust.explain.trace import Trace, TraceStep
from undust.explain.word_maps import attention_shares
from undust.pictures import to_images

COLUMNS = 9  # steps in the strip
PANEL, LARGE = 96, 192  # pixels, the longer side of a picture in the strip and elsewhere
LONGEST_LABEL = 160  # pixels of a row's name
FONT, SMALL, GAP = 14, 11, 4  # pixels
MARGIN = 8
# Of a heat map from 0 to 1: lightness rises all the way, and hue goes from blue to orange, so that
# colour-blind readers and grey prints show the same order.
COLOURS = ((12, 14, 38), (45, 80, 160), (150, 120, 130), (235, 150, 50), (255, 246, 220))
HIGHLIGHT = (190, 85, 8)  # of an overlay; the picture below is grey
COVER = 0.85  # of the highlight where a map has its maximum


def heat_picture(values: Tensor, size: tuple[int, int]) -> Image.Image:
    """A map [h, w] as colours from its zero to its maximum, resized to (width, height)."""
    anchors = torch.tensor(COLOURS).float()
    place = _of_maximum(values) * (len(anchors) - 1)
    low = place.long().clamp_max(len(anchors) - 2)
    mixed = torch.lerp(anchors[low], anchors[low + 1], (place - low)[..., None])
    return Image.fromarray(mixed.round().byte().numpy()).resize(size, Image.Resampling.BILINEAR)


def overlay(picture: Image.Image, values: Tensor) -> Image.Image:
    """A picture in light grey with a map [h, w] in orange on it, strongest at its maximum.

    The minimum of the map has no colour: a word's attention is nowhere 0.
    """
    above = _of_maximum(values - values.min())
    mask = Image.fromarray((COVER * 255 * above).round().byte().numpy())
    mask = mask.resize(picture.size, Image.Resampling.BICUBIC)
    light = Image.blend(picture.convert("L").convert("RGB"), _plain(picture.size), 0.6)
    return Image.composite(Image.new("RGB", picture.size, HIGHLIGHT), light, mask)


def strip(trace: Trace, estimates: Sequence[Image.Image]) -> Image.Image:
    """The film strip: steps from left to right, and downwards x, x0, guidance and the words.

    x is scaled to a variance of about 1 and decoded; guidance is the magnitude of the difference
    over the channels, each panel from 0 to its own maximum, which is what the number says of it:
    its root mean square. A word's number is its share of the attention to all words. estimates:
    the decoded x0 of each step.
    """
    chosen = [trace.steps[place] for place in chosen_places(len(trace.steps))]
    shown = [_fitted(estimates[step.index], PANEL) for step in chosen]
    size = shown[0].size
    rows: list[tuple[str, list[Image.Image], list[str]]] = [
        ("x", [_noisy(trace, step, size) for step in chosen], [_rms(step.x) for step in chosen]),
        ("x0", shown, [_rms(step.x0) for step in chosen]),
        (
            "guidance",
            [_guidance(step, size) for step in chosen],
            ["-" if step.guidance is None else _rms(step.guidance) for step in chosen],
        ),
    ]
    for number, word in enumerate(trace.words):
        shares = [attention_shares(step.maps)[number].item() for step in chosen]
        panels = [
            overlay(below, step.maps[number]) for below, step in zip(shown, chosen, strict=True)
        ]
        rows.append((word.text, panels, [f"{share:.0%}" for share in shares]))
    columns = [f"{step.index + 1}: sigma {step.sigma:.3g}" for step in chosen]
    return _table(columns, rows, size)


def chosen_places(steps: int) -> list[int]:
    """The steps in the strip: all of a few, else evenly spaced, with the first and the last."""
    if steps <= COLUMNS:
        return list(range(steps))
    return [round(column * (steps - 1) / (COLUMNS - 1)) for column in range(COLUMNS)]


def word_sheet(trace: Trace) -> Image.Image:
    """The final picture, and on it the map of each word, the mean of all steps."""
    return _labelled(trace, trace.picture.image, trace.maps, "")


def frames(trace: Trace, estimates: Sequence[Image.Image]) -> Iterator[Image.Image]:
    """For each step, its estimate x0 and on it the maps of the words."""
    for step, estimate in zip(trace.steps, estimates, strict=True):
        title = f"step {step.index + 1} of {len(trace.steps)}, sigma {step.sigma:.3g}"
        yield _labelled(trace, estimate, step.maps, title)


def decoded_estimates(
    trace: Trace, observe: Callable[[int, int], object] | None = None
) -> list[Image.Image]:
    """x0 of each step as a picture; observe: called with the number decoded and of all."""
    found: list[Image.Image] = []
    for step in trace.steps:
        found += _decoded(trace, step.x0)
        if observe:
            observe(len(found), len(trace.steps))
    return found


def _labelled(trace: Trace, below: Image.Image, maps: Tensor, title: str) -> Image.Image:
    """A picture and its overlays in rows, with names and shares below them."""
    below = _fitted(below, LARGE)
    shares = attention_shares(maps).tolist()
    panels = [below, *(overlay(below, own) for own in maps)]
    names = ["", *(word.text for word in trace.words)]
    numbers = ["", *(f"  {share:.0%}" for share in shares)]
    across = min(len(panels), 5)
    width, height = below.width + MARGIN, below.height + FONT + 2 * MARGIN
    top = MARGIN + (FONT + MARGIN if title else 0)
    sheet = _plain((across * width + MARGIN, top + -(-len(panels) // across) * height))
    draw_label(sheet, (MARGIN, MARGIN), title, FONT)
    for place, (panel, name, number) in enumerate(zip(panels, names, numbers, strict=True)):
        row, column = divmod(place, across)
        left, begin = MARGIN + column * width, top + row * height
        sheet.paste(panel, (left, begin))
        room = panel.width - drawn_width(number, FONT)
        middle = begin + panel.height + MARGIN // 2 + FONT // 2
        name = _shortened(name, room)
        draw_label(sheet, (left, middle), name, FONT, "lm")
        draw_label(sheet, (left + drawn_width(name, FONT), middle), number, FONT, "lm")
    return sheet


def _table(
    columns: Sequence[str],
    rows: Sequence[tuple[str, list[Image.Image], list[str]]],
    size: tuple[int, int],
) -> Image.Image:
    """Panels of one size in rows, with names at the left and above and a number below each."""
    left = MARGIN + max(drawn_width(_shortened(name, LONGEST_LABEL), FONT) for name, *_ in rows)
    left, top = left + MARGIN, 2 * MARGIN + SMALL
    width, height = size[0] + GAP, size[1] + SMALL + 2 * GAP
    table = _plain((left + len(columns) * width + MARGIN, top + len(rows) * height))
    for column, name in enumerate(columns):
        draw_label(table, (left + column * width, MARGIN), _shortened(name, width, SMALL), SMALL)
    for row, (name, panels, numbers) in enumerate(rows):
        begin = top + row * height
        middle = begin + size[1] / 2
        draw_label(table, (MARGIN, middle), _shortened(name, LONGEST_LABEL), FONT, "lm")
        for column, (panel, number) in enumerate(zip(panels, numbers, strict=True)):
            place = left + column * width, begin
            table.paste(panel, place)
            draw_label(table, (place[0], begin + size[1] + 2), number, SMALL)
    return table


def _shortened(text: str, room: float, size: int = FONT) -> str:
    """The text, or as much of its beginning as there is room for."""
    while text and drawn_width(text, size) > room:
        text = text.removesuffix("...")[:-1].rstrip() + "..." if len(text) > 4 else ""
    return text


def _noisy(trace: Trace, step: TraceStep, size: tuple[int, int]) -> Image.Image:
    (image,) = _decoded(trace, step.x / (1 + step.sigma**2) ** 0.5)
    return image.resize(size, Image.Resampling.BICUBIC)


def _guidance(step: TraceStep, size: tuple[int, int]) -> Image.Image:
    if step.guidance is None:
        return Image.new("RGB", size, (225, 225, 225))
    return heat_picture(step.guidance.norm(dim=0), size)


def _decoded(trace: Trace, latent: Tensor) -> list[Image.Image]:
    with torch.inference_mode():
        return to_images(trace.decode(latent[None]))


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    """Enlarged or reduced so that its longer side is of that length."""
    factor = side / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _of_maximum(values: Tensor) -> Tensor:
    values = values.detach().float().cpu()
    return (values / values.max().clamp_min(torch.finfo(values.dtype).tiny)).clamp(0, 1)


def _rms(x: Tensor) -> str:
    return f"{x.square().mean().sqrt().item():.3g}"


def _plain(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, "white")
