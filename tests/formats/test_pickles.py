"""What a pickle holds is taken out of it, and what it wants to do does not happen."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from undust.errors import UndustError
from undust.formats import pickles, safetensors_file
from undust.formats.pickles import is_pickle, read, unpack

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.ones(4, dtype=torch.float16)}
FUZZ = settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


class Command:
    """What a pickle of it would run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


class Reduced:
    """What a pickle of it would call, with what."""

    def __init__(self, call: Any, *given: object) -> None:
        self.reduced = call, given

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def saved(content: object, *, old: bool = False) -> bytes:
    file = BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


def squeezed(content: object) -> bytes:
    """As torch writes it, but compressed."""
    return packed_again(content, zipfile.ZIP_DEFLATED, lambda name, held: held)


def cut_short(content: object) -> bytes:
    """As torch writes it, but without half of the first tensor."""
    return packed_again(
        content,
        zipfile.ZIP_STORED,
        lambda name, held: held[: len(held) // 2] if name.endswith("data/0") else held,
    )


def packed_again(content: object, how: int, change: Callable[[str, bytes], bytes]) -> bytes:
    file = BytesIO()
    plain = zipfile.ZipFile(BytesIO(saved(content)))
    with zipfile.ZipFile(file, "w", how) as packed:
        for name in plain.namelist():
            packed.writestr(name, change(name, plain.read(name)))
    return file.getvalue()


def hand_made(parameters: object) -> bytes:
    """A ParameterDict with something else than parameters, beside weights."""
    held = torch.nn.ParameterDict()
    held.__setstate__({"_parameters": parameters})
    return saved({**WEIGHTS, "held": held})


def archive() -> bytes:
    """The layout of torch before 0.1.10."""
    file = BytesIO()
    with tarfile.open(fileobj=file, mode="w") as packed:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(pickle.dumps(0, 2))
            packed.addfile(member, BytesIO(pickle.dumps(0, 2)))
    return file.getvalue()


@pytest.fixture
def write(tmp_path: Path):
    def to(content: bytes, name: str = "a.ckpt") -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return to


def same(path: Path, wanted: dict[str, torch.Tensor]) -> bool:
    found = safetensors_file.load(path)
    return found.keys() == wanted.keys() and all(
        found[name].dtype == wanted[name].dtype and torch.equal(found[name], wanted[name])
        for name in wanted
    )


# The process


def test_tensors_are_taken_out(write, tmp_path):
    shared = torch.arange(12.0)
    weights = {
        **WEIGHTS,
        "whole": shared.reshape(3, 4),
        "row": shared[4:8],
        "turned": shared.reshape(3, 4).T,
        "parameter": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
    }
    path = write(saved({"state_dict": weights, "epoch": 3, "optimizer": {"lr": 1.0}}))
    unpack(path, tmp_path / "out")
    assert same(tmp_path / "out", {name: t.detach() for name, t in weights.items()})
    left = safetensors_file.header(tmp_path / "out").metadata
    assert left == {pickles.LEFT_OUT: "epoch, optimizer"}


@pytest.mark.parametrize("name", ["evil.ckpt", "evil.bin"])
def test_a_command_is_not_run(write, tmp_path, name):
    command = Command(tmp_path / "mark")
    path = write(saved({"w": WEIGHTS["a"], "x": command}) if "ckpt" in name else b"", name)
    if name == "evil.bin":
        path.write_bytes(pickle.dumps(command, 2))
        pickle.loads(path.read_bytes())  # what it does where it is let
        (tmp_path / "mark").unlink()
    with pytest.raises(UndustError, match=r"evil.* it uses (posix|nt)\.system, which .* not"):
        unpack(path, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.usefixtures("quick_reader")
@pytest.mark.parametrize("where", ["a word", "a parameter", "a state", "a number"])
def test_a_command_is_not_run_in_what_stands_in_for_something(write, tmp_path, where):
    command = Command(tmp_path / "mark")
    held, number = torch.nn.ParameterDict(), np.float64(1)
    match where:
        case "a word":
            learnt: object = {"*": command}
        case "a parameter":
            held.__dict__["_parameters"] = {"*": command}
            learnt = held
        case "a state":
            held.__dict__["other"] = command
            learnt = held
        case _:
            learnt = {"*": torch.ones(1, 4), "step": Reduced(number.__reduce__()[0], command)}
    path = write(saved({"string_to_token": {"*": 265}, "string_to_param": learnt}), "evil.pt")
    with pytest.raises(UndustError, match=r"evil\.pt .* it uses (posix|nt)\.system, which .* not"):
        unpack(path, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["evil.pt"]


def test_memory_is_bounded_within_a_stand_in(write, tmp_path):
    wide = torch.zeros(1).expand(2**20, 2**10)  # of one number that is in the file
    path = write(saved({"string_to_param": torch.nn.ParameterDict({"*": wide})}))
    with pytest.raises(UndustError, match="more memory than a checkpoint of its size"):
        unpack(path, tmp_path / "out")
    # Lists of one list twice, 60 deep: 2^60 if they were ever written out.
    many: object = []
    for _ in range(60):
        many = [many, many]
    unpack(write(hand_made({"*": many})), tmp_path / "out")
    assert same(tmp_path / "out", WEIGHTS)


def test_memory_is_bounded(write, tmp_path):
    whole = saved({"a": torch.zeros(7)}, old=True)
    claim = b"\x8a\x06" + (2**40).to_bytes(6, "little")  # of 7 numbers
    assert whole.count(b"K\x07")
    path = write(whole.replace(b"K\x07", claim))
    with pytest.raises(UndustError, match="more memory than a checkpoint of its size"):
        unpack(path, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_reader_that_crashes_is_an_error_like_others(write, tmp_path):
    # Tuples in each other as a key: computing its hash runs out of the stack.
    path = write(b"\x80\x02}K\x01" + b"\x85" * 200_000 + b"K\x01s.")
    with pytest.raises(UndustError, match=r"ended with SIGSEGV|is damaged"):
        unpack(path, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]


def test_time_is_bounded(write, tmp_path):
    with pytest.raises(UndustError, match=r"a\.ckpt cannot be read: reading it took more than 0 s"):
        unpack(write(saved(WEIGHTS)), tmp_path / "out", seconds=0.05)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(UndustError, match="No such file"):
        unpack(tmp_path / "a.ckpt", tmp_path / "out")
    os.mkfifo(tmp_path / "pipe.ckpt")
    with pytest.raises(UndustError, match="is a pipe, not a file"):
        unpack(tmp_path / "pipe.ckpt", tmp_path / "out")


def test_the_reader_is_the_package_that_asks(write, tmp_path):
    """Wherever that lies: here a copy on PYTHONPATH alone, which says something else."""
    place = tmp_path / "a place"
    source = Path(pickles.__file__).parents[1]
    shutil.copytree(source, place / "undust", ignore=shutil.ignore_patterns("models"))
    copied = place / "undust" / "formats" / "pickles.py"
    copied.write_text(copied.read_text("utf-8").replace("holds no tensors", "is bare"), "utf-8")
    code = "import sys; from pathlib import Path; from undust.formats.pickles import unpack; "
    code += "unpack(*map(Path, sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, write(saved({})), tmp_path / "out"],
        env={**os.environ, "PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "it is bare; found nothing" in done.stderr


def test_why_the_reader_cannot_start_is_said(write, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UndustError, match=r"ended with 1 \(ModuleNotFoundError: No module named"):
        unpack(write(saved(WEIGHTS)), tmp_path / "out")


@pytest.mark.usefixtures("quick_reader")
def test_a_shape_that_no_weights_have(write, tmp_path):
    path = write(saved({"a": torch.ones((1,) * 71)}))
    with pytest.raises(UndustError, match=rf"{path} cannot be read: a has a shape of"):
        unpack(path, tmp_path / "out")


# The reader


@pytest.mark.parametrize("old", [False, True])
def test_both_of_torchs_formats_are_read(write, old):
    found, left = read(write(saved({"state_dict": {"state_dict": WEIGHTS}, "x": 1}, old=old)))
    assert all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)
    assert (found.keys(), left) == (WEIGHTS.keys(), ["x"])


def test_what_was_packed_again_is_the_same(write, tmp_path):
    """By programs that compress zip files: torch would map the compressed bytes as numbers."""
    found, _ = read(write(squeezed({**WEIGHTS, "view": WEIGHTS["a"][1:]})))
    assert all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)
    assert torch.equal(found["view"], WEIGHTS["a"][1:])
    bomb = write(squeezed({"a": torch.zeros(2**30, dtype=torch.uint8)}))
    assert bomb.stat().st_size < 2**21
    with pytest.raises(UndustError, match="more memory than a checkpoint of its size"):
        unpack(bomb, tmp_path / "out")


def test_what_the_original_trainings_left_is_passed_over(write, monkeypatch):
    module = type(os)("pytorch_lightning.callbacks.model_checkpoint")
    kind = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = kind
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(__import__("sys").modules, name, module)
    state = kind()
    state.best = 3
    path = write(saved({"state_dict": WEIGHTS, "callbacks": {kind: {"best": 1}, "object": state}}))
    found, left = read(path)
    assert (found.keys(), left) == (WEIGHTS.keys(), ["callbacks"])


@pytest.mark.parametrize(
    ("kind", "old"), [(dict, False), (dict, True), (torch.nn.ParameterDict, False)]
)
def test_a_learnt_word_is_its_vectors(write, kind, old):
    learnt = kind({"*": torch.nn.Parameter(torch.arange(8.0).reshape(2, 4))})
    word = {"string_to_token": {"*": 265}, "string_to_param": learnt, "name": "cat", "step": 500}
    found, left = read(write(saved(word, old=old), "cat.pt"))
    assert found.keys() == {"emb_params"}
    assert torch.equal(found["emb_params"], torch.arange(8.0).reshape(2, 4))
    assert sorted(left) == ["name", "step", "string_to_token"]
    two = {"string_to_param": kind({"a": torch.ones(1, 4), "b": torch.zeros(1, 4)})}
    assert read(write(saved(two, old=old)))[0].keys() == {"a", "b"}


def test_what_stands_in_for_something_is_left_out(write):
    state: dict[str, object] = {}
    state["_parameters"] = state
    held = torch.nn.ParameterDict({"a": torch.ones(2)})
    found, left = read(write(saved({**WEIGHTS, "held": held})))
    assert (found.keys(), left) == (WEIGHTS.keys(), ["held"])
    whole = {
        **WEIGHTS,
        "loss": np.float64(0.25),
        "steps": [np.int64(3), np.bool_(True)],
        "random": np.arange(3),
    }
    newer = saved(whole, old=True)
    assert newer.count(b"numpy._core.multiarray\n") == 2  # as numpy 2 writes it
    for content in (newer, newer.replace(b"numpy._core.", b"numpy.core.")):
        found, left = read(write(content))
        assert (found.keys(), left) == (WEIGHTS.keys(), ["loss", "steps", "random"])
    for parameters in (state, [state], 3, None):
        found, left = read(write(hand_made(parameters)))
        assert (found.keys(), left) == (WEIGHTS.keys(), ["held"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged or no checkpoint"),
        (b"PK\x03\x04", "damaged or no checkpoint"),
        (b"<html>", "damaged or no checkpoint"),
        (saved(WEIGHTS)[:-300], "damaged or no checkpoint"),
        (cut_short(WEIGHTS), "it is damaged: a tensor of 24 bytes is not whole in it"),
        (archive(), r"damaged or no checkpoint \(Cannot use .*legacy \.tar"),
        (saved([1, 2]), "it holds a list, not tensors with names"),
        (saved(torch.ones(2)), "it holds a Tensor, not"),
        (saved({"a": 1, "b": 2}), "it holds no tensors; found a, b"),
        (saved({}), "it holds no tensors; found nothing"),
        (saved({"a": torch.eye(3).to_sparse()}), "its a is sparse, quantized or"),
        (saved({"a": torch.empty(3, device="meta")}), "its a is sparse, quantized or has no"),
        (saved({1: torch.ones(2)}), "it holds no tensors; found 1"),
        (
            saved({"held": torch.nn.ParameterDict()}, old=True),
            r"damaged or no checkpoint \(Only persistent_load of storage is allowed",
        ),
        (saved({"string_to_param": {}, "name": "cat"}), "it holds no tensors; found name"),
        (saved({"string_to_param": [1]}), "its string_to_param is a list, not vectors"),
        (saved({"string_to_param": {"*": 1}}), "no tensors; found emb_params"),
        (pickle.dumps({"a": Path()}, 2), r"damaged or no checkpoint|it uses pathlib"),
    ],
)
def test_what_is_no_checkpoint_is_refused(write, content, reason):
    with pytest.raises(UndustError, match=reason) as caught:
        read(write(content))
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@FUZZ
@given(data=st.data())
def test_any_damage_is_one_line(data, write):
    word = {"string_to_param": torch.nn.ParameterDict({"*": torch.ones(1, 4)}), "step": np.int64(3)}
    content = data.draw(st.sampled_from([WEIGHTS, word]))
    whole = bytearray(saved(content, old=content is WEIGHTS and data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    del whole[data.draw(st.integers(0, len(whole))) :]
    try:
        found, _ = read(write(bytes(whole)))
    except UndustError as error:
        assert "\n" not in str(error)
    else:
        assert found


def test_pickles_are_told_by_name_or_beginning(write, tmp_path):
    assert is_pickle(tmp_path / "absent.ckpt")
    assert is_pickle(write(saved(WEIGHTS), "a.safetensors"))
    assert is_pickle(write(saved(WEIGHTS, old=True), "a"))
    safetensors_file.save(tmp_path / "b", WEIGHTS)
    assert not is_pickle(tmp_path / "b")
