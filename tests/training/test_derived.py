"""Sizes that follow from other keys, where a first stage is found, and the rehearsal of a run."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import undust
from undust.cli import main
from undust.errors import UndustError
from undust.formats import convert, standalone_vae
from undust.formats.locate import BUILT_IN
from undust.formats.locks import FileLock, LockedError
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import AutoencoderConfig
from undust.training import kinds
from undust.training.derived import first_stage_at
from undust.training.diffusion import DiffusionConfig
from undust.training.first_stage import FirstStageConfig
from undust.training.run import prepare, train

Diffusion = Callable[..., DiffusionConfig]
FirstStage = Callable[..., FirstStageConfig]
Contents = Callable[[Path], dict[str, bytes]]
# The U-Net of the tiny recipe, without what follows from other keys.
LEFT_OUT = {"sample_size", "cross_attention_dim"}


def without(recipe: DiffusionConfig, left_out: set[str]) -> DiffusionConfig:
    tree = recipe.model_dump(mode="json")
    fields = recipe.unet.model_dump(mode="json", exclude_unset=True)
    tree["unet"] = {key: value for key, value in fields.items() if key not in left_out}
    found = kinds.parse(tree, "here")
    assert isinstance(found, DiffusionConfig)
    return found


def test_the_sizes_of_the_u_net_follow_from_the_data_and_the_first_stage(
    diffusion_recipe: Diffusion, tmp_path: Path
):
    """16 px, halved by a first stage of two levels to 8 × 8 of 4 channels; text of 8."""
    recipe = without(diffusion_recipe("run.steps=1"), LEFT_OUT)
    assert recipe.unet.model_fields_set.isdisjoint({*LEFT_OUT, "in_channels", "out_channels"})
    unet = recipe.complete().unet
    assert (unet.sample_size, unet.in_channels, unet.out_channels) == (8, 4, 4)
    assert unet.cross_attention_dim == 8
    train(recipe, tmp_path / "out")
    model = undust.load(tmp_path / "out/model")
    assert model.size == (16, 16)
    # And it goes on, with these keys and without them.
    assert train(diffusion_recipe("run.steps=2"), tmp_path / "out", resume=True)
    longer = without(diffusion_recipe("run.steps=3"), LEFT_OUT)
    assert train(longer, tmp_path / "out", resume=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("unet.sample_size=4", "unet.sample_size is 4, but data.size is 16 and .* factor 2: .* 8"),
        ("unet.sample_size=[8,4]", r"unet.sample_size is \(8, 4\), but"),
        ("unet.in_channels=3", "unet.in_channels is 3, but .* latents have 4 channels"),
        ("unet.out_channels=8", "unet.out_channels is 8, but .* it has to be 4, or to be left out"),
        ("unet.cross_attention_dim=16", "is 16, but text_encoder.hidden_size is 8: it has to be 8"),
        (
            "text_encoder.vocab_size=700",
            "vocab_size is 700, but captions.vocabulary is 600: it has",
        ),
        ("text_encoder.max_position_embeddings=9", "is 9, but captions.length is 8: it has to be"),
        ("text_encoder.pad_token_id=0", "pad_token_id is 0, but the tokenizer is learnt: it has"),
        ("data.size=15", "data.size is 15, .* not divisible by 2, .*; 16 would be"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(
    change: str, said: str, diffusion_recipe: Diffusion, tmp_path: Path
):
    with pytest.raises(UndustError, match=said):
        prepare(diffusion_recipe(change), tmp_path)
    assert not (tmp_path / "latents.safetensors").exists()


@pytest.mark.parametrize("given", ["unet.sample_size=[8,8]", "unet.cross_attention_dim=[8]"])
def test_sizes_given_in_another_form(given: str, diffusion_recipe: Diffusion):
    assert diffusion_recipe(given).complete().unet.in_channels == 4


# --- where the first stage is -----------------------------------------------------------------


def test_a_first_stage_is_found_by_what_people_give(
    first_stage: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run, whole = tmp_path / "runs/fs", tmp_path / "runs/whole"
    shutil.copytree(first_stage, run / "model")
    shutil.copytree(tiny_model, whole / "model")
    assert first_stage_at(run / "model") == run / "model"
    assert first_stage_at(run) == run / "model"
    assert first_stage_at(tiny_model) == tiny_model / "vae"
    assert first_stage_at(whole) == whole / "model/vae"
    assert first_stage_at(Path("emoji")) == BUILT_IN / "emoji/vae"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert first_stage_at(Path("~/runs/fs")) == run / "model"
    monkeypatch.chdir(tmp_path)
    assert first_stage_at(Path("runs/fs")) == Path("runs/fs/model")


def test_what_is_no_first_stage_is_told_with_what_would_be(
    first_stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/empty").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("no tensors")
    for given, said in (
        (Path("runs/mistyped"), "first_stage: runs/mistyped does not exist"),
        (tmp_path / "none", "first_stage: .*none does not exist"),
        (Path("emojii"), "first_stage: unknown model 'emojii'; did you mean 'emoji'"),
        (Path("runs/empty"), "runs/empty has no autoencoder; expected the folder of one, of a run"),
    ):
        with pytest.raises(UndustError, match=said):
            first_stage_at(given)


def test_a_component_s_file_is_read_with_its_configuration(
    first_stage: Path, diffusion_recipe: Diffusion, tmp_path: Path
):
    (file,) = first_stage.glob("*.safetensors")
    train(diffusion_recipe("run.steps=1"), tmp_path / "out")
    # Its latents are the same, and so is the run.
    again = diffusion_recipe(f"first_stage={file}", "run.steps=2")
    assert train(again, tmp_path / "out", resume=True)


def test_a_file_that_does_not_tell_the_scale_has_a_command_that_makes_a_folder_of_it(
    diffusion_recipe: Diffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """SD 1's first stage and SDXL's have the same tensors, and other scales."""
    monkeypatch.chdir(tmp_path)
    file, own = tmp_path / "my vae.safetensors", published_form(0.13025)
    convert.write_model(own, file, "single-file")
    with pytest.raises(UndustError, match="does not tell its latents' scale") as error:
        diffusion_recipe(f"first_stage={file}").complete()
    command = shlex.split(str(error.value).partition("in its config.json: ")[2])
    assert main(command[1:]) == 0
    config = tmp_path / "my vae/config.json"
    fields = json.loads(config.read_text("utf-8"))
    assert "scaling_factor" in fields
    config.write_text(json.dumps({**fields, "scaling_factor": 0.13025}), "utf-8")
    recipe = diffusion_recipe("first_stage='my vae'").complete()
    assert standalone_vae.empty(recipe.first_stage).config.scaling_factor == 0.13025
    assert torch.equal(standalone_vae.load(recipe.first_stage).last_layer, own.last_layer)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("notes.txt", "first_stage: notes.txt is not a safetensors file"),
        ("whole/unet", "first_stage: whole/unet is a component UNet2DConditionModel, not Auto"),
        ("whole/text_encoder", "first_stage: whole/text_encoder is a component CLIPTextModel, not"),
        ("whole/model_index.json", "first_stage: whole/model_index.json is not a safetensors file"),
    ],
)
def test_files_and_components_of_another_kind(
    name: str,
    said: str,
    tiny_model: Path,
    diffusion_recipe: Diffusion,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    recipe = diffusion_recipe(f"first_stage={name}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("These are no tensors.")
    shutil.copytree(tiny_model, tmp_path / "whole")
    with pytest.raises(UndustError, match=said):
        recipe.complete()


def published_form(scale: float) -> Autoencoder:
    """A first stage with groups of 32 channels, as every single file's has."""
    return Autoencoder(AutoencoderConfig(block_out_channels=(32, 32), scaling_factor=scale))


def test_a_recipe_may_name_the_run(first_stage: Path, diffusion_recipe: Diffusion, tmp_path: Path):
    shutil.copytree(first_stage, tmp_path / "fs/model")
    recipe = diffusion_recipe(f"first_stage={tmp_path / 'fs'}", "run.steps=1")
    train(recipe, tmp_path / "out")
    # Named in another way it is the same first stage.
    again = diffusion_recipe(f"first_stage={tmp_path / 'fs/model'}", "run.steps=2")
    assert train(again, tmp_path / "out", resume=True)


# --- the rehearsal ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["first-stage", "diffusion"])
def test_a_rehearsal_leaves_nothing_behind(
    kind: str,
    first_stage_recipe: FirstStage,
    diffusion_recipe: Diffusion,
    tmp_path: Path,
    contents: Contents,
):
    recipe = (first_stage_recipe if kind == "first-stage" else diffusion_recipe)()
    trainer, _ = prepare(recipe, tmp_path)
    weights = {name: value.detach().clone() for name, value in trainer.parameters.items()}
    average = {name: value.clone() for name, value in trainer.ema.average.items()}
    random, files = torch.random.get_rng_state(), contents(tmp_path)
    trainer.rehearse()
    assert all(torch.equal(weights[name], value) for name, value in trainer.parameters.items())
    assert all(torch.equal(average[name], value) for name, value in trainer.ema.average.items())
    assert all(value.grad is None for value in trainer.parameters.values())
    assert all(module.training for module in trainer.task.modules.modules())
    assert torch.equal(random, torch.random.get_rng_state())
    assert contents(tmp_path) == files
    assert not (tmp_path / "model").exists()
    assert not list(tmp_path.glob(".undust*"))


def test_the_folder_of_a_killed_rehearsal_is_removed(
    first_stage_recipe: FirstStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """While its process lives nobody takes it; afterwards the next start removes it."""
    trainer, _ = prepare(first_stage_recipe(), tmp_path)
    preview, seen = trainer.task.preview, list[Path]()

    def look(*, brief: bool = False) -> Image.Image:
        seen.extend(tmp_path.glob(".undust-*.tmp"))
        with pytest.raises(LockedError):
            FileLock(seen[0] / "lock")
        return preview(brief=brief)

    monkeypatch.setattr(trainer.task, "preview", look)
    trainer.rehearse()
    monkeypatch.undo()
    trainer.train(lambda _: None)
    shutil.copytree(tmp_path / "model", seen[0] / "new")
    (seen[0] / "lock").write_text("process 0 on nowhere\n")
    prepare(first_stage_recipe(), tmp_path, resume=True)
    assert not list(tmp_path.glob(".undust*"))


def test_a_run_is_refused_before_its_first_step_for_what_its_save_would_refuse(
    first_stage_recipe: FirstStage, tmp_path: Path
):
    """The recipe's own check knows this key; `model_copy` goes round it, to the rehearsal."""
    recipe = first_stage_recipe()
    bare = recipe.autoencoder.model_copy(update={"use_quant_conv": False})
    recipe = recipe.model_copy(update={"autoencoder": bare})
    with pytest.raises(UndustError, match="use_quant_conv"):
        prepare(recipe, tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    assert not list(tmp_path.glob(".undust*"))


def test_a_prompt_of_any_length_is_previewed(diffusion_recipe: Diffusion, tmp_path: Path):
    prepare(diffusion_recipe(f"previews=['{'sky (over sand ' * 50}', '']"), tmp_path)
