from __future__ import annotations

import random
from pathlib import Path

from PIL import Image

from undust.report import previews


def noise(side: int) -> Image.Image:
    return Image.frombytes("RGB", (side, side), random.Random(0).randbytes(3 * side * side))


def test_previews_stay_within_their_bytes(tmp_path: Path):
    for step in range(12):
        noise(200).save(tmp_path / f"step-{step:08}.png")
    whole, notes = previews.read(tmp_path, 10**8)
    assert ([each.step for each in whole], notes) == ([*range(12)], [])
    assert whole[0].content == (tmp_path / "step-00000000.png").read_bytes()
    budget = sum(len(each.content) for each in whole) // 3
    less, notes = previews.read(tmp_path, budget)
    assert len(less) == 12
    assert less[-1].content == whole[-1].content  # the newest is shown first
    assert sum(len(each.content) for each in less) <= budget
    assert notes == ["11 of them are smaller or compressed, to limit the size of this page"]


def test_of_too_many_the_first_and_the_newest_stay(tmp_path: Path):
    for step in range(previews.MOST + 50):
        Image.new("RGB", (2, 2)).save(tmp_path / f"step-{step:08}.png")
    shown, notes = previews.read(tmp_path, 10**8)
    assert len(shown) == previews.MOST
    assert (shown[0].step, shown[-1].step) == (0, previews.MOST + 49)
    assert notes == ["100 of 150 previews are on this page"]


def test_a_broken_preview_is_named(tmp_path: Path):
    noise(16).save(tmp_path / "step-00000001.png")
    whole = (tmp_path / "step-00000001.png").read_bytes()
    (tmp_path / "step-00000002.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "step-00000003.png").mkdir()
    shown, notes = previews.read(tmp_path, 10**8)
    assert [each.step for each in shown] == [1]
    assert len(notes) == 2
    assert "step-00000003.png is a folder" in notes[0]
    assert "step-00000002.png" in notes[1]
