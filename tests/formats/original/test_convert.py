"""A model written in the other layout is the same to the bit, and diffusers opens its folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor

from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.formats.convert import check_target, open_model, size_in_bytes, write_model
from undust.formats.folder import load_weights
from undust.formats.original import keys
from undust.formats.original.checkpoint import scan_checkpoint, to_original
from undust.formats.original.variants import UNET, VARIANTS
from undust.formats.single_file import variant_of
from undust.networks.text_encoder import TextEncoder

PIPELINES = {
    "sd1": "StableDiffusionPipeline",
    "sd1-inpainting": "StableDiffusionInpaintPipeline",
    "sd2": "StableDiffusionPipeline",
    "sd2-v": "StableDiffusionPipeline",
    "sd2-inpainting": "StableDiffusionInpaintPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sdxl-inpainting": "StableDiffusionXLInpaintPipeline",
    "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline",
    "x4-upscaler": "StableDiffusionUpscalePipeline",
}
FLAGS = {
    "sdxl": {"force_zeros_for_empty_prompt": True},
    "sdxl-inpainting": {"force_zeros_for_empty_prompt": True, "requires_aesthetics_score": False},
    "sdxl-refiner": {"force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True},
}
Tensors = dict[str, Tensor]
Convert = Callable[..., list[str]]


@pytest.fixture(scope="module")
def checkpoint(tiny) -> Callable[[str], Tensors]:
    """The tensors of a tiny model's file, in half precision, that reads CLIP's words."""

    def of(variant: str) -> Tensors:
        parts = dict(tiny(variant).parts)
        for text in VARIANTS[variant].texts:
            config, own = parts[text.folder]
            words = {"vocab_size": 49408, "max_position_embeddings": 77}
            config = config.model_copy(update=words)
            with torch.device("meta"):
                shapes = TextEncoder(config).state_dict()
            own = {
                name: own[name] if own[name].shape == t.shape else torch.randn(t.shape)
                for name, t in shapes.items()
            }
            parts[text.folder] = (config, own)
        tensors = to_original(VARIANTS[variant], parts)
        return {key: tensor.half() for key, tensor in tensors.items()}

    return of


@pytest.fixture
def convert(tmp_path: Path) -> Convert:
    def run(source: Path, target: Path, layout: str, dtype=None, **options) -> list[str]:
        check_target(source, target, layout)
        with open_model(source, tmp_path, **options) as found:
            notes = [*found.notes, *write_model(found.model, target, layout, dtype)]
        assert not list(tmp_path.glob(".undust*"))
        return notes

    return run


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[key].dtype == wanted[key].dtype and torch.equal(found[key], wanted[key])
        for key in wanted
    )


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


@pytest.fixture(scope="module")
def both(checkpoint, tmp_path_factory) -> Path:
    """Stable Diffusion 1 in both layouts, side by side."""
    folder = tmp_path_factory.mktemp("sd1")
    safetensors_file.save(folder / "sd1.safetensors", checkpoint("sd1"))
    with open_model(folder / "sd1.safetensors", folder) as found:
        write_model(found.model, folder / "sd1", "folder")
    return folder


@pytest.fixture
def sd1(both, tmp_path) -> Path:
    """A folder of Stable Diffusion 1, to be changed, beside its file."""
    shutil.copytree(both, tmp_path, dirs_exist_ok=True)
    return tmp_path / "sd1"


# There and back


@pytest.mark.parametrize("variant", VARIANTS)
def test_file_to_folder_to_file_is_the_same_to_the_bit(variant, checkpoint, convert, tmp_path):
    tensors = checkpoint(variant)
    file, folder, back = (tmp_path / name for name in ("a.safetensors", "f", "b.safetensors"))
    safetensors_file.save(file, tensors)
    assert convert(file, folder, "folder") == []
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == PIPELINES[variant]
    flags = {name: index[name] for name in FLAGS.get(variant, {})}
    assert flags == FLAGS.get(variant, {})
    pipeline = getattr(diffusers, PIPELINES[variant]).from_pretrained(folder)
    for part in scan_checkpoint(file).parts:
        ours = load_weights(folder / part)
        theirs = getattr(pipeline, part).half().state_dict()
        assert {key.removeprefix("text_model."): t.shape for key, t in theirs.items()} == {
            key.removeprefix("text_model."): t.shape for key, t in ours.items()
        }
        theirs = {key.removeprefix("text_model."): t for key, t in theirs.items()}
        assert same({key.removeprefix("text_model."): t for key, t in ours.items()}, theirs)
    assert pipeline.scheduler.config.prediction_type == VARIANTS[variant].prediction
    betas = VARIANTS[variant].process().betas
    torch.testing.assert_close(pipeline.scheduler.betas.double(), betas, rtol=1e-6, atol=0)
    if variant == "x4-upscaler":
        betas = VARIANTS[variant].low_res_process().betas
        theirs = pipeline.low_res_scheduler.betas.double()
        torch.testing.assert_close(theirs, betas, rtol=1e-6, atol=0)
    for text, tokens in zip(VARIANTS[variant].texts, ("tokenizer", "tokenizer_2"), strict=False):
        own = getattr(pipeline, tokens) or pipeline.tokenizer_2
        assert own.pad_token == text.padding
        assert own("a cat").input_ids == [49406, 320, 2368, 49407]
    assert convert(folder, back, "single-file") == []
    assert same(safetensors_file.load(back), tensors)
    assert scan_checkpoint(back).variant == VARIANTS[variant]


def test_precision_is_changed_in_both_directions(checkpoint, convert, tmp_path):
    tensors = checkpoint("sd1")
    safetensors_file.save(tmp_path / "a.safetensors", tensors)
    convert(tmp_path / "a.safetensors", tmp_path / "f", "folder", torch.float32)
    convert(tmp_path / "f", tmp_path / "b.safetensors", "single-file", torch.bfloat16)
    found = safetensors_file.load(tmp_path / "b.safetensors")
    assert same(found, {key: t.float().bfloat16() for key, t in tensors.items()})
    convert(tmp_path / "a.safetensors", tmp_path / "c.safetensors", "single-file", torch.bfloat16)
    assert same(safetensors_file.load(tmp_path / "c.safetensors"), found)


def test_every_weight_keeps_its_own_precision(checkpoint, convert, tmp_path):
    tensors = {
        key: tensor if key.startswith(UNET) else tensor.float()
        for key, tensor in checkpoint("sd1").items()
    }
    safetensors_file.save(tmp_path / "a.safetensors", tensors)
    convert(tmp_path / "a.safetensors", tmp_path / "f", "folder")
    convert(tmp_path / "f", tmp_path / "b.safetensors", "single-file")
    assert same(safetensors_file.load(tmp_path / "b.safetensors"), tensors)
    with open_model(tmp_path / "f", tmp_path) as found:
        assert size_in_bytes(found.model) == sum(tensor.nbytes for tensor in tensors.values())


def test_numbers_too_large_for_half_precision_are_refused(checkpoint, convert, tmp_path):
    tensors = {key: tensor.float() for key, tensor in checkpoint("sd1").items()}
    tensors[f"{UNET}out.2.bias"][0] = 7e4
    safetensors_file.save(tmp_path / "a.safetensors", tensors)
    for layout, target in (("folder", "f"), ("single-file", "b.safetensors")):
        with pytest.raises(UndustError, match=r"holds 7e\+04, outside the range of torch.float16"):
            convert(tmp_path / "a.safetensors", tmp_path / target, layout, torch.float16)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_averages_are_taken_and_what_is_left_out_is_said(checkpoint, convert, tmp_path):
    tensors = checkpoint("sd1")
    means = {keys.ema(key): t + 1 for key, t in tensors.items() if key.startswith(UNET)}
    safetensors_file.save(tmp_path / "a.safetensors", {**tensors, **means})
    (note,) = convert(tmp_path / "a.safetensors", tmp_path / "f", "folder", ema=True)
    assert note == f"left out: last weights of the U-Net ({len(means)} tensors)"
    (note,) = convert(tmp_path / "a.safetensors", tmp_path / "g", "folder")
    assert note == f"left out: moving averages of the weights ({len(means)} tensors)"
    name = "conv_in.bias"
    mean, last = (load_weights(tmp_path / at / "unet")[name] for at in "fg")
    assert torch.equal(mean, last + 1)
    with pytest.raises(UndustError, match="has no moving averages"):
        convert(tmp_path / "f", tmp_path / "b.safetensors", "single-file", ema=True)


def test_marks_say_what_the_weights_do_not(checkpoint, convert, tmp_path):
    marked = {**checkpoint("sdxl"), "v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    safetensors_file.save(tmp_path / "a.safetensors", marked)
    assert convert(tmp_path / "a.safetensors", tmp_path / "f", "folder") == [
        "left out: marks (2 tensors)"
    ]
    with open_model(tmp_path / "f", tmp_path) as found:
        assert found.model.prediction == "v_prediction"
        assert found.model.process.ends_in_noise
        assert variant_of(found.model).zero_snr
    convert(tmp_path / "f", tmp_path / "b.safetensors", "single-file")
    assert same(safetensors_file.load(tmp_path / "b.safetensors"), marked)


# A first stage alone


def test_a_first_stage_alone(checkpoint, convert, tiny, tmp_path):
    config, own = tiny("sdxl").parts["vae"]
    tensors = to_original(None, {"vae": (config, own)})
    safetensors_file.save(tmp_path / "vae.safetensors", tensors)
    (note,) = convert(tmp_path / "vae.safetensors", tmp_path / "vae", "folder")
    assert note.startswith(
        "the file of a first stage alone does not store the scale of its latents: 0.18215"
    )
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert same(theirs.state_dict(), own)
    edit(tmp_path / "vae" / "config.json", scaling_factor=0.13025)
    (note,) = convert(tmp_path / "vae", tmp_path / "back.safetensors", "single-file")
    assert note.endswith("the scale of its latents, 0.13025")
    assert same(safetensors_file.load(tmp_path / "back.safetensors"), tensors)
    convert(tmp_path / "vae.safetensors", tmp_path / "vae", "folder", torch.bfloat16)
    assert load_weights(tmp_path / "vae")["quant_conv.bias"].dtype == torch.bfloat16


# Pickles


@pytest.mark.usefixtures("quick_reader")
def test_a_pickled_checkpoint(checkpoint, convert, tmp_path):
    tensors = checkpoint("sd1")
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "a.ckpt")
    notes = convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors", "single-file")
    assert notes == ["left out: epoch"]
    assert same(safetensors_file.load(tmp_path / "b.safetensors"), tensors)
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "a.ckpt").read_bytes()[:100_000])
    with pytest.raises(UndustError, match=r"cut\.ckpt cannot be read: it is damaged"):
        convert(tmp_path / "cut.ckpt", tmp_path / "c.safetensors", "single-file")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("quick_reader")
def test_a_folder_with_a_pickled_part(sd1, convert, tmp_path):
    before = load_weights(sd1 / "vae")
    torch.save(before, sd1 / "vae" / "diffusion_pytorch_model.bin")
    (sd1 / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    convert(sd1, tmp_path / "g", "folder")
    assert same(load_weights(tmp_path / "g" / "vae"), before)
    edit(sd1 / "unet" / "config.json", act_fn="relu")
    with pytest.raises(UndustError, match="unsupported UNetConfig") as caught:
        convert(sd1, tmp_path / "h", "folder")
    assert ".undust" not in str(caught.value)


# What a single file cannot hold


@pytest.mark.parametrize(
    ("part", "changes", "reason"),
    [
        ("unet", {"attention_head_dim": 4}, "attn1.heads is 4: it would be read as 8"),
        ("unet", {"flip_sin_to_cos": False}, "flip_sin_to_cos is False"),
        ("unet", {"norm_eps": 1e-3}, r"eps is 0\.001: it would be read as 1e-05"),
        ("vae", {"scaling_factor": 0.3}, r"scaling_factor is 0\.3: it would be read as 0\.18215"),
        ("text_encoder", {"hidden_act": "gelu"}, "heads is 8: it would be read as 1"),
        ("text_encoder", {"layer_norm_eps": 1e-6}, "eps is 1e-06: it would be read as 1e-05"),
        ("scheduler", {"beta_end": 0.02}, "noise process is not that of Stable"),
        ("scheduler", {"beta_schedule": "linear"}, "noise process is not that of"),
        ("scheduler", {"num_train_timesteps": 500}, "noise process is not that of"),
        ("scheduler", {"prediction_type": "sample"}, "cannot store that the model predicts sample"),
    ],
)
def test_a_folder_that_a_file_could_not_tell(sd1, convert, tmp_path, part, changes, reason):
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    edit(sd1 / part / name, **changes)
    with pytest.raises(UndustError, match=reason) as caught:
        convert(sd1, tmp_path / "b.safetensors", "single-file")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "b.safetensors").exists()


def test_what_changes_nothing_is_let_pass(sd1, convert, tmp_path):
    edit(sd1 / "unet" / "config.json", upcast_attention=True)
    edit(sd1 / "vae" / "config.json", sample_size=64, force_upcast=False)
    edit(sd1 / "text_encoder" / "config.json", projection_dim=512, eos_token_id=2)
    assert convert(sd1, tmp_path / "b.safetensors", "single-file") == []


def test_another_padding_and_another_tokenizer(sd1, convert, tmp_path):
    settings = sd1 / "tokenizer" / "special_tokens_map.json"
    edit(settings, pad_token="!")
    (note,) = convert(sd1, tmp_path / "b.safetensors", "single-file")
    assert note.startswith("not stored: prompts are padded with !")
    vocabulary = json.loads((sd1 / "tokenizer" / "vocab.json").read_text())
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    (sd1 / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(UndustError, match="tokenizer is not CLIP's"):
        convert(sd1, tmp_path / "c.safetensors", "single-file")


def test_a_model_with_words_of_its_own_has_no_file(tiny_model, convert, tmp_path):
    with pytest.raises(UndustError, match="tokenizer is not CLIP's"):
        convert(tiny_model, tmp_path / "b.safetensors", "single-file")
    assert convert(tiny_model, tmp_path / "f", "folder") == []


def test_a_model_of_no_known_family_has_no_file(sd1, tmp_path):
    with open_model(sd1, tmp_path) as found:
        words = tuple(replace(own, penultimate=True) for own in found.model.texts)
        with pytest.raises(UndustError, match=r"single file: .* 4 input channels and 1 text en"):
            variant_of(replace(found.model, texts=words))


# What is never overwritten


def test_only_a_model_is_replaced(sd1, convert, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(UndustError, match="is not a model; it is not replaced"):
        convert(sd1, tmp_path / "notes", "folder")
    (tmp_path / "lora.safetensors").write_bytes(b"mine")
    with pytest.raises(UndustError, match="is not a model; it is not replaced"):
        convert(sd1, tmp_path / "lora.safetensors", "single-file")
    with pytest.raises(UndustError, match="is not a model"):
        convert(sd1, tmp_path / "sd1.safetensors", "folder")
    assert (tmp_path / "lora.safetensors").read_bytes() == b"mine"
    convert(sd1, tmp_path / "sd1.safetensors", "single-file", torch.float32)
    shutil.copytree(sd1, tmp_path / "other")
    convert(sd1, tmp_path / "other", "folder", torch.float32)
    (tmp_path / "empty").mkdir()
    convert(sd1, tmp_path / "empty", "folder")


def test_what_lies_in_each_other_is_refused(sd1, tmp_path):
    shutil.copy(tmp_path / "sd1.safetensors", sd1)
    for source, target, layout in (
        (sd1 / "sd1.safetensors", sd1, "folder"),
        (sd1, sd1, "folder"),
        (sd1, sd1 / "unet.safetensors", "single-file"),
        (tmp_path / "sd1.safetensors", tmp_path / "sd1.safetensors", "single-file"),
    ):
        with pytest.raises(UndustError, match="are the same, or one contains the other"):
            check_target(source, target, layout)


def test_names_that_cannot_be_written(sd1, tmp_path):
    for target, layout, reason in (
        (tmp_path / "b.ckpt", "single-file", r"has to end in \.safetensors"),
        (tmp_path / "sd1.safetensors" / "b", "folder", r"sd1\.safetensors is not a folder"),
        (tmp_path / "b", "zip", "is not a layout; expected folder or single-file"),
    ):
        with pytest.raises(UndustError, match=reason):
            check_target(sd1, target, layout)
