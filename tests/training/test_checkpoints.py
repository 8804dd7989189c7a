"""A checkpoint is whole or it is not one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from undust.errors import UndustError
from undust.training import checkpoints
from undust.training.checkpoints import TrainingCheckpoint

FILES = ["weights.safetensors", "average.safetensors", "optimizer.safetensors", "state.json"]


def checkpoint(step: int) -> TrainingCheckpoint:
    chance = torch.Generator().manual_seed(step)
    tensors = [{"w": torch.randn(3, 5, generator=chance)} for _ in range(3)]
    return TrainingCheckpoint(step, {"seed": 7, "name": "고양이"}, *tensors)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of steps 1 and 2."""
    for step in (1, 2):
        checkpoints.save(tmp_path / "checkpoints", checkpoint(step), keep=3)
    return tmp_path / "checkpoints"


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


def test_what_is_saved_is_loaded(folder: Path):
    loaded, refused = checkpoints.newest(folder)
    assert loaded is not None
    assert refused == []
    expected = checkpoint(2)
    assert (loaded.step, loaded.config) == (2, {"seed": 7, "name": "고양이"})
    for part in ("weights", "average", "optimizer"):
        assert torch.equal(getattr(loaded, part)["w"], getattr(expected, part)["w"])


@pytest.mark.parametrize("name", FILES)
def test_cut_at_any_byte_it_is_refused_by_name_and_the_one_before_is_used(folder: Path, name: str):
    file = folder / "step-00000002" / name
    content = file.read_bytes()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        found, refused = checkpoints.newest(folder)
        assert found is not None
        assert found.step == 1, f"cut at {length}"
        assert len(refused) == 1
        assert str(file) in refused[0]


@pytest.mark.parametrize("name", FILES[:3])
def test_one_wrong_bit_is_found(folder: Path, name: str):
    file = folder / "step-00000002" / name
    content = bytearray(file.read_bytes())
    for place in range(len(content)):
        content[place] ^= 1 << place % 8
        file.write_bytes(content)
        with pytest.raises(UndustError, match=name):
            checkpoints.load(file.parent)
        content[place] ^= 1 << place % 8
    file.write_bytes(content)
    assert checkpoints.load(file.parent).step == 2


@pytest.mark.parametrize("name", FILES)
def test_an_absent_file_is_named(folder: Path, name: str):
    (folder / "step-00000002" / name).unlink()
    found, refused = checkpoints.newest(folder)
    assert found is not None
    assert found.step == 1
    assert name in refused[0]


def test_a_checkpoint_in_the_place_of_another_is_refused(folder: Path):
    (folder / "step-00000002").rename(folder / "step-00000009")
    found, refused = checkpoints.newest(folder)
    assert found is not None
    assert found.step == 1
    assert "step-00000009" in refused[0]


def test_none_is_whole(folder: Path):
    for path in folder.glob("*/weights.safetensors"):
        path.write_bytes(b"")
    found, refused = checkpoints.newest(folder)
    assert found is None
    assert ["step-00000002" in refused[0], "step-00000001" in refused[1]] == [True, True]


def test_there_is_none(tmp_path: Path):
    assert checkpoints.newest(tmp_path) == (None, [])


def test_what_a_killed_run_left_behind_is_no_checkpoint(folder: Path):
    shutil.copytree(folder / "step-00000002", folder / ".step-00000003.new")
    shutil.copytree(folder / "step-00000002", folder / "step-00000004.bak")
    found, refused = checkpoints.newest(folder)
    assert found is not None
    assert (found.step, refused) == (2, [])


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_newest_are_kept(tmp_path: Path, keep: int):
    for step in range(8, 13):  # the order is that of numbers, also beyond one digit
        checkpoints.save(tmp_path / "c", checkpoint(step), keep)
    assert steps(tmp_path / "c") == list(range(8, 13))[-keep:]


def test_a_damaged_newer_one_costs_no_whole_one_its_place(folder: Path):
    """Step 2 is damaged, so the run goes on from step 1 and saves more often than before."""
    damaged = folder / "step-00000010"
    (folder / "step-00000002").rename(damaged)
    for step in (3, 4):
        checkpoints.save(folder, checkpoint(step), keep=1)
        assert steps(folder) == [step, 10]
    checkpoints.save(folder, checkpoint(10), keep=1)  # the run comes to the damaged one's step
    found, refused = checkpoints.newest(folder)
    assert found is not None
    assert (found.step, refused, steps(folder)) == (10, [], [10])
