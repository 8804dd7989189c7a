from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from undust.errors import UndustError
from undust.training import starter


def pictures(folder: Path, count: int, side: int = 48) -> Path:
    folder.mkdir(parents=True)
    for k in range(count):
        Image.new("RGB", (side + k, side), (20 * k % 256, 99, 200)).save(folder / f"{k}.png")
    return folder


def test_what_is_found_in_a_folder(tmp_path: Path):
    plain = starter.survey(pictures(tmp_path / "plain", 3))
    assert (plain.pictures, plain.field, plain.captions, plain.side) == (3, "", [], 48)
    classes = tmp_path / "classes"
    for name in ("cats", "dogs"):
        pictures(classes / name, 3)
    found = starter.survey(classes)
    assert (found.field, sorted(set(found.captions))) == ("folder", ["cats", "dogs"])
    (classes / "cats" / "0.txt").write_text("a grey cat")
    found = starter.survey(classes)
    assert (found.field, found.captions) == ("text", ["a grey cat"])
    (tmp_path / "plain" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert starter.survey(tmp_path / "plain").broken == 1


def test_nothing_to_train_on(tmp_path: Path):
    folder = pictures(tmp_path / "held", 1)
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "split": "test"}')
    with pytest.raises(UndustError, match="no training pictures"):
        starter.survey(folder)


@pytest.mark.parametrize(
    ("count", "share"), [(50, 0), (100, 0.1), (20_000, round(starter.MOST_HELD_OUT / 20_000, 4))]
)
def test_validation_takes_no_more_time_for_many_pictures(tmp_path: Path, count: int, share: float):
    found = starter.FolderSurvey(tmp_path, count, "", [], 64, 1e-3, 0)
    assert starter.Starter(found, tmp_path / "run", 600).held_out == share
