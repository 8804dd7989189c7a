"""undust convert: models both ways, on the command line."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from undust.formats.original.checkpoint import original
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import AutoencoderConfig

Run = Callable[..., Any]
CONFIG = AutoencoderConfig(block_out_channels=(32, 64))


@pytest.fixture
def first_stage(here: Path) -> dict[str, torch.Tensor]:
    """vae.safetensors, in half precision: its tensors."""
    own = {name: t.half() for name, t in Autoencoder(CONFIG).state_dict().items()}
    tensors = {key: t.contiguous() for key, t in original(None, {"vae": (CONFIG, own)}).items()}
    save_file(tensors, here / "vae.safetensors")
    return tensors


def test_there_and_back(undust: Run, here: Path, first_stage: dict[str, torch.Tensor]):
    there = undust("convert", "vae.safetensors", "vae", "--to", "folder")
    assert (there.code, there.out) == (0, "vae\n")
    assert "MB: writing vae" in there.err
    assert "does not tell its latents' scale" in there.err
    back = undust("convert", "vae", "back.safetensors", "--to", "single-file", "--dtype", "fp32")
    assert back.code == 0
    found = load_file(here / "back.safetensors")
    assert found.keys() == first_stage.keys()
    assert all(torch.equal(found[key], tensor.float()) for key, tensor in first_stage.items())


def test_a_whole_model_in_another_precision(undust: Run, here: Path, tiny_model: Path):
    assert undust("convert", tiny_model, "half", "--to", "folder", "--dtype", "bf16").code == 0
    facts = json.loads(undust("inspect", "half", "--json").out)
    assert (facts["kind"], facts["precision"]) == ("model", "bfloat16")


def test_a_pickle(undust: Run, here: Path, first_stage: dict[str, torch.Tensor]):
    torch.save({"state_dict": first_stage, "epoch": 1}, here / "vae.ckpt")
    done = undust("convert", "vae.ckpt", "new.safetensors", "--to", "single-file")
    assert done.code == 0
    assert "in a process of its own" in done.err
    assert "left out: epoch" in done.err
    found = load_file(here / "new.safetensors")
    assert all(torch.equal(found[key], tensor) for key, tensor in first_stage.items())


def test_a_pickle_that_would_run_something(undust: Run, here: Path):
    class Command:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {here / 'mark'}",)

    (here / "evil.ckpt").write_bytes(pickle.dumps(Command(), 2))
    done = undust("convert", "evil.ckpt", "new.safetensors", "--to", "single-file")
    assert (done.code, done.out) == (2, "")
    assert "it asks for posix.system" in done.err.splitlines()[-1]
    assert [path.name for path in here.iterdir()] == ["evil.ckpt"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("absent", "b", "--to", "folder"), "absent does not exist"),
        (("vae.safetensors", "b"), "--to"),
        (("vae.safetensors", "b", "--to", "zip"), "zip"),
        (("vae.safetensors", "b", "--to", "folder", "--dtype", "fp8"), "fp8"),
        (("vae.safetensors", "b.ckpt", "--to", "single-file"), "ends in .safetensors"),
        (("vae.safetensors", "mine", "--to", "folder"), "it is left as it is"),
        (("vae.safetensors", "b", "--to", "folder", "--ema"), "no moving averages"),
        (("mine", "b", "--to", "folder"), "is not a model folder"),
    ],
)
def test_wrong_ways_are_one_line(undust: Run, here: Path, first_stage: Any, arguments, reason):
    (here / "mine").mkdir()
    (here / "mine" / "a.txt").write_text("mine")
    before = sorted(here.rglob("*"))
    done = undust("convert", *arguments)
    assert (done.code, done.out) == (2, "")
    assert reason in done.err
    assert len(done.err.splitlines()) == 1
    assert sorted(here.rglob("*")) == before
