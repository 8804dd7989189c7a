"""Films with their recipe inside: MP4, animated WebP and GIF, and folders of PNGs.

The recipe is in the EXIF of a WebP, as in that of a picture, in the comment of a GIF or an MP4, and
in every PNG of a folder, there with the number of the frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from undust.errors import UndustError, quoted
from undust.formats import mp4
from undust.formats.files import atomic, atomic_folder
from undust.formats.recipe_png import read_recipe, recipe_note, texts_for

MP4, WEBP, GIF = ".mp4", ".webp", ".gif"
FOLDER = ""
FRAMES = "frame-*.png"  # the names of those in a folder
FRAME = "frame"  # the key of a frame's number, from 0, in the recipe of its PNG
SLOWEST, FASTEST = 0.1, 60  # frames per second
FASTEST_GIF = 50  # browsers show a frame of 1/100 s for 1/10 s
LONGEST_SIDE = {MP4: 16_384, WEBP: 16_383, GIF: 65_535}  # pixels
LONGEST_GIF = 655  # seconds of one frame, which equal ones may become
WEBP_OPTIONS = {"quality": 90, "method": 4}


def check_film_name(path: Path) -> None:
    """Raises UndustError for a film's name with an unknown suffix, and for MP4 without PyAV."""
    if _kind(path) == MP4:
        mp4.package(path)


def check_rate(path: Path, fps: float) -> None:
    """Raises UndustError for frames per second that a film of that name cannot have."""
    fastest = FASTEST_GIF if _kind(path) == GIF else FASTEST
    if not SLOWEST <= fps <= fastest:  # NaN too
        raise UndustError(
            f"cannot write {path} with {quoted(fps)} frames per second: {SLOWEST} to {fastest} "
            "are possible"
        )


def frame_name(index: int) -> str:
    """The name of a frame's PNG in a folder; index: from 0."""
    return f"frame-{index:04}.png"


def write_film(
    path: Path, frames: Sequence[Image.Image], fps: float, recipe: Mapping[str, Any]
) -> Path:
    """Writes a film and its recipe, completely or not at all, and returns its path.

    frames: at least one, of one size; all become 8-bit RGB, without transparency. fps: frames per
    second, from 0.1 to 60, of a GIF to 50. The same input always gives the same bytes.

    The suffix decides the format. A name without one is that of a folder of PNGs, which are exact;
    the frames per second are in their recipe only if it has them. `.mp4`: H.264 as in `mp4.write`.
    `.webp`: lossy, of quality 90; frames last whole milliseconds. `.gif`: dithered, with 256
    colours for each frame; frames last whole hundredths of a second. Both repeat for ever, are
    never more than half such a unit late, and may store equal frames in succession as one.

    Raises UndustError as `check_film_name` and `check_rate` do, for no frames, for several sizes or
    one that is too large for the format, for a GIF of more than 655 s, for a recipe that is too
    long, not JSON or has the key `FRAME`, for a folder that exists and is not empty, and as
    `files.atomic` does.
    """
    check_film_name(path)
    check_rate(path, fps)
    kind = _kind(path)
    size = _size(path, frames, LONGEST_SIDE.get(kind))
    if FRAME in recipe:
        raise UndustError(f"cannot write {path}: its recipe has the key '{FRAME}' already")
    if kind == GIF and len(frames) > LONGEST_GIF * fps:
        raise UndustError(
            f"cannot write {path}: it would last {len(frames) / fps:,.0f} s, {LONGEST_GIF} at most"
        )
    if kind == FOLDER:
        _write_folder(path, frames, recipe)
        return path
    comment = recipe_note(path, recipe)
    with atomic(path) as temporary:
        if kind == MP4:
            mp4.write(temporary, _stills(frames), size, fps, comment)
        elif kind == WEBP:
            # As in a file, without the start that EXIF has in a JPEG.
            exif = texts_for(path, size, recipe)["exif"].removeprefix(b"Exif\0\0")
            lasting = _durations(len(frames), fps, 1000)
            _animate(temporary, "WEBP", _stills(frames), lasting, exif=exif, **WEBP_OPTIONS)
        else:
            lasting = [10 * duration for duration in _durations(len(frames), fps, 100)]
            coloured = map(_with_palette, _stills(frames))
            _animate(temporary, "GIF", coloured, lasting, comment=comment.encode())
    return path


def read_film_recipe(path: Path) -> dict[str, Any]:
    """The recipe in a film that undust wrote, or in one frame of a folder; not yet validated.

    Raises UndustError for a film without a recipe, and one that is absent or damaged.
    """
    recipe = read_recipe(path / frame_name(0) if path.is_dir() else path)
    recipe.pop(FRAME, None)
    return recipe


def _kind(path: Path) -> str:
    """The suffix in lower case; `FOLDER` without one and for a folder of any other name."""
    suffix = path.suffix.lower()
    if suffix in (MP4, WEBP, GIF, FOLDER):
        return suffix
    if path.is_dir():
        return FOLDER
    raise UndustError(
        f"{path}: films are written as {MP4}, {WEBP} or {GIF}, or without a suffix into a folder "
        f"of PNGs, for example to {path.with_suffix(MP4)}"
    )


def _size(path: Path, frames: Sequence[Image.Image], longest: int | None) -> tuple[int, int]:
    """The size of all frames. Raises UndustError if there is none, or a side is too long."""
    sizes = list(dict.fromkeys(frame.size for frame in frames))
    told = [f"{width}x{height}" for width, height in sizes[:2]]
    if not sizes:
        raise UndustError(f"cannot write {path}: it has no frames")
    if len(sizes) > 1:
        raise UndustError(
            f"cannot write {path}: its frames have different sizes, {told[0]} and {told[1]}"
        )
    if not min(sizes[0]) or (longest and max(sizes[0]) > longest):
        limit = f"a side may have 1 to {longest:,} pixels" if longest else "they are empty"
        raise UndustError(f"cannot write {path} with frames of {told[0]}: {limit}")
    return sizes[0]


def _write_folder(path: Path, frames: Sequence[Image.Image], recipe: Mapping[str, Any]) -> None:
    with atomic_folder(path) as folder:
        for index, still in enumerate(_stills(frames)):
            name = folder / frame_name(index)
            still.save(name, "PNG", **texts_for(name, still.size, {**recipe, FRAME: index}))


def _stills(frames: Sequence[Image.Image]) -> Iterator[Image.Image]:
    """The frames as RGB, without metadata of their sources, one at a time."""
    for frame in frames:
        still = frame.convert("RGB")
        if still is frame:
            still = frame.copy()
        still.info = {}
        yield still


def _with_palette(still: Image.Image) -> Image.Image:
    """An image in 256 colours of its own, with the rest of each pixel passed to its neighbours."""
    colours = still.quantize(256, Image.Quantize.FASTOCTREE)
    return still.quantize(palette=colours, dither=Image.Dither.FLOYDSTEINBERG)


def _durations(count: int, fps: float, unit: int) -> list[int]:
    """The durations of frames in whole units, `unit` of them a second; the rounding never adds."""
    ends = [round(index * unit / fps) for index in range(count + 1)]
    return [after - before for before, after in pairwise(ends)]


def _animate(
    path: Path, kind: str, stills: Iterator[Image.Image], lasting: list[int], **options: Any
) -> None:
    """Writes an animation by Pillow; lasting: of each frame, in milliseconds."""
    try:
        next(stills).save(
            path,
            kind,
            save_all=True,
            append_images=stills,
            duration=lasting if len(lasting) > 1 else lasting[0],
            loop=0,
            **options,
        )
    except (ValueError, RuntimeError) as error:
        raise UndustError(f"cannot write {path}: {error}") from error
