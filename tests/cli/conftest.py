"""Runs command lines in this process, in an empty folder."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from PIL import Image

from undust.cli import main


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


class Run(Protocol):
    def __call__(self, *arguments: object, stdin: str = "") -> Result: ...


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty folder that the commands run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def undust(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(*arguments: object, stdin: str = "") -> Result:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        code = main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of eight pictures of 16 px."""
    folder = tmp_path_factory.mktemp("pictures")
    rows: list[str] = []
    for number in range(8):
        level = np.full((16, 16, 3), 30 * number, np.uint8)
        Image.fromarray(level).save(folder / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "text": f"grey {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def first_stage_recipe(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "tiny-stage.toml"
    path.write_text(
        f"""
        kind = "first-stage"
        data = {{folder = "{pictures}", size = 16}}
        autoencoder = {{block_out_channels = [8, 16], norm_num_groups = 4}}
        optimizer = {{learning_rate = 1e-3}}
        run = {{steps = 3, batch = 2, log_every = 1}}
        """
    )
    return path


@pytest.fixture(scope="session")
def diffusion_recipe(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "tiny-diffusion.toml"
    path.write_text(
        f"""
        kind = "diffusion"
        first_stage = "runs/tiny-stage/model"
        previews = ["grey 3"]
        data = {{folder = "{pictures}", size = 16}}
        captions = {{vocabulary = 600, length = 8}}
        optimizer = {{learning_rate = 1e-3}}
        run = {{steps = 3, batch = 2}}
        [unet]
        sample_size = 8
        block_out_channels = [8, 16]
        down_block_types = ["DownBlock2D", "DownBlock2D"]
        up_block_types = ["UpBlock2D", "UpBlock2D"]
        layers_per_block = 1
        cross_attention_dim = 8
        attention_head_dim = 2
        norm_num_groups = 4
        [text_encoder]
        hidden_size = 8
        intermediate_size = 16
        num_hidden_layers = 1
        num_attention_heads = 2
        """
    )
    return path


@pytest.fixture(scope="session")
def video_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model of films."""
    from films import write_film_model

    return write_film_model(tmp_path_factory.mktemp("films") / "tiny-svd")
