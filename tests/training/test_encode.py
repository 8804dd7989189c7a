"""Encoded data: latents and captions of a recipe, made once and trained on without pictures."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from undust.datasets import encoded
from undust.datasets.encoded import EncodedData
from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.training import caches, caption_encodings, kinds
from undust.training.diffusion import DiffusionConfig
from undust.training.encode import encode
from undust.training.run import train

Recipe = Callable[..., DiffusionConfig]
Contents = Callable[[Path], dict[str, bytes]]
VIEWS = ["data.flip=true", "data.crops=2"]


def nothing(_done: int, _all: int) -> None:
    pass


@pytest.fixture
def shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a few views and captions each."""
    monkeypatch.setattr(caches, "SHARD", 4)
    monkeypatch.setattr(caches, "ENCODE_BATCH", 2)
    monkeypatch.setattr(caption_encodings, "SHARD", 5)


@pytest.fixture
def finished(diffusion_recipe: Recipe, tmp_path: Path) -> DiffusionConfig:
    """The tiny recipe with the finished text encoder of a model, on a copy of the pictures."""
    diffusion_recipe().task(tmp_path / "old", None, nothing).publish(tmp_path / "old/model")
    recipe = diffusion_recipe(*VIEWS, "run.steps=3", "captions.drop=0.3")
    pictures = shutil.copytree(recipe.data.folder, tmp_path / "pictures")
    tree = recipe.model_dump(mode="json", exclude_unset=True)
    del tree["text_encoder"], tree["captions"]["vocabulary"]
    tree["data"]["folder"] = str(pictures)
    tree["text_encoder_from"] = str(tmp_path / "old/model")
    config = kinds.parse(tree, "here")
    assert isinstance(config, DiffusionConfig)
    return config


def on(config: DiffusionConfig, folder: Path, *changes: tuple[str, object]) -> DiffusionConfig:
    data = config.data.model_copy(update={"folder": folder, **dict(changes)})
    return config.model_copy(update={"data": data})


@pytest.mark.usefixtures("shards")
def test_a_run_on_encoded_data_is_that_of_the_pictures(
    finished: DiffusionConfig,
    tmp_path: Path,
    contents: Contents,
    monkeypatch: pytest.MonkeyPatch,
):
    """To the bit, without pictures, and no caption is encoded again."""
    made = encode(finished, tmp_path / "encoded", nothing, nothing)
    assert train(finished, tmp_path / "one")
    shutil.rmtree(finished.data.folder)
    assert (made.pictures, made.captions) == (12, 2 * 12 + 1)

    def encodes(*_: object) -> None:
        raise AssertionError("a caption was encoded")

    monkeypatch.setattr(caption_encodings, "joined", encodes)
    assert train(on(finished, tmp_path / "encoded"), tmp_path / "two")
    assert contents(tmp_path / "one/model") == contents(tmp_path / "two/model")
    assert not [*(tmp_path / "two").glob("*latents*")]
    more = on(finished, tmp_path / "encoded")
    more = more.model_copy(update={"run": more.run.model_copy(update={"steps": 4})})
    assert train(more, tmp_path / "one", resume=True)  # begun on the pictures


@pytest.mark.usefixtures("shards")
def test_it_continues_where_it_was_stopped(
    finished: DiffusionConfig, tmp_path: Path, contents: Contents
):
    """Stopped in the middle of the pictures, then of the captions; the same files in the end."""
    encode(finished, tmp_path / "whole", nothing, nothing)
    out = tmp_path / "stopped"

    def stop(done: int, _: int) -> None:
        if done > 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(finished, out, stop, nothing)
    first = sorted(out.glob("latents-*"))
    assert len(first) == 2
    times = [path.stat().st_mtime_ns for path in first]
    with pytest.raises(UndustError, match="holds neither"):
        train(on(finished, out), tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        encode(finished, out, nothing, stop)
    encode(finished, out, nothing, nothing)
    assert [path.stat().st_mtime_ns for path in first] == times
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.usefixtures("shards")
@pytest.mark.parametrize("name", ["latents-00001", "captions-00001"])
def test_a_damaged_file_is_told_and_made_again(
    name: str, finished: DiffusionConfig, tmp_path: Path, contents: Contents
):
    out = tmp_path / "encoded"
    encode(finished, out, nothing, nothing)
    whole, path = contents(out), out / f"{name}.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UndustError, match=f"{name}.* cut short.*; undust data encode makes it ag"):
        train(on(finished, out), tmp_path / "run")
    notes = encode(finished, out, nothing, nothing).notes
    assert sum(name in note for note in notes) == 1
    assert contents(out) == whole


KILLED = """
import json, os, signal, sys
from pathlib import Path
from undust.training import caches, kinds
from undust.training.encode import encode
caches.SHARD, caches.ENCODE_BATCH = 4, 2
def kill(done, _):
    if done > 9:
        os.kill(os.getpid(), signal.SIGKILL)
encode(kinds.parse(json.loads(sys.argv[1]), "here"), Path(sys.argv[2]), kill, kill)
"""


@pytest.mark.usefixtures("shards")
def test_it_continues_after_a_kill(finished: DiffusionConfig, tmp_path: Path, contents: Contents):
    """SIGKILL, of a process of its own: its lock and its half-written file are no obstacle."""
    encode(finished, tmp_path / "whole", nothing, nothing)
    out, tree = tmp_path / "killed", finished.model_dump(mode="json", exclude_unset=True)
    command = [sys.executable, "-c", KILLED, json.dumps(tree), str(out)]
    path = str(Path(caches.__file__).parents[2])
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len([*out.glob("latents-*")]) == 2
    assert not (out / encoded.INDEX).exists()
    encode(finished, out, nothing, nothing)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("first-stage", "run.steps=3", "has no latents to encode"),
        ("diffusion", 'maps=[{kind="depth", column="depth"}]', "maps: made from the pictures"),
        ("diffusion", "inpainting={}", "inpainting: made from"),
        ("diffusion", "figures.every=2", "--set figures.every=0"),
    ],
)
def test_recipes_that_need_the_pictures_are_refused_at_once(
    kind: str, change: str, words: str, write_recipe: Callable[[str], Path], tmp_path: Path
):
    config = kinds.read(write_recipe(kind), [change])
    with pytest.raises(UndustError, match=words):
        encode(config, tmp_path / "out", nothing, nothing)
    assert not (tmp_path / "out").exists()


def test_others_are_refused_by_name(finished: DiffusionConfig, tmp_path: Path):
    out = tmp_path / "encoded"
    encode(finished, out, nothing, nothing)
    run = tmp_path / "run"
    for change, words in (
        (("flip", False), "other views"),
        (("held_out", 0.4), "other pictures"),
    ):
        with pytest.raises(UndustError, match=words):
            train(on(finished, out, change), run)
    figures = finished.figures.model_copy(update={"every": 2, "features": "none"})
    with pytest.raises(UndustError, match="latents and no pictures"):
        train(on(finished, out).model_copy(update={"figures": figures}), run)
    own = shutil.copytree(finished.data.folder, tmp_path / "own")
    with pytest.raises(UndustError, match="own has the pictures, which would no longer be read"):
        encode(on(finished, own), own, nothing, nothing)
    assert [*own.glob("encoded.jsonl")] == []
    with pytest.raises(UndustError, match="is encoded data already"):
        encode(on(finished, out), tmp_path / "again", nothing, nothing)
    for pattern, name in (("latents", "first_stage"), ("captions-*", "text_encoders")):
        other = shutil.copytree(out, tmp_path / name)
        [path] = other.glob(f"{pattern}.safetensors")
        head, tensors = safetensors_file.header(path), safetensors_file.load(path)
        metadata = {key: value.replace("0", "1") for key, value in head.metadata.items()}
        copied = {key: torch.clone(tensor) for key, tensor in tensors.items()}
        safetensors_file.save(path, copied, metadata)
        with pytest.raises(UndustError, match=r"with another (first stage|text encoder)"):
            train(on(finished, other), run)
    (out / "held-out-latents.safetensors").unlink()
    with pytest.raises(UndustError, match="held-out-latents"):
        train(on(finished, out), run)


LINES = st.sampled_from(
    [
        '{"undust": "encoded data", "version": 1}',
        '{"captions": {"text": "a"}, "group": "g", "split": "train", "columns": {}, "folder": "",'
        f' "width": 3, "height": 4, "sha256": "{"0" * 64}"}}',
        '{"captions": {"text": 1}}',
        "[[",
        "",
        "null",
    ]
)


@given(
    st.lists(LINES | st.text(max_size=9), max_size=5).map("\n".join).map(str.encode) | st.binary()
)
def test_any_index_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    folder = tmp_path_factory.mktemp("index")
    (folder / encoded.INDEX).write_bytes(content)
    try:
        data = EncodedData(folder)
    except UndustError as error:
        assert "\n" not in str(error)
    else:
        assert all(data.sample(k).size() == (3, 4) for k in range(len(data)))
