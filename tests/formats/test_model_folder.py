"""Whole models to folders and back, for every variant, and folders that are none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from copy import copy as shallow_copy
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from undust.conditioning.clip import clip
from undust.conditioning.tokenizer import Tokenizer
from undust.errors import UndustError
from undust.formats import model_folder
from undust.formats.components import Components
from undust.formats.original.variants import VARIANTS
from undust.pipeline import LatentDiffusion
from variants import build, short_clip

# model_index.json's class and flags, as the published models have them.
FLAGS: dict[str, dict[str, Any]] = {
    "sd1": {"_class_name": "StableDiffusionPipeline"},
    "sd1-inpainting": {"_class_name": "StableDiffusionInpaintPipeline"},
    "sd2": {"_class_name": "StableDiffusionPipeline"},
    "sd2-v": {"_class_name": "StableDiffusionPipeline"},
    "sd2-inpainting": {"_class_name": "StableDiffusionInpaintPipeline"},
    "sdxl": {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
    },
    "sdxl-inpainting": {
        "_class_name": "StableDiffusionXLInpaintPipeline",
        "force_zeros_for_empty_prompt": True,
        "requires_aesthetics_score": False,
    },
    "sdxl-refiner": {
        "_class_name": "StableDiffusionXLImg2ImgPipeline",
        "force_zeros_for_empty_prompt": False,
        "requires_aesthetics_score": True,
        "text_encoder": [None, None],
        "tokenizer": [None, None],
    },
    "x4-upscaler": {"_class_name": "StableDiffusionUpscalePipeline"},
}
Words = Callable[[str], Tokenizer]
Written = Callable[..., tuple[LatentDiffusion, Path]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A variant and the folder that it was written to."""
    root = tmp_path_factory.mktemp("folders")

    @cache
    def write(variant: str, tokenizer: Words = short_clip) -> tuple[LatentDiffusion, Path]:
        model, folder = build(variant, tokenizer), root / f"{variant}-{tokenizer.__name__}"
        model_folder.write(model, folder)
        return model, folder

    return write


def weights(parts: Components) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": tensor
        for part, network in parts.networks.items()
        for name, tensor in network.state_dict().items()
    }


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_comes_back_to_the_bit(written: Written, tmp_path: Path, variant: str):
    model, folder = written(variant)
    read = model_folder.read(folder, torch.float32)
    own, back = weights(model), weights(read)
    assert own.keys() == back.keys()
    assert all(torch.equal(own[name], back[name]) for name in own)
    names = (
        "prediction",
        "force_zeros_for_empty_prompt",
        "extra_channels",
        "num_size_ids",
        "downsampling_factor",
    )
    for name in (*names, "max_noise_level"):
        assert getattr(read, name) == getattr(model, name), name
    for ours, theirs in zip(model.texts, read.texts, strict=True):
        assert ours.name == theirs.name
        assert (ours.penultimate, ours.pooled) == (theirs.penultimate, theirs.pooled)
        for name in ("vocabulary", "merges", "length", "padding"):
            assert getattr(ours.tokenizer, name) == getattr(theirs.tokenizer, name), name
        assert ours.encoder.config == theirs.encoder.config
    assert torch.equal(model.process.sigmas, read.process.sigmas)  # pyright: ignore
    low, other = model.low_res_process, read.low_res_process
    assert (low is None) == (other is None)
    if low is not None and other is not None:
        time = torch.arange(1000)
        assert torch.equal(low.alpha(time), other.alpha(time))
    # What was read is written as the same files, all of them.
    model_folder.write(read, tmp_path / "again")
    assert files(tmp_path / "again") == files(folder)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_index_says_what_the_published_ones_say(written: Written, variant: str):
    _, folder = written(variant)
    index = json.loads((folder / "model_index.json").read_text())
    assert {name: index.get(name) for name in FLAGS[variant]} == FLAGS[variant]
    flags = {"force_zeros_for_empty_prompt", "requires_aesthetics_score"}
    assert flags & index.keys() <= FLAGS[variant].keys()
    folders = {path.name for path in folder.iterdir() if path.is_dir()}
    named = {name for name, entry in index.items() if isinstance(entry, list) and entry[0]}
    assert folders == named


def test_all_variants_are_here():
    assert FLAGS.keys() == VARIANTS.keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_can_be_written_and_read_in_another_precision(
    tiny_model: Path, tmp_path: Path, dtype: torch.dtype
):
    model = model_folder.read(tiny_model, torch.float32)
    model_folder.write(model, tmp_path / "half", dtype)
    kept = weights(model_folder.read(tmp_path / "half", None))
    wide = weights(model_folder.read(tmp_path / "half", torch.float32))
    for name, tensor in weights(model).items():
        assert kept[name].dtype == dtype
        assert torch.equal(kept[name], tensor.to(dtype))
        assert torch.equal(wide[name], tensor.to(dtype).float())
    assert weights(model)["unet.conv_in.weight"].dtype == torch.float32


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def change(path: Path, **fields: object) -> None:
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "-"}))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"controlnet": ["diffusers", "ControlNetModel"]}, "it has a controlnet"),
        ({"image_\x1b": ["a", "b"]}, r"it has a '?image_\\x1b"),
        ({"transformer": ["diffusers", "SD3Transformer2DModel"]}, "it has a transformer"),
        ({"vae": ["diffusers", "Flux"]}, "its vae is Flux, not AutoencoderKL or VQModel or Auto"),
        ({"vae": "-"}, "its vae is none, not AutoencoderKL or VQModel or Auto"),
        ({"unet": [None, None]}, "its unet is none, not UNet2DConditionModel"),
        ({"unet": ["diffusers", "X" * 500]}, "its unet is X+…, not"),
        ({"text_encoder": ["transformers", "T5EncoderModel"]}, "its text_encoder is T5Encoder"),
        ({"text_encoder": "-"}, "its text_encoder is none, not CLIPTextModel or"),
        ({"text_encoder": "-", "tokenizer": "-"}, "its text_encoder is none"),
        ({"tokenizer": "-"}, "its tokenizer is none, not CLIPTokenizer"),
        ({"text_encoder_2": ["transformers", "CLIPTextModel"]}, "its tokenizer_2 is none"),
        ({"../unet": ["diffusers", "UNet2DConditionModel"]}, "is not a component's name"),
        (
            {"text_encoder_2": ["a", "CLIPTextModel"], "tokenizer_2": ["a", "CLIPTokenizer"]},
            r"text_encoder_2.config\.json cannot be read",
        ),
        ({"low_res_scheduler": ["diffusers", "DDPMScheduler"]}, "low_res_scheduler"),
    ],
)
def test_folders_of_other_models(copy: Path, fields: dict[str, object], said: str):
    change(copy / "model_index.json", **fields)
    with pytest.raises(UndustError, match=said) as caught:
        model_folder.read(copy, torch.float32)
    assert "\n" not in str(caught.value)


def test_parts_that_painting_does_without(copy: Path):
    spare = {name: ["transformers", "Anything"] for name in model_folder.IGNORED}
    change(copy / "model_index.json", **spare)
    model_folder.read(copy, torch.float32)


@pytest.mark.parametrize(("said", "zeros"), [(True, True), (False, False), ("-", True)])
def test_whether_nothing_is_zeros(written: Written, tmp_path: Path, said: bool | str, zeros: bool):
    """diffusers' default is True, and only XL has the choice."""
    folder = Path(shutil.copytree(written("sdxl")[1], tmp_path / "xl"))
    change(folder / "model_index.json", force_zeros_for_empty_prompt=said)
    assert model_folder.read(folder, torch.float32).force_zeros_for_empty_prompt is zeros
    plain = Path(shutil.copytree(written("sd1")[1], tmp_path / "sd1"))
    change(plain / "model_index.json", force_zeros_for_empty_prompt=True)
    assert not model_folder.read(plain, torch.float32).force_zeros_for_empty_prompt


def test_the_most_noise_of_an_upscaler(written: Written, tmp_path: Path):
    folder = Path(shutil.copytree(written("x4-upscaler")[1], tmp_path / "x4"))
    assert json.loads((folder / "model_index.json").read_text())["max_noise_level"] == 350
    change(folder / "model_index.json", max_noise_level=100)
    assert model_folder.read(folder, torch.float32).max_noise_level == 100
    change(folder / "model_index.json", max_noise_level="all")
    with pytest.raises(UndustError, match="max_noise_level is 'all', not a number of steps"):
        model_folder.read(folder, torch.float32)


@pytest.mark.parametrize(("variant", "usual"), [("sd1", 7.5), ("sdxl", 5.0), ("x4-upscaler", 9.0)])
def test_a_guidance_scale_of_its_own_is_kept(
    written: Written, tmp_path: Path, variant: str, usual: float
):
    """An entry that diffusers ignores; without it the scale is that of diffusers' pipelines."""
    model, folder = written(variant, clip)
    assert "_guidance_scale" not in json.loads((folder / "model_index.json").read_text())
    assert model_folder.read(folder, torch.float32).guidance == usual
    own = shallow_copy(model)
    own.guidance = 3.5
    model_folder.write(own, tmp_path / "own")
    assert model_folder.read(tmp_path / "own", torch.float32).guidance == 3.5
    diffusers.DiffusionPipeline.from_pretrained(tmp_path / "own")
    for value in ("x", -1, True, None):
        change(tmp_path / "own" / "model_index.json", _guidance_scale=value)
        with pytest.raises(UndustError, match=r"_guidance_scale is .*, not a number"):
            model_folder.read(tmp_path / "own", torch.float32)


def test_flags_that_are_none(written: Written, tmp_path: Path):
    folder = Path(shutil.copytree(written("sdxl")[1], tmp_path / "xl"))
    for value in ("false", 1, None, []):
        change(folder / "model_index.json", force_zeros_for_empty_prompt=value)
        with pytest.raises(UndustError, match="force_zeros_for_empty_prompt"):
            model_folder.read(folder, torch.float32)


JSONS = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
]


@pytest.mark.parametrize("name", JSONS)
@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"a": 1}', None])
def test_files_that_are_damaged_or_absent(copy: Path, name: str, content: bytes | None):
    """Each is named in the line that says so."""
    path = copy / name
    path.unlink() if content is None else path.write_bytes(content)
    if (name, content) == ("tokenizer/tokenizer_config.json", b'{"a": 1}'):
        return  # has nothing that cannot be left out
    with pytest.raises(UndustError) as caught:
        model_folder.read(copy, torch.float32)
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)


@settings(max_examples=40)
@given(
    st.sampled_from(JSONS),
    st.lists(st.tuples(st.integers(0, 2**14), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_any_damage_is_told_of(
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    changes: list[tuple[int, int]],
):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tiny_model, folder)
    content = bytearray((folder / name).read_bytes())
    for place, byte in changes:
        content[place % len(content)] = byte
    (folder / name).write_bytes(content)
    try:
        model_folder.read(folder, torch.float32)
    except UndustError as error:
        assert "\n" not in str(error)


def test_what_is_no_model_is_left_alone(tiny_model: Path, tmp_path: Path):
    model = model_folder.read(tiny_model, torch.float32)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("mine")
    with pytest.raises(UndustError, match="it exists and is not empty"):
        model_folder.write(model, tmp_path / "notes")
    assert files(tmp_path / "notes") == {"a.txt": b"mine"}
    model_folder.write(model, tmp_path / "new")
    first = files(tmp_path / "new")
    model_folder.write(model, tmp_path / "new")  # in the place of a model
    assert files(tmp_path / "new") == first


def test_a_model_that_cannot_be_written_leaves_the_older_one(copy: Path):
    before = files(copy)
    model = model_folder.read(copy, torch.float32)
    model.unet.conv_in.weight.data[0] = 1e30  # has no room in half precision
    with pytest.raises(UndustError, match=r"conv_in\.weight"):
        model_folder.write(model, copy, torch.float16)
    assert files(copy) == before
    assert sorted(path.name for path in copy.parent.iterdir()) == ["copy"]


def test_the_hash_tells_weights_and_nothing_else(copy: Path, tiny_model: Path):
    found = model_folder.weights_hash(copy)
    assert found == model_folder.weights_hash(tiny_model)
    assert len(found) == 10
    change(copy / "unet/config.json", note=1)
    assert model_folder.weights_hash(copy) == found
    for part in ("vae", "unet", "text_encoder"):
        (path,) = (copy / part).glob("*.safetensors")
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert model_folder.weights_hash(copy) != found
        path.write_bytes(content)
