"""Video files as films: layouts, decoding, errors."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from undust.datasets import films, image_folder, videos
from undust.datasets.films import Frame, frames_of
from undust.datasets.videos import Video, VideoPlayer
from undust.errors import UndustError
from undust.formats import video_files
from undust.formats.film import write_film
from undust.training.configs import DataConfig
from undust.training.sources import FilmSource, ImageFolderSource

SHADES = [10, 80, 200, 120, 40]
CODECS = {
    "a.mp4": "libx264",
    "a.m4v": "libx264",
    "a.mov": "libx264",
    "a.mkv": "libx264",
    "a.webm": "libvpx-vp9",
}


def still(shade: int) -> Image.Image:
    return Image.new("RGB", (32, 16), (shade, shade, shade))


def video(path: Path, shades: list[int] = SHADES, fps: float = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_film(path, [still(shade) for shade in shades], fps, {})


def encoded(path: Path, pictures: list[np.ndarray], codec: str = "libx264", **fields: Any) -> Path:
    """A video of equal colours in all containers; fields: of the stream, and its rotation."""
    with av.open(str(path), "w", format={".m4v": "mp4"}.get(path.suffix)) as container:
        options = {"crf": "0"} if codec == "libx264" else {"lossless": "1"}
        stream: Any = container.add_stream(codec, rate=Fraction(30000, 1001), options=options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if turn := fields.pop("turn", 0):
            stream.set_display_rotation(turn)
        for name, value in fields.items():
            setattr(stream, name, value)
        for place, values in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(values, format="rgb24")
            frame.pts, frame.time_base = place, Fraction(1001, 30000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=44100)
        silence = np.zeros((1, 1024), np.float32)
        frame: Any = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.rate, frame.pts = 44100, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def frames(folder: Path) -> list[Frame]:
    return frames_of(image_folder.usable(films.scan(folder)))


def shade(frame: Frame) -> int:
    return int(np.array(frame.image())[8, 16, 0])


def near(found: list[int], shades: list[int]) -> bool:
    return len(found) == len(shades) and np.abs(np.subtract(found, shades)).max() <= 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return video(tmp_path_factory.mktemp("tiny") / "a.mp4").read_bytes()


@pytest.mark.parametrize("name", CODECS)
def test_a_video_is_a_film(name: str, tmp_path: Path):
    shown = [np.asarray(still(each)) for each in SHADES]
    encoded(tmp_path / name, shown, CODECS[name])
    found = frames(tmp_path)
    assert near([shade(frame) for frame in found], SHADES)
    assert near([shade(frame) for frame in reversed(found)], SHADES[::-1])
    assert {(f.fps, f.motion, f.size(), f.group) for f in found} == {(30, 127, (32, 16), name)}
    assert found[0].image().mode == "RGBA"
    assert len({frame.content_hash() for frame in found}) == 5
    assert {frame.image().size for frame in found} == {(32, 16)}


def test_all_layouts_of_pictures_are_those_of_videos(tmp_path: Path):
    video(tmp_path / "train/one/A.MP4", [5])
    video(tmp_path / "train/b.mp4")
    video(tmp_path / "validation/c.mp4", [7, 8])
    (tmp_path / "train/b.txt").write_text("a pan")
    told = [(f.film.name, f.split, dict(f.captions)) for f in frames(tmp_path)]
    assert told == [
        *[("b.mp4", "train", {"text": "a pan"})] * 5,
        ("A.MP4", "train", {}),
        *[("c.mp4", "validation", {})] * 2,
    ]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata_names_videos(kind: str, tmp_path: Path):
    video(tmp_path / "in/a.mp4")
    video(tmp_path / "b.mp4")
    row = {
        "file_name": "in/a.mp4",
        "fps": 9,
        "motion": 30,
        "split": "test",
        "concept": "x",
        "text": "a pan",
    }
    lines = [",".join(row), ",".join(map(str, row.values()))]
    text = json.dumps(row) if kind == "jsonl" else "\n".join(lines)
    (tmp_path / f"metadata.{kind}").write_text(text)
    found = frames(tmp_path)
    told = {(f.fps, f.motion, f.split, f.group, f.captions["text"]) for f in found}
    assert (len(found), told) == (5, {(9, 30, "test", "x", "a pan")})
    assert films.scan(tmp_path).unlisted == ["b.mp4"]


def test_videos_and_pictures(tmp_path: Path):
    """Pictures beside videos are frames of one film; none is a map of the other."""
    video(tmp_path / "images/a.mp4")
    for place, each in enumerate((6, 7)):
        (tmp_path / "images/0").mkdir(exist_ok=True)
        still(each).save(tmp_path / f"images/{place}.png")
        video(tmp_path / f"clips/{place}.mp4", [each])
    counts: dict[str, int] = {}
    for frame in frames(tmp_path):
        name = frame.film.relative_to(tmp_path).as_posix()
        counts[name] = counts.get(name, 0) + 1
    assert counts == {"clips/0.mp4": 1, "clips/1.mp4": 1, "images": 2, "images/a.mp4": 5}


def test_videos_in_a_tar(tmp_path: Path, tiny: bytes):
    with tarfile.open(tmp_path / "clips-train-0.tar", "w") as tar:
        parts = {"a.mp4": tiny, "a.txt": b"a pan", "a.json": b'{"fps": 9}', "a.b.mp4": tiny}
        for name, content in parts.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    found = frames(tmp_path / "clips-train-0.tar")
    assert near([shade(frame) for frame in found], 2 * SHADES)
    assert [frame.fps for frame in found] == [*[12] * 5, *[9] * 5]
    assert found[-1].captions == {"text": "a pan"}


@pytest.mark.parametrize(
    ("turn", "size", "corner"),
    [(0, (32, 16), (0, 0)), (90, (16, 32), (0, 31)), (-90, (16, 32), (15, 0))],
)
def test_a_turned_video_is_upright(
    turn: int, size: tuple[int, int], corner: tuple[int, int], tmp_path: Path
):
    """Degrees are anticlockwise: the upper left corner comes to the lower left one."""
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:8, :8] = 255
    encoded(tmp_path / "a.mov", [picture] * 2, turn=turn)
    [first, _] = frames(tmp_path)
    assert first.size() == first.image().size == size
    x, y = corner
    grey = np.array(first.image())[..., 0]
    assert grey[y, x] > 250
    assert grey[31 * (y == 0) if size[1] > 16 else 15, size[0] // 2] < 5


@pytest.mark.parametrize(("aspect", "size"), [((2, 1), (64, 16)), ((1, 2), (16, 16))])
def test_pixels_become_square(aspect: tuple[int, int], size: tuple[int, int], tmp_path: Path):
    picture = np.full((16, 32, 3), 90, np.uint8)
    encoded(tmp_path / "a.mp4", [picture], sample_aspect_ratio=Fraction(*aspect))
    [frame] = frames(tmp_path)
    assert frame.size() == frame.image().size == size


def test_colours_of_no_known_kind_are_those_of_their_size():
    """Without a mark, players take BT.709 from 720 lines on, and BT.601 below."""
    weights = {(64, 32): (0.299, 0.587), (1280, 720): (0.2126, 0.7152)}
    for (width, height), (red, green) in weights.items():
        colour = np.array([200, 30, 60.0])
        luma = red * colour[0] + green * colour[1] + (1 - red - green) * colour[2]
        blue, other = (colour[2] - luma) / (red + green), (colour[0] - luma) / (1 - red)
        y, u, v = 16 + luma * 219 / 255, 128 + blue * 112 / 255, 128 + other * 112 / 255
        planes = np.full((height * 3 // 2, width), round(y), np.uint8)
        planes[height : height * 5 // 4], planes[height * 5 // 4 :] = round(u), round(v)
        made = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        found = video_files.VideoFrame(Path("a.mp4"), made, Fraction(1)).image().getpixel((9, 9))
        assert np.abs(np.subtract(found, (*colour, 255))).max() <= 2


def test_a_long_film_is_read_forwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Three frames are kept; the video is decoded anew only for what is before them."""
    video(tmp_path / "a.mp4", [*range(0, 250, 10)])
    monkeypatch.setattr(videos, "MAX_PIXELS", 3 * 32 * 16)
    opened: list[Path] = []
    decoded = video_files.frames

    def counted(path: Path, *others: Any) -> Any:
        opened.append(path)
        return decoded(path, *others)

    [sample] = films.scan(tmp_path).samples
    assert isinstance(sample, Video)
    assert sample.header.frames == 25
    monkeypatch.setattr(video_files, "frames", counted)
    player = VideoPlayer(sample)
    shades = [
        int(np.array(player.frame(k).image())[8, 16, 0])
        for k in (0, 3, 2, 5, *range(6, 25), 22, 1, 24)
    ]
    assert near(shades, [10 * k for k in (0, 3, 2, 5, *range(6, 25), 22, 1, 24)])
    assert len(opened) == 2  # and again for the frame 1
    player.close()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.webm"])
def test_a_video_that_is_cut_off_is_named(name: str, tmp_path: Path):
    encoded(tmp_path / name, [np.asarray(still(each)) for each in SHADES], CODECS[name])
    content = (tmp_path / name).read_bytes()
    for length in (len(content) - 1, len(content) // 2, 40):
        (tmp_path / name).write_bytes(content[:length])
        with pytest.raises(UndustError, match=name):
            frames(tmp_path)


def too_large(path: Path) -> None:
    encoded(path, [np.zeros((64, 64, 3), np.uint8)])


def playlist(path: Path) -> None:
    video(path.with_name("b.mkv").with_suffix(".mp4"))
    path.write_text("ffconcat version 1.0\nfile b.mp4\n")


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (sound, "is a video without pictures"),
        (lambda path: path.write_text("hello"), "damaged, or none of"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(bytes(1000)), "damaged, or none of"),
        (too_large, "too large: frames of 64x64; 2,000 pixels at most"),
        (playlist, "damaged, or none of"),
    ],
)
def test_what_is_no_video_is_named_or_skipped(
    write: Callable[[Path], object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(video_files, "MAX_PIXELS", 2000)
    write(tmp_path / "bad.mp4")
    video(tmp_path / "good.mp4")
    with pytest.raises(UndustError, match=said) as error:
        FilmSource(DataConfig(source="films", folder=tmp_path, size=16))
    assert "bad.mp4" in str(error.value)
    found = FilmSource(DataConfig(source="films", folder=tmp_path, size=16, on_error="skip"))
    assert {frame.film.name for frame in found.frames} <= {"good.mp4", "b.mp4"}
    assert any("skipped because they cannot be read: 1" in note for note in found.notes)


def test_a_damaged_frame_is_named_or_its_film_skipped(tmp_path: Path, tiny: bytes):
    place = tiny.index(b"mdat") + 4 + 720
    (tmp_path / "a.mp4").write_bytes(tiny[:place] + bytes(300) + tiny[place + 300 :])
    video(tmp_path / "b.mp4")
    found = FilmSource(DataConfig(source="films", folder=tmp_path, size=16, on_error="skip"))
    assert {frame.film.name for frame in found.frames} == {"b.mp4"}
    for _ in range(2):
        with pytest.raises(UndustError, match=r"a\.mp4"):
            films.scan(tmp_path).samples[0].image()


def test_without_pyav_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    video(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    for on_error in ("refuse", "skip"):
        with pytest.raises(UndustError, match=r"a\.mp4 needs PyAV: pip install 'undust\[video\]'"):
            FilmSource(DataConfig(source="films", folder=tmp_path, size=16, on_error=on_error))


def test_a_folder_without_films_says_what_they_are(tmp_path: Path):
    (tmp_path / "readme.md").write_text("x")
    with pytest.raises(UndustError, match=r"pictures nor \.m4v, \.mkv, \.mov, \.mp4, \.webm files"):
        films.scan(tmp_path)


def test_pictures_are_trained_on_as_before(tmp_path: Path):
    video(tmp_path / "a.mp4")
    still(9).save(tmp_path / "b.png")
    (tmp_path / "a.txt").write_text("a pan")
    found = ImageFolderSource(DataConfig(folder=tmp_path, size=16))
    assert [sample.group for sample in found.samples] == ["b.png"]
    assert any("not read as pictures, not used: 1: a.mp4" in note for note in found.notes)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.mp4"}')
    with pytest.raises(UndustError, match=r"a\.mp4 cannot be read as a picture"):
        ImageFolderSource(DataConfig(folder=tmp_path, size=16))


def played(path: Path) -> None:
    """Reads a file as training does: an UndustError of one line, or frames."""
    try:
        [sample] = image_folder.usable(films.scan(path.parent))
        for frame in frames_of([sample]):
            assert frame.image().size > (0, 0)
    except UndustError as error:
        assert "\n" not in str(error)


@settings(max_examples=60, deadline=10_000)
@given(data=st.data())
def test_damaged_bytes_give_frames_or_one_line(
    data: st.DataObject, tiny: bytes, tmp_path_factory: pytest.TempPathFactory
):
    content = bytearray(tiny)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / data.draw(st.sampled_from(["a.mp4", "a.webm"]))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] or content)
    played(path)


@settings(max_examples=60, deadline=10_000)
@given(content=st.binary(max_size=300))
@example(content=b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01")
@example(content=b"\0\0\0\x08mdat\0\0\0\x01moov\0\0\0\0\0\0\0\x10")
@example(content=b"\0\0\0\x01ftyp")
def test_random_bytes_are_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("random") / "a.mkv"
    path.write_bytes(content)
    played(path)
