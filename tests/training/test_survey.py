from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from PIL import Image

from undust.errors import UndustError
from undust.training import kinds, recipe_templates
from undust.training.sources import MAX_HELD_OUT
from undust.training.survey import FolderSurvey, recipe_values, survey


def pictures(folder: Path, count: int, side: int = 48) -> Path:
    folder.mkdir(parents=True)
    for k in range(count):
        Image.new("RGB", (side + k, side), (20 * k % 256, 99, 200)).save(folder / f"{k}.png")
    return folder


def test_what_is_found_in_a_folder(tmp_path: Path):
    plain = survey(pictures(tmp_path / "plain", 3))
    assert (plain.pictures, plain.field, plain.captions, plain.side) == (3, "", [], 48)
    classes = tmp_path / "classes"
    for name in ("cats", "dogs"):
        pictures(classes / name, 3)
    found = survey(classes)
    assert (found.field, sorted(set(found.captions))) == ("folder", ["cats", "dogs"])
    (classes / "cats" / "0.txt").write_text("a grey cat")
    found = survey(classes)
    assert (found.field, found.captions) == ("text", ["a grey cat"])
    (tmp_path / "plain" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert survey(tmp_path / "plain").broken == 1


def test_nothing_to_train_on(tmp_path: Path):
    folder = pictures(tmp_path / "held", 1)
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "split": "test"}')
    with pytest.raises(UndustError, match="no training pictures"):
        survey(folder)


@pytest.mark.parametrize(
    ("count", "share"), [(50, 0), (100, 0.1), (20_000, round(MAX_HELD_OUT / 20_000, 4))]
)
def test_validation_takes_no_more_time_for_many_pictures(tmp_path: Path, count: int, share: float):
    assert FolderSurvey(tmp_path, count, "", [], 64, 1e-3, 0).held_out == share


def written(found: FolderSurvey, kind: str) -> kinds.AnyTrainingConfig:
    text = recipe_templates.recipe(kind, **recipe_values(found, kind))
    return kinds.parse(tomllib.loads(text), kind)


def test_a_recipe_suits_a_folder(tmp_path: Path):
    plain = survey(pictures(tmp_path / "plain", 3))
    config = written(plain, "lora")
    assert (config.data.size, config.data.held_out, config.previews) == (48, 0, ("a picture",))
    assert config.prompt == "a picture"
    assert written(plain, "controlnet").captions.fields == ()
    for kind, words in (("text", "has no captions"), ("classes", "has no classes")):
        with pytest.raises(UndustError, match=words):
            recipe_values(plain, kind)
    for name in ("images/a", "images/b", "normals/a", "normals/b"):
        pictures(tmp_path / "more" / name, 40, 70)
    classes = survey(tmp_path / "more")
    config = written(classes, "finetune")
    assert (config.captions.fields, config.previews) == (("folder",), ("a", "b"))
    assert (config.data.size, config.data.held_out) == (64, 0.1)
    assert written(classes, "classes").labels.column == "folder"
    assert written(classes, "depth").maps[0].column == "normals"
    task = written(classes, "depth").complete().task(tmp_path / "run", None, lambda _d, _a: None)
    assert len(task.data.train) + len(task.data.held_out) == 80


def test_a_split_of_the_folder_is_held_out(tmp_path: Path):
    for name in ("train", "validation"):
        pictures(tmp_path / name, 60)
    found = survey(tmp_path)
    assert (found.pictures, found.others, found.held_out, found.validated) == (60, 60, 0, 60)
