"""MP4 films, encoded by PyAV (the extra `video`)."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from undust.errors import UndustError, first_line

CODEC, PIXELS = "libx264", "yuv420p"
# A quality at which H.264 is hard to tell from its source, and one thread, whose result does not
# depend on the machine.
OPTIONS = {"crf": "18", "preset": "medium", "threads": "1"}
BT709, LIMITED = 1, 1  # in H.264's tables of colours, and the range 16 to 235 of brightness
TICKS = 1001  # largest denominator of a frame rate: 30000/1001 is that of NTSC


def package(path: Path) -> Any:
    """PyAV. Raises UndustError, with the film's path, if it is not installed."""
    try:
        return import_module("av")
    except ImportError as error:
        raise UndustError(f"{path} needs PyAV: pip install 'undust[video]'") from error


def write(
    path: Path, frames: Iterable[Image.Image], size: tuple[int, int], fps: float, comment: str
) -> None:
    """Writes RGB images of one size as H.264; the same input always gives the same bytes.

    size: (width, height); an odd side gets one more column or row, a copy of the last, as colours
    are stored for 2×2 pixels. They are those of BT.709, of limited range. The index is at the
    beginning, so that a browser plays the film while it loads. Raises UndustError if it cannot be
    encoded or written.
    """
    av = package(path)
    try:
        container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        try:
            container.metadata["comment"] = comment
            _encode(av, container, frames, size, fps)
        except BaseException:
            with suppress(av.FFmpegError):  # it tries to complete the file
                container.close()
            raise
        container.close()
    except (av.FFmpegError, ValueError) as error:  # ValueError: a PyAV without the codec
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UndustError(f"cannot write {path}: {reason}") from error


def _encode(
    av: Any, container: Any, frames: Iterable[Image.Image], size: tuple[int, int], fps: float
) -> None:
    rate = Fraction(fps).limit_denominator(TICKS)
    stream = container.add_stream(CODEC, rate=rate, options=OPTIONS)
    stream.width, stream.height = (side + side % 2 for side in size)
    stream.pix_fmt = PIXELS
    context = stream.codec_context
    context.color_primaries = context.color_trc = context.colorspace = BT709
    context.color_range = LIMITED
    scaling = import_module("av.video.reformatter")
    how = scaling.Interpolation
    converter = scaling.VideoReformatter()
    for index, frame in enumerate(frames):
        values = np.asarray(frame)  # [H, W, 3]
        sides = [(0, side % 2) for side in values.shape[:2]]
        whole = np.ascontiguousarray(np.pad(values, [*sides, (0, 0)], mode="edge"))
        picture = converter.reformat(
            av.VideoFrame.from_ndarray(whole, format="rgb24"),
            format=PIXELS,
            dst_colorspace=scaling.Colorspace.ITU709,
            dst_color_range=scaling.ColorRange.MPEG,
            interpolation=how.AREA | how.ACCURATE_RND | how.FULL_CHR_H_INP | how.BITEXACT,
        )
        picture.pts = index
        picture.time_base = 1 / rate
        container.mux(stream.encode(picture))
    container.mux(stream.encode(None))
