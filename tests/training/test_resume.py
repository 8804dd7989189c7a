"""A run that goes on: with another recipe, with other data, and without what it does not need."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from undust.errors import UndustError
from undust.formats.components import load_first_stage, save_component
from undust.networks.autoencoder import Autoencoder
from undust.training import kinds
from undust.training.checkpoints import TrainingCheckpoint
from undust.training.config_keys import tables
from undust.training.diffusion import DiffusionConfig
from undust.training.first_stage import FirstStageConfig
from undust.training.loop import TrainingProgress
from undust.training.resume import MAY_CHANGE, compare_configs, may_change
from undust.training.run import check_run, prepare, train

FirstStage = Callable[..., FirstStageConfig]
Diffusion = Callable[..., DiffusionConfig]
Contents = Callable[[Path], dict[str, bytes]]
SHORT = ("run.steps=2", "run.sample_every=100")


@pytest.fixture
def own_data(data: Path, tmp_path: Path) -> Path:
    """The pictures in a folder that a test can change."""
    return Path(shutil.copytree(data, tmp_path / "own data"))


def go_on(recipe: FirstStageConfig | DiffusionConfig, out: Path) -> list[str]:
    """The notes of a resumed run that is not trained, but for those on the captions' lengths."""
    trainer, notes = prepare(recipe, out, resume=True)
    assert trainer.step == 2
    return [note for note in notes if "captions are cut" not in note]


# Keys that keep every tensor's name and shape are among them: nothing else would tell.
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            ("diffusion.prediction=v_prediction",),
            "diffusion.prediction was epsilon, is v_prediction",
        ),
        (("diffusion.beta_end=0.02",), "diffusion.beta_end was 0.012, is 0.02"),
        (("diffusion.process=linear",), "diffusion.process was scaled-linear, is linear"),
        (("diffusion.process=flow",), "diffusion.process was scaled-linear, is flow"),
        (("diffusion.shift=3.0",), "diffusion.shift was 1.0, is 3.0"),
        (("diffusion.zero_terminal_snr=true",), "diffusion.zero_terminal_snr was False, is True"),
        (("diffusion.weighting=min-snr-5",), "diffusion.weighting was uniform, is min-snr-5"),
        (("unet.attention_head_dim=4",), "unet.attention_head_dim was 2, is 4"),
        (("unet.norm_num_groups=2",), "unet.norm_num_groups was 4, is 2"),
        (("text_encoder.num_attention_heads=4",), "text_encoder.num_attention_heads was 2, is 4"),
        (("seed=1",), "seed was 0, is 1"),
        (("run.batch=5",), "run.batch was 4, is 5"),
        (("data.size=32", "unet.sample_size=16"), "data.size was 16, is 32"),
        (("data.draw_by=picture",), "data.draw_by was concept, is picture"),
        (("captions.drop=0.2",), "captions.drop was 0.1, is 0.2"),
        (('captions.fields=["text"]',), "captions.fields was ['text', 'text_ko'], is ['text']"),
        (("optimizer.kind=muon",), "optimizer.kind was adamw, is muon"),
    ],
)
def test_a_change_that_would_spoil_the_weights_is_refused(
    changes: tuple[str, ...], said: str, diffusion_recipe: Diffusion, tmp_path: Path
):
    """Before the data is read: with no more than the checkpoint."""
    out = tmp_path / "out"
    checkpoint = TrainingCheckpoint(
        2, diffusion_recipe(*SHORT).model_dump(mode="json"), {}, {}, {}, {}
    )
    with pytest.raises(UndustError) as error:
        compare_configs(checkpoint, diffusion_recipe(*SHORT, *changes), out)
    assert said in str(error.value)
    assert str(error.value).startswith(f"{out} cannot be resumed from step 2")


def test_keys_that_an_earlier_version_did_not_have_are_no_change(
    diffusion_recipe: Diffusion, tmp_path: Path
):
    """Also if its recipe is refused today, here for a number of steps that no run can have."""
    now = diffusion_recipe(*SHORT)
    for steps, told in ((2, []), (-1, ["changed since step 2: run.steps -1 → 2"])):
        before = now.model_dump(mode="json")
        del before["captions"]["drop"], before["optimizer"]["betas"], before["data"]["source"]
        before["run"]["steps"] = steps
        before["dust"] = before.pop("diffusion")  # its former name
        checkpoint = TrainingCheckpoint(2, before, {}, {}, {})
        assert compare_configs(checkpoint, now, tmp_path) == told


def test_no_model_predicts_v_with_weights_that_learnt_epsilon(
    diffusion_recipe: Diffusion, tmp_path: Path, contents: Contents
):
    train(diffusion_recipe(*SHORT), tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(UndustError, match=r"diffusion\.prediction was epsilon, is v_prediction"):
        train(
            diffusion_recipe("run.steps=4", "diffusion.prediction=v_prediction"),
            tmp_path / "out",
            resume=True,
        )
    assert contents(tmp_path / "out") == before


def test_what_may_change_goes_on_and_is_told(first_stage_recipe: FirstStage, tmp_path: Path):
    train(first_stage_recipe(*SHORT, "optimizer.learning_rate=0.002"), tmp_path)
    changes = {
        "optimizer.learning_rate=0.001": "optimizer.learning_rate 0.002 → 0.001",
        "optimizer.warm_up=0.5": "optimizer.warm_up 1 → 0.5",
        "optimizer.clip=0.5": "optimizer.clip 1.0 → 0.5",
        "run.ema=0.99": "run.ema 0.9 → 0.99",
        "run.log_every=2": "run.log_every 1 → 2",
        "run.keep=1": "run.keep 2 → 1",
        "loss.kl=1e-5": "loss.kl 1e-06 → 1e-05",
    }
    recipe = first_stage_recipe("run.steps=3", "run.sample_every=7", *changes)
    (line,) = go_on(recipe, tmp_path)
    assert line.startswith("changed since step 2: ")
    told = set(line.removeprefix("changed since step 2: ").split(", "))
    assert told == {*changes.values(), "run.steps 2 → 3", "run.sample_every 100 → 7"}
    assert go_on(first_stage_recipe(*SHORT, "optimizer.learning_rate=0.002"), tmp_path) == []


def test_fewer_steps_than_are_done(first_stage_recipe: FirstStage, tmp_path: Path):
    train(first_stage_recipe(*SHORT), tmp_path)
    changed, done = go_on(first_stage_recipe("run.steps=1", "run.sample_every=100"), tmp_path)
    assert changed == "changed since step 2: run.steps 2 → 1"
    assert done == "run.steps is 1, but 2 are done: nothing is left to train"


def replaced(data: Path) -> None:
    Image.new("RGB", (16, 16)).save(data / "03.png")


def added(data: Path) -> None:
    shutil.copy(data / "03.png", data / "new.png")
    with (data / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "new.png", "text": "one more"}\n')


def removed(data: Path) -> None:
    lines = (data / "metadata.jsonl").read_text("utf-8").splitlines(keepends=True)
    (data / "metadata.jsonl").write_text("".join(lines[1:]), "utf-8")


def reordered(data: Path) -> None:
    lines = (data / "metadata.jsonl").read_text("utf-8").splitlines(keepends=True)
    (data / "metadata.jsonl").write_text("".join([lines[1], lines[0], *lines[2:]]), "utf-8")


def captions_edited(data: Path) -> None:
    text = (data / "metadata.jsonl").read_text("utf-8")
    (data / "metadata.jsonl").write_text(text.replace("sky over", "sky under"), "utf-8")


def captions_swapped(data: Path) -> None:
    text = (data / "metadata.jsonl").read_text("utf-8")
    for one, other in (("plum with", "?"), ("ash under", "plum with"), ("?", "ash under")):
        text = text.replace(one, other)
    (data / "metadata.jsonl").write_text(text, "utf-8")


CHANGES = [replaced, added, removed, reordered, captions_edited, captions_swapped]


@pytest.fixture
def diffusion_run(diffusion_recipe: Diffusion, own_data: Path, tmp_path: Path) -> DiffusionConfig:
    """A run of two steps in out/, on data of its own."""
    recipe = diffusion_recipe(*SHORT, f"data.folder={own_data}")
    train(recipe, tmp_path / "out")
    return recipe


def test_other_data_is_refused(diffusion_run: DiffusionConfig, own_data: Path, tmp_path: Path):
    kept = shutil.copytree(own_data, tmp_path / "kept")
    for change in CHANGES:
        change(own_data)
        with pytest.raises(UndustError, match=r"digest of the data was \w{10}, is \w{10}"):
            prepare(diffusion_run, tmp_path / "out", resume=True)
        shutil.rmtree(own_data)
        shutil.copytree(kept, own_data)
    assert go_on(diffusion_run, tmp_path / "out") == []


def test_the_same_data_elsewhere_is_told(
    diffusion_run: DiffusionConfig, own_data: Path, tmp_path: Path
):
    own_data.rename(tmp_path / "moved")
    data = diffusion_run.data.model_copy(update={"folder": tmp_path / "moved"})
    notes = go_on(diffusion_run.model_copy(update={"data": data}), tmp_path / "out")
    assert notes == [f"changed since step 2: data.folder {own_data} → {tmp_path / 'moved'}"]


def test_a_first_stage_run_has_a_digest_too_but_not_of_captions(
    first_stage_recipe: FirstStage, own_data: Path, tmp_path: Path
):
    recipe = first_stage_recipe(*SHORT, f"data.folder={own_data}")
    train(recipe, tmp_path / "out")
    captions_edited(own_data)
    assert go_on(recipe, tmp_path / "out") == []
    replaced(own_data)
    with pytest.raises(UndustError, match=r"digest of the data was \w{10}, is \w{10}"):
        prepare(recipe, tmp_path / "out", resume=True)


def test_another_first_stage_is_refused(
    diffusion_recipe: Diffusion, first_stage: Path, tmp_path: Path
):
    own = Path(shutil.copytree(first_stage, tmp_path / "own first stage"))
    recipe = diffusion_recipe(*SHORT, f"first_stage={own}")
    train(recipe, tmp_path / "out")
    moved = diffusion_recipe(*SHORT, f"first_stage={first_stage}")
    assert go_on(moved, tmp_path / "out") == [
        f"changed since step 2: first_stage {own} → {first_stage}"
    ]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        save_component(own, Autoencoder(load_first_stage(own).config))
    with pytest.raises(UndustError, match=r"the first stage's weights was \w{10}, is \w{10}"):
        prepare(recipe, tmp_path / "out", resume=True)


def as_earlier_versions_wrote(out: Path) -> None:
    """Takes from the checkpoints what they did not have: the tokenizer and the digests."""
    for path in (out / "checkpoints").glob("step-*"):
        shutil.rmtree(path / "tokenizer")
        state = json.loads((path / "state.json").read_text("utf-8"))
        del state["inputs"]
        state["sha256"] = {k: v for k, v in state["sha256"].items() if "/" not in k}
        (path / "state.json").write_text(json.dumps(state), "utf-8")


def test_a_checkpoint_holds_all_that_a_run_needs(
    diffusion_recipe: Diffusion, tmp_path: Path, contents: Contents
):
    train(diffusion_recipe(*SHORT), tmp_path / "out")
    train(diffusion_recipe("run.steps=4"), tmp_path / "whole")
    shutil.rmtree(tmp_path / "out/model")
    (tmp_path / "out/latents.safetensors").unlink()
    assert train(diffusion_recipe("run.steps=4"), tmp_path / "out", resume=True)
    name = "checkpoints/step-00000004"
    assert contents(tmp_path / "out" / name) == contents(tmp_path / "whole" / name)
    assert contents(tmp_path / "out/model") == contents(tmp_path / "whole/model")


def test_checkpoints_of_earlier_versions_go_on(
    diffusion_recipe: Diffusion, own_data: Path, tmp_path: Path, contents: Contents
):
    folder = f"data.folder={own_data}"
    train(diffusion_recipe(*SHORT, folder), tmp_path / "out")
    train(diffusion_recipe("run.steps=4", folder), tmp_path / "whole")
    as_earlier_versions_wrote(tmp_path / "out")
    (tmp_path / "out/model").rename(tmp_path / "out/.model.old")  # killed between its renames
    for leftover in (".step-00000003.new", ".step-00000002.old"):
        (tmp_path / "out/checkpoints" / leftover).mkdir()
    (note,) = go_on(diffusion_recipe(*SHORT, folder), tmp_path / "out")
    assert "without a digest of the data and the first stage's weights" in note
    assert [path.name for path in (tmp_path / "out/checkpoints").iterdir()] == ["step-00000002"]
    # The latents' file knows the pictures, though not the captions.
    kept = shutil.copytree(own_data, tmp_path / "kept")
    replaced(own_data)
    with pytest.raises(UndustError, match=r"latents\.safetensors was made from other pictures"):
        prepare(diffusion_recipe(*SHORT, folder), tmp_path / "out", resume=True)
    shutil.rmtree(own_data)
    kept.rename(own_data)
    assert train(diffusion_recipe("run.steps=4", folder), tmp_path / "out", resume=True)
    name = "checkpoints/step-00000004"
    assert contents(tmp_path / "out" / name) == contents(tmp_path / "whole" / name)


def test_an_earlier_version_s_tokenizer_that_is_gone_is_named(
    diffusion_recipe: Diffusion, tmp_path: Path
):
    train(diffusion_recipe(*SHORT), tmp_path)
    as_earlier_versions_wrote(tmp_path)
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(UndustError, match=r"kept the tokenizer in \S+/model/tokenizer alone"):
        prepare(diffusion_recipe(*SHORT), tmp_path, resume=True)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_cut_latents_are_made_again(
    length: int, diffusion_recipe: Diffusion, tmp_path: Path, contents: Contents
):
    train(diffusion_recipe(*SHORT), tmp_path)
    path = tmp_path / "latents.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    (note,) = go_on(diffusion_recipe(*SHORT), tmp_path)
    assert note.startswith(f"the latents were made again: {path}")
    assert path.read_bytes() == whole


def test_two_runs_in_one_folder(first_stage_recipe: FirstStage, tmp_path: Path):
    recipe = first_stage_recipe(*SHORT)
    trainer, _ = prepare(recipe, tmp_path / "out")
    me = rf"process {os.getpid()} on {socket.gethostname()} trains in it"
    for again in (True, False):
        with pytest.raises(UndustError, match=me):
            prepare(recipe, tmp_path / "out", resume=again)
    trainer.train(lambda _: None)
    assert not (tmp_path / "out/run.lock").exists()
    assert go_on(recipe, tmp_path / "out") == []


def test_a_refused_start_leaves_the_folder_free(first_stage_recipe: FirstStage, tmp_path: Path):
    with pytest.raises(UndustError, match="nowhere"):
        prepare(first_stage_recipe("data.folder=nowhere"), tmp_path)
    prepare(first_stage_recipe(), tmp_path)


@pytest.mark.parametrize("what", ["removed", "moved", "another in its place"])
def test_a_folder_that_goes_in_mid_run_is_told(
    what: str, first_stage_recipe: FirstStage, tmp_path: Path
):
    out, moved = tmp_path / "out", tmp_path / "moved"

    def lose(progress: TrainingProgress) -> None:
        if progress.step == 3:
            out.rename(moved)
            if what == "removed":
                shutil.rmtree(moved)
            elif what != "moved":
                out.mkdir()

    with pytest.raises(UndustError, match=rf"^{out} was moved or removed while"):
        train(first_stage_recipe("run.sample_every=3"), out, observe=lose)
    assert out.exists() == (what == "another in its place")
    if what == "moved":
        assert train(first_stage_recipe(), moved, resume=True)


def test_a_finished_run_s_model_is_published_again(
    diffusion_recipe: Diffusion, tmp_path: Path, contents: Contents
):
    train(diffusion_recipe(*SHORT), tmp_path)
    before = contents(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    assert train(diffusion_recipe(*SHORT), tmp_path, resume=True)
    assert contents(tmp_path / "model") == before


def test_a_mistyped_folder(first_stage_recipe: FirstStage, tmp_path: Path):
    recipe = first_stage_recipe(*SHORT)
    assert check_run(recipe, tmp_path / "two").endswith("it starts at step 1")
    train(recipe, tmp_path / "two")
    assert check_run(recipe, tmp_path / "two") == ""
    longer = first_stage_recipe("run.steps=100")
    with pytest.raises(UndustError, match=rf"tow does not exist; {tmp_path}/two is at step 2"):
        check_run(longer, tmp_path / "tow")
    # Scripts always say --resume: another run, and a folder that was made for it, start.
    another = check_run(first_stage_recipe("seed=1"), tmp_path / "tow")
    assert another.endswith(f"starts at step 1; the nearest run is {tmp_path / 'two'}")
    (tmp_path / "tow").mkdir()
    assert "starts at step 1" in check_run(longer, tmp_path / "tow")


def test_captions_of_samples_in_any_script(diffusion_recipe: Diffusion, tmp_path: Path):
    recipe = diffusion_recipe("run.steps=1", 'previews=["모래 위 하늘", "a (small)\\nsky"]')
    train(recipe, tmp_path)
    lines = "모래 위 하늘\na (small) sky\n"
    assert (tmp_path / "samples/captions.txt").read_text("utf-8") == lines
    with Image.open(tmp_path / "samples/step-00000001.png") as picture:
        assert picture.info["captions"] == lines


def test_making_latents_is_told(diffusion_recipe: Diffusion, tmp_path: Path):
    told: list[tuple[int, int]] = []
    prepare(diffusion_recipe(), tmp_path, observe=lambda done, total: told.append((done, total)))
    assert told == [(10, 12), (12, 12)]  # two are held out


def test_every_key_is_refused_or_listed_with_a_reason(
    first_stage_recipe: FirstStage, diffusion_recipe: Diffusion, tmp_path: Path
):
    """A new key is refused until it is listed, and the list has no key that does not exist."""
    keys = {
        f"{table}.{key}".lstrip(".")
        for config in kinds.KINDS.values()
        for table, model in tables(config)
        for key in model.model_fields
    }
    assert all(reason.strip() for reason in MAY_CHANGE.values())
    assert MAY_CHANGE.keys() <= keys
    for recipe in (first_stage_recipe(), diffusion_recipe()):
        now = recipe.model_dump(mode="json")
        for table in ("data", "optimizer", "run"):
            for key in now[table]:
                before = {**now, table: {**now[table], key: "another"}}
                checkpoint = TrainingCheckpoint(2, before, {}, {}, {})
                if may_change(f"{table}.{key}"):
                    (line,) = compare_configs(checkpoint, recipe, tmp_path)
                    assert f"{table}.{key} another → " in line
                else:
                    with pytest.raises(UndustError, match=rf"{table}\.{key} was another, is "):
                        compare_configs(checkpoint, recipe, tmp_path)
