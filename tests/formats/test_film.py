from __future__ import annotations

import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from faults import FaultyDisk, run_limited
from undust.errors import UndustError
from undust.formats.film import (
    check_film_name,
    check_rate,
    frame_name,
    read_film_recipe,
    write_film,
)
from undust.formats.recipe_png import LIMIT, read_recipe

av = pytest.importorskip("av")

RECIPE: dict[str, Any] = {
    "prompt": "웃는 고양이, smiling\n“quoted” \\ 🐱",
    "seed": 2**63 - 1,
    "guidance": 4.5,
    "frames": 14,
    "fps": 7,
    "init": {"path": "고양이.png", "sizes": [1, 2.5, None, True]},
}
FILES = ("a.webp", "a.gif", "a.mp4")
NAMES = (*FILES, "frames")
# Corners of the cube of colours, and colours inside.
COLOURS = [(r, g, b) for r in (0, 255) for g in (0, 255) for b in (0, 255)]
COLOURS += [(200, 60, 40), (128, 128, 128), (16, 235, 90), (1, 2, 3)]


def gradient(width: int, height: int, shift: int) -> Image.Image:
    """Smooth colours, moved by `shift` pixels."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin((x + shift) / 9), np.cos((y - shift) / 7), np.sin((x + y + shift) / 11)]
    return Image.fromarray((np.stack(waves, -1) * 100 + 128).astype(np.uint8))


def film(count: int = 14, width: int = 64, height: int = 48) -> list[Image.Image]:
    return [gradient(width, height, 2 * index) for index in range(count)]


def values(frames: Sequence[Image.Image]) -> np.ndarray:
    """The frames as [F, H, W, 3]."""
    return np.stack([np.asarray(frame.convert("RGB")) for frame in frames]).astype(float)


def pillow_frames(path: Path) -> tuple[np.ndarray, list[int]]:
    """Frames and their durations in milliseconds."""
    frames, lasting = [], []
    with Image.open(path) as image:
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(image.convert("RGB"))
            lasting.append(image.info.get("duration", 0))
    return values(frames), lasting


def mp4_frames(path: Path) -> np.ndarray:
    """As a player shows them: the colours by the file's own account of them.

    Without exact rounding FFmpeg's conversion to RGB is darker by 0.8 of 255 on average.
    """
    how = av.video.reformatter.Interpolation
    exact = how.BICUBIC | how.ACCURATE_RND | how.FULL_CHR_H_INT
    convert = av.video.reformatter.VideoReformatter().reformat
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
    pictures = [convert(frame, format="rgb24", interpolation=exact) for frame in decoded]
    return np.stack([picture.to_ndarray() for picture in pictures]).astype(float)


def folder_frames(path: Path) -> np.ndarray:
    return values([Image.open(file) for file in sorted(path.iterdir())])


def frames_of(path: Path) -> np.ndarray:
    if path.is_dir():
        return folder_frames(path)
    return mp4_frames(path) if path.suffix == ".mp4" else pillow_frames(path)[0]


def entries(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", NAMES)
def test_a_film_keeps_its_frames_and_its_recipe(tmp_path: Path, name: str):
    frames = film()
    assert write_film(tmp_path / name, frames, 7, RECIPE) == tmp_path / name
    assert read_film_recipe(tmp_path / name) == RECIPE
    found = frames_of(tmp_path / name)
    assert found.shape == (14, 48, 64, 3)
    assert (tmp_path / name).stat().st_mode & 0o444 == 0o444
    difference = np.abs(found - values(frames))
    # H.264 of crf 18 divides coefficients by about 6.3: Y, Cb and Cr deviate by 6.3/√12 = 1.8.
    # Blue = 1.16 Y + 2.11 Cb then has 2.4 times that, 4.4, and a mean error of 0.8 · 4.4. WebP's
    # quality 90 is finer. Of a GIF, 256 colours of its own are better than a grid of 6×6×6, which
    # has a colour for each 255/5 and a mean error of a quarter of that.
    bounds = {"a.webp": 3.5, "a.mp4": 3.5, "a.gif": 255 / 5 / 4, "frames": 0}
    assert difference.mean() <= bounds[name]
    # Dithering and rounding have no preferred side; of a GIF, dithering loses errors at the edges.
    shift = np.abs((found - values(frames)).mean((1, 2)))
    assert shift.max() <= {"a.gif": 2, "frames": 0}.get(name, 0.6)


@pytest.mark.parametrize("name", NAMES)
def test_flat_colours_are_kept(tmp_path: Path, name: str):
    """Exactly in PNGs; Pillow looks up colours of a palette by their upper 6 bits, so within 4.

    In limited range, rounding Y to 1/219 and Cb and Cr to 1/224 changes a component by at most
    (0.5 + 1.86 · 0.5) · 255/219 = 1.7 of 255, and the conversion back by 0.5. The quantisation of
    flat blocks at these qualities is less than a step of each: another 3.4.
    """
    frames = [Image.new("RGB", (32, 32), colour) for colour in COLOURS]
    write_film(tmp_path / name, frames, 7, RECIPE)
    found = frames_of(tmp_path / name)
    assert len(found) == len(COLOURS)
    worst = np.abs(found - values(frames)).max()
    assert worst <= {"a.gif": 4, "frames": 0}.get(name, 1.7 + 0.5 + 3.4)


@pytest.mark.parametrize("name", FILES)
def test_the_same_film_gives_the_same_bytes(tmp_path: Path, name: str):
    frames = film(5)
    contents = set()
    for _ in range(2):
        contents.add(write_film(tmp_path / name, frames, 7, RECIPE).read_bytes())
        for frame in frames:
            frame.info |= {"comment": b"hers", "icc_profile": b"his", "duration": 9, "loop": 3}
    assert len(contents) == 1


@pytest.mark.parametrize(("name", "unit"), [("a.webp", 1), ("a.gif", 10)])
@pytest.mark.parametrize("fps", [0.1, 7, 7.5, 24, 29.97, 50])
def test_frames_last_as_long_as_they_should(tmp_path: Path, name: str, unit: int, fps: float):
    write_film(tmp_path / name, film(15, 16, 16), fps, RECIPE)
    lasting = pillow_frames(tmp_path / name)[1]
    assert len(lasting) == 15
    exact = 1000 / fps * np.arange(1, 16)
    assert np.abs(np.cumsum(lasting) - exact).max() <= unit / 2 + 1e-9
    assert min(lasting) >= 20
    with Image.open(tmp_path / name) as image:
        assert image.info["loop"] == 0


@pytest.mark.parametrize("fps", [0.1, 7, 7.5, 24, 29.97, 30000 / 1001, 60])
def test_another_program_reads_the_mp4(tmp_path: Path, fps: float):
    """FFmpeg's demuxer and decoder, by PyAV."""
    write_film(tmp_path / "a.mp4", film(), fps, RECIPE)
    with av.open(str(tmp_path / "a.mp4")) as container:
        (stream,) = container.streams
        context = stream.codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.width, context.height, stream.frames) == (64, 48, 14)
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)
        assert context.color_range == 1
        rate = Fraction(fps).limit_denominator(1001)
        assert stream.average_rate == rate
        assert stream.duration * stream.time_base == 14 / rate
        assert container.metadata["comment"].startswith("undust:{")
        times = [frame.pts * frame.time_base for frame in container.decode(stream)]
    assert times == [index / rate for index in range(14)]
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (5, 4), (17, 33), (64, 47)])
@pytest.mark.parametrize("count", [1, 2])
def test_any_size_and_a_single_frame(tmp_path: Path, name: str, size: tuple[int, int], count: int):
    frames = film(count, *size)
    write_film(tmp_path / name, frames, 7, RECIPE)
    assert read_film_recipe(tmp_path / name) == RECIPE
    width, height = size
    if name == "a.mp4":
        width, height = width + width % 2, height + height % 2
    found = frames_of(tmp_path / name)
    assert found.shape == (count, height, width, 3)
    if name == "a.mp4":  # the added row and column are copies of the last, but for coding
        expected = np.pad(
            values(frames), [(0, 0), (0, height - size[1]), (0, width - size[0]), (0, 0)], "edge"
        )
        assert np.abs(found - expected).mean() <= 6


def test_every_frame_of_a_folder_has_the_recipe_and_its_number(tmp_path: Path):
    write_film(tmp_path / "frames", film(3), 7, RECIPE)
    assert entries(tmp_path / "frames") == [frame_name(index) for index in range(3)]
    for index in range(3):
        path = tmp_path / "frames" / f"frame-{index:04}.png"
        assert read_recipe(path) == {**RECIPE, "frame": index}
        assert read_film_recipe(path) == RECIPE


@pytest.mark.parametrize("name", FILES)
def test_equal_frames_take_the_same_time(tmp_path: Path, name: str):
    write_film(tmp_path / name, 8 * film(1), 4, RECIPE)
    if name == "a.mp4":
        assert len(mp4_frames(tmp_path / name)) == 8
    else:
        found, lasting = pillow_frames(tmp_path / name)
        assert sum(lasting) == 2000 or len(found) == 1  # a still picture lasts for ever


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "1", "CMYK", "LA"])
def test_frames_of_other_modes_become_rgb(tmp_path: Path, mode: str):
    frames = [frame.convert(mode) for frame in film(2)]
    for name in NAMES:
        write_film(tmp_path / name, frames, 7, RECIPE)
    assert (folder_frames(tmp_path / "frames") == values(frames)).all()


@pytest.mark.parametrize("name", NAMES)
def test_impossible_films_are_refused(tmp_path: Path, name: str):
    two_sizes = [*film(2), *film(1, 32, 32)]
    for frames, fps, recipe, reason in (
        ([], 7, RECIPE, "it has no frames"),
        (two_sizes, 7, RECIPE, "its frames have different sizes, 64x48 and 32x32"),
        *((film(1), fps, RECIPE, "frames per second") for fps in (0, -7, 0.01, 61, 1000, 10**400)),
        *((film(1), fps, RECIPE, "frames per second") for fps in (math.nan, math.inf)),
        (film(1), 7, {"frame": 1}, "has the key 'frame' already"),
        (film(1), 7, {"prompt": object()}, "recipe is not valid JSON"),
        (film(1), 7, {"guidance": math.nan}, "recipe is not valid JSON"),
        (film(1), 7, {"prompt": "\ud800"}, "recipe is not valid JSON"),
        (film(1), 7, {"prompt": LIMIT * "a"}, "bytes, 1,048,576 at most"),
    ):
        with pytest.raises(UndustError, match=reason) as refused:
            write_film(tmp_path / name, frames, fps, recipe)
        assert name in str(refused.value)
    assert entries(tmp_path) == []


def test_what_a_format_cannot_hold_is_refused(tmp_path: Path):
    """The longest sides can be written; the next refused, as are frames without pixels."""
    for name, longest in {"a.mp4": 16_384, "a.webp": 16_383, "a.gif": 65_535}.items():
        for count in (1, 2):
            write_film(tmp_path / name, film(count, longest, 1), 7, RECIPE)
            with pytest.raises(UndustError, match=f"frames of {longest + 1}x1: a side may have 1"):
                write_film(tmp_path / name, film(count, longest + 1, 1), 7, RECIPE)
        (tmp_path / name).unlink()
    for name in NAMES:
        with pytest.raises(UndustError, match="frames of 0x5"):
            write_film(tmp_path / name, [Image.new("RGB", (0, 5))], 7, RECIPE)
    with pytest.raises(UndustError, match=r"a\.gif: it would last 700 s, 655 at most"):
        write_film(tmp_path / "a.gif", 70 * film(1), 0.1, RECIPE)
    assert entries(tmp_path) == []


def test_the_fastest_gif(tmp_path: Path):
    check_rate(tmp_path / "a.gif", 50)
    check_rate(tmp_path / "a.webp", 60)
    with pytest.raises(UndustError, match=r"51 frames per second: 0\.1 to 50 are possible"):
        check_rate(tmp_path / "a.gif", 51)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("letter", ["a", "각"])
def test_the_longest_recipe_comes_back(tmp_path: Path, name: str, letter: str):
    """A MiB as written, where a letter outside ASCII takes 6 bytes."""
    room = LIMIT - len('undust:{"prompt": ""}')
    recipe = {"prompt": letter * (room // (1 if letter == "a" else 6))}
    write_film(tmp_path / name, film(2, 16, 16), 7, recipe)
    assert read_film_recipe(tmp_path / name) == recipe
    with pytest.raises(UndustError, match="1,048,576 at most"):
        write_film(tmp_path / name, film(2, 16, 16), 7, {"prompt": recipe["prompt"] + letter})


@pytest.mark.parametrize("name", ["film.avi", "film.png", "film.webm", "film.jpg", "a. b", "x.mp"])
def test_an_unknown_suffix_is_refused(tmp_path: Path, name: str):
    with pytest.raises(UndustError, match=r"as \.mp4, \.webp or \.gif, or without a suffix"):
        check_film_name(tmp_path / name)
    with pytest.raises(UndustError, match="films are written as"):
        write_film(tmp_path / name, film(1), 7, RECIPE)
    (tmp_path / name).mkdir()  # the name of a folder that exists may be any
    write_film(tmp_path / name, film(1), 7, RECIPE)
    assert read_film_recipe(tmp_path / name) == RECIPE


@pytest.mark.parametrize(
    "name", ["A.MP4", "a.WebP", "a.GIF", "frames/", "고양이 🐱.mp4", "ñ\n%d:.gif"]
)
def test_names(tmp_path: Path, name: str):
    check_film_name(tmp_path / name)
    write_film(tmp_path / name, film(2), 7, RECIPE)
    assert read_film_recipe(tmp_path / name) == RECIPE


def test_a_folder_whose_name_is_not_unicode(tmp_path: Path):
    folder = tmp_path / "caf\udce9"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system has Unicode names alone")
    for name in NAMES:
        write_film(folder / name, film(2), 7, RECIPE)
        assert read_film_recipe(folder / name) == RECIPE


def test_mp4_without_pyav_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_film(tmp_path / "a.mp4", film(2), 7, RECIPE)
    monkeypatch.setitem(sys.modules, "av", None)
    for refused in (
        lambda: check_film_name(tmp_path / "b.mp4"),
        lambda: write_film(tmp_path / "b.mp4", film(2), 7, RECIPE),
    ):
        with pytest.raises(UndustError, match=r"b\.mp4 needs PyAV: pip install 'undust\[video\]'"):
            refused()
    assert read_film_recipe(tmp_path / "a.mp4") == RECIPE  # reading needs no package
    write_film(tmp_path / "a.webp", film(2), 7, RECIPE)
    assert entries(tmp_path) == ["a.mp4", "a.webp"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_replaced_and_a_folder_is_not(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"old")
    write_film(tmp_path / name, film(2), 7, RECIPE)
    assert read_film_recipe(tmp_path / name) == RECIPE
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(UndustError, match="it exists and is not a file"):
        write_film(tmp_path / name, film(2), 7, RECIPE)
    with pytest.raises(UndustError, match=r"the folder .*nowhere does not exist"):
        write_film(tmp_path / "nowhere" / name, film(2), 7, RECIPE)
    assert entries(tmp_path) == [name]


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path):
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "notes.txt").write_text("mine")
    with pytest.raises(UndustError, match="frames: it exists and is not empty"):
        write_film(tmp_path / "frames", film(2), 7, RECIPE)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UndustError, match="there is a file of that name"):
        write_film(tmp_path / "file", film(2), 7, RECIPE)
    assert entries(tmp_path) == ["file", "frames", "frames/notes.txt"]


class Interrupting(Sequence[Image.Image]):
    """Frames; while they are written, Ctrl-C comes at the third."""

    def __init__(self) -> None:
        self.frames, self.passes = film(6), 0

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Image.Image]:
        self.passes += 1
        for index, frame in enumerate(self.frames):
            if (self.passes, index) == (2, 3):
                signal.raise_signal(signal.SIGINT)
            yield frame

    def __getitem__(self, index: Any) -> Any:
        return self.frames[index]


@pytest.mark.parametrize("name", NAMES)
def test_ctrl_c_leaves_nothing(tmp_path: Path, name: str):
    if name in FILES:
        (tmp_path / name).write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_film(tmp_path / name, Interrupting(), 7, RECIPE)
    assert entries(tmp_path) == ([name] if name in FILES else [])
    if name in FILES:
        assert (tmp_path / name).read_bytes() == b"old"


@pytest.mark.parametrize("name", NAMES)
def test_a_film_that_does_not_fit_leaves_nothing(tmp_path: Path, name: str):
    done = run_limited(
        f"""
        from pathlib import Path
        import numpy as np
        from PIL import Image
        from undust.errors import UndustError
        from undust.formats.film import write_film
        noise = np.random.default_rng(0).integers(0, 256, (6, 192, 256, 3), dtype=np.uint8)
        try:
            write_film(Path("{name}"), [Image.fromarray(frame) for frame in noise], 7, {{}})
        except UndustError as error:
            print(error)
        """,
        tmp_path,
    )
    assert done.stdout.startswith(f"cannot write {name}"), done.stderr
    assert "File too large" in done.stdout
    assert done.stdout.count("\n") == 1
    assert entries(tmp_path) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_fault_of_the_disk_at_any_call_leaves_the_whole_film_or_none(tmp_path: Path, name: str):
    disk = FaultyDisk(-1, lasting=False)
    with disk.used():
        write_film(tmp_path / name, film(2), 7, RECIPE)
    for call in range(1, disk.calls + 1):
        folder = tmp_path / str(call)
        folder.mkdir()
        with FaultyDisk(call, lasting=False).used():
            try:
                write_film(folder / name, film(2), 7, RECIPE)
            except UndustError as error:
                assert "Input/output error" in str(error)
        if (folder / name).exists():
            assert read_film_recipe(folder / name) == RECIPE
            assert len(frames_of(folder / name)) == 2


def test_what_is_no_film_is_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_text("a text")
    film(1)[0].save(tmp_path / "plain.gif")
    for name, reason in {
        "absent.mp4": "No such file",
        "empty": r"frame-0000\.png cannot be read: No such file",
        "text.mp4": "is not a PNG, JPEG, WebP, AVIF, TIFF or GIF picture or an MP4 film",
        "plain.gif": "has no undust recipe$",
    }.items():
        with pytest.raises(UndustError, match=reason):
            read_film_recipe(tmp_path / name)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("films")
    return {
        name: write_film(folder / name, film(3, 16, 16), 7, RECIPE).read_bytes() for name in FILES
    }


def cut(content: bytes, at: int, _: bytes) -> bytes:
    return content[:at]


def replaced(content: bytes, at: int, other: bytes) -> bytes:
    return content[:at] + other + content[at + len(other) :]


def inserted(content: bytes, at: int, other: bytes) -> bytes:
    return content[:at] + other + content[at:]


@pytest.mark.parametrize("name", FILES)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    damage=st.sampled_from([cut, replaced, inserted]),
    place=st.floats(0, 1),
    other=st.binary(min_size=1, max_size=12),
)
def test_damaged_films_give_a_recipe_or_an_error(
    tmp_path: Path,
    written: dict[str, bytes],
    name: str,
    damage: Callable[[bytes, int, bytes], bytes],
    place: float,
    other: bytes,
):
    content = written[name]
    (tmp_path / name).write_bytes(damage(content, int(place * len(content)), other))
    try:
        assert isinstance(read_film_recipe(tmp_path / name), dict)
    except UndustError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", FILES)
def test_a_cut_film_gives_the_recipe_or_an_error(
    tmp_path: Path, written: dict[str, bytes], name: str
):
    content = written[name]
    for length in range(len(content)):
        (tmp_path / name).write_bytes(content[:length])
        try:
            found = read_film_recipe(tmp_path / name)
        except UndustError:
            continue
        assert name == "a.mp4"
        assert content[length + 4 : length + 8] in (b"free", b"mdat")  # where its index ends
        assert found == RECIPE
