"""Pictures with ControlNets, LoRAs and learnt words: the latents that diffusers comes to."""

from __future__ import annotations

import copy
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import undust
from undust.adapters import applied_loras
from undust.cli import main
from undust.errors import UndustError
from undust.formats.components import save_component
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import TinyConfig
from undust.networks.tiny import TinyAutoencoder
from undust.pipeline import LatentDiffusion
from variants import WIDTHS, build

SIZE = 64
LIKE_DDIM = {"sampler": "ddim", "schedule": "leading"}
PROMPT = "a cat, oil painting"
PIPELINES = {"sd1": "StableDiffusion", "sd2": "StableDiffusion", "sdxl": "StableDiffusionXL"}


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def folder(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapted") / request.param
    build(request.param).save(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> LatentDiffusion:
    """As it is in the folder, whatever it was asked to wear before."""
    return undust.load(folder)


def pipeline(folder: Path, kind: str = "", **parts: Any) -> Any:
    name = f"{PIPELINES[folder.name]}{kind}Pipeline"
    spare = {} if "XL" in name else {"safety_checker": None}
    pipe = getattr(diffusers, name).from_pretrained(folder, **spare, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(model: LatentDiffusion) -> Tensor:
    return torch.randn(1, *model.latent_shape(SIZE, SIZE), generator=torch.manual_seed(0))


def ours(model: LatentDiffusion, steps: int = 4, **options: Any) -> Tensor:
    asked = {"noise": noise(model), "size": SIZE, "steps": steps, "guidance": 3, **LIKE_DDIM}
    return model.generate(PROMPT, **{**asked, **options})[0].latent[None]


def theirs(pipe: Any, model: LatentDiffusion, steps: int = 4, **options: Any) -> Tensor:
    return pipe(
        PROMPT,
        latents=noise(model),
        height=SIZE,
        width=SIZE,
        num_inference_steps=steps,
        guidance_scale=3.0,
        output_type="latent",
        **options,
    ).images


def apart(a: Tensor, b: Tensor) -> float:
    assert b.isfinite().all()
    return float((a - b).norm() / b.norm())


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def controls(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Path, Any, Path]]:
    """Two ControlNets: their folder, as diffusers has it, and a picture for it."""
    root = tmp_path_factory.mktemp("controls")
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    made: list[tuple[Path, Any, Path]] = []
    for seed in range(2):
        torch.manual_seed(seed)
        network = diffusers.ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=(8, 16, 16)
        )
        for parameter in network.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        network.save_pretrained(root / f"control-{seed}")
        picture(seed).save(root / f"{seed}.png")
        made.append((root / f"control-{seed}", network, root / f"{seed}.png"))
    return made


def test_a_controlnet(folder: Path, model: LatentDiffusion, controls):
    path, network, shown = controls[0]
    pipe = pipeline(folder, "ControlNet", controlnet=network)
    hint = {"image": Image.open(shown), "controlnet_conditioning_scale": 0.7}
    expected = theirs(pipe, model, **hint)
    assert apart(ours(model, controls=[f"{path}={shown}@0.7"]), expected) < 1e-4
    assert apart(ours(model), expected) > 1e-3
    assert torch.equal(ours(model, controls=[f"{path}={shown}@0"]), ours(model))


def test_a_controlnet_that_adds_the_same_everywhere(
    folder: Path, model: LatentDiffusion, controls, tmp_path: Path
):
    """A "shuffle" one, which is shown with the prompt alone."""
    path, _, shown = controls[0]
    path = shutil.copytree(path, tmp_path / "shuffle")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "global_pool_conditions": True}))
    network = diffusers.ControlNetModel.from_pretrained(path)
    pipe = pipeline(folder, "ControlNet", controlnet=network)
    expected = theirs(pipe, model, image=Image.open(shown), controlnet_conditioning_scale=0.7)
    assert apart(ours(model, controls=[f"{path}={shown}@0.7"]), expected) < 1e-4
    assert apart(ours(model), expected) > 1e-3


def test_two_controlnets_each_for_a_while(folder: Path, model: LatentDiffusion, controls):
    pipe = pipeline(folder, "ControlNet", controlnet=[network for _, network, _ in controls])
    expected = theirs(
        pipe,
        model,
        steps=5,
        image=[Image.open(shown) for *_, shown in controls],
        controlnet_conditioning_scale=[0.7, 1.2],
        control_guidance_start=[0.0, 0.4],
        control_guidance_end=[0.6, 1.0],
    )
    (first, _, one), (second, _, other) = controls
    asked = [f"{first}={one}@0.7:0-0.6", f"{second}={other}@1.2:0.4-1"]
    assert apart(ours(model, steps=5, controls=asked), expected) < 1e-4


def test_edges_are_found_for_the_controlnet(model: LatentDiffusion, controls, tmp_path: Path):
    from undust.conditioning.canny import canny_edges
    from undust.pictures import from_image

    path, _, shown = controls[0]
    found = canny_edges(from_image(Image.open(shown), (SIZE, SIZE)).float() / 255)
    Image.fromarray((found * 255).byte().permute(1, 2, 0).numpy()).save(tmp_path / "edges.png")
    drawn = ours(model, controls=[f"{path}={tmp_path / 'edges.png'}"])
    assert torch.equal(ours(model, controls=[f"{path}=canny:{shown}"]), drawn)


def test_a_controlnet_of_another_model_is_refused(tmp_path: Path, controls, model, folder: Path):
    other = build("sd2" if folder.name != "sd2" else "sd1")
    path, _, shown = controls[0]
    with pytest.raises(UndustError, match="ControlNet is for another"):
        other.generate(PROMPT, size=SIZE, steps=1, controls=[f"{path}={shown}"])


@pytest.fixture(scope="module")
def lora(model: LatentDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA for U-Net and text encoders, as diffusers saves it."""
    torch.manual_seed(3)
    tensors: dict[str, Tensor] = {}
    for part, network in model.networks.items():
        for name, module in network.named_modules():
            if part != "vae" and name.endswith(("to_q", "to_v", "q_proj")):
                rows, columns = module.weight.shape
                tensors[f"{part}.{name}.lora_A.weight"] = 0.5 * torch.randn(4, columns)
                tensors[f"{part}.{name}.lora_B.weight"] = 0.5 * torch.randn(rows, 4)
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("merged", [True, False])
def test_a_lora(folder: Path, model: LatentDiffusion, lora: Path, merged: bool):
    if not merged:
        model = undust.load(folder, merge_loras=False)
    plain = ours(model)
    pipe = pipeline(folder)
    pipe.load_lora_weights(lora, adapter_name="style")
    pipe.set_adapters(["style"], [0.8])
    expected = theirs(pipe, model)
    assert apart(ours(model, loras=[f"{lora}:0.8"]), expected) < 1e-4
    assert apart(plain, expected) > 1e-3
    assert torch.equal(ours(model), plain)


def test_pictures_of_different_loras_do_not_disturb_each_other(model: LatentDiffusion, lora: Path):
    """Two runs step by step in turn: each puts on its own before it is asked."""
    asked = {"noise": noise(model), "size": SIZE, "steps": 3, "guidance": 4, **LIKE_DDIM}
    plain, styled = ours(model, 3, guidance=4), ours(model, 3, guidance=4, loras=[str(lora)])
    first = model.steps(PROMPT, **asked)
    second = model.steps(PROMPT, loras=[str(lora)], **asked)
    *_, (last, other) = zip(first, second, strict=True)
    assert torch.equal(last.x, plain)
    assert torch.equal(other.x, styled)


def test_a_learnt_word(folder: Path, model: LatentDiffusion, tmp_path: Path):
    torch.manual_seed(4)
    vectors = {
        "clip_l": torch.randn(2, WIDTHS["CLIP"]),
        "clip_g": torch.randn(2, WIDTHS["OpenCLIP"]),
    }
    if len(model.texts) == 1:
        vectors = {"emb_params": vectors["clip_l" if folder.name == "sd1" else "clip_g"]}
    path = tmp_path / "toy.safetensors"
    save_file(vectors, path)
    pipe = pipeline(folder)
    own = [pipe.tokenizer, getattr(pipe, "tokenizer_2", None)]
    encoders = [pipe.text_encoder, getattr(pipe, "text_encoder_2", None)]
    for tokenizer, encoder, tensor in zip(own, encoders, vectors.values(), strict=False):
        pipe.load_textual_inversion(
            {"emb_params": tensor}, token="<toy>", tokenizer=tokenizer, text_encoder=encoder
        )
    expected = pipe(
        "a <toy> on grass",
        latents=noise(model),
        height=SIZE,
        width=SIZE,
        num_inference_steps=3,
        guidance_scale=3.0,
        output_type="latent",
    ).images
    (got,) = model.generate(
        "a <toy> on grass",
        embeddings=[f"{path}=<toy>"],
        noise=noise(model),
        size=SIZE,
        steps=3,
        guidance=3,
        **LIKE_DDIM,
    )
    assert apart(got.latent[None], expected) < 1e-4
    assert model.recipes("x", embeddings=[str(path)])[0].embeddings[0].word == "toy"


def test_each_word_of_a_file_has_its_name(model: LatentDiffusion, tmp_path: Path):
    torch.manual_seed(5)
    named = list(zip(("clip_l", "clip_g"), model.texts, strict=False))
    learnt = {
        word: {name: torch.randn(2, own.encoder.config.hidden_size) for name, own in named}
        for word in ("<cat>", "<dog>")
    }
    both, dog = tmp_path / "both.safetensors", tmp_path / "dog.safetensors"
    bundle = {f"bundle_emb.{word}.{name}": t for word in learnt for name, t in learnt[word].items()}
    save_file(bundle, both)
    save_file(learnt["<dog>"], dog)

    def painted(*embeddings: str) -> Tensor:
        asked: dict[str, Any] = {"size": SIZE, "steps": 2, "seed": 1, "embeddings": embeddings}
        return model.generate("a <dog> on grass", **asked)[0].latent

    alone = painted(f"{dog}=<dog>")
    assert torch.equal(painted(f"{both}=<dog>"), alone)
    assert torch.equal(painted(f"{both}=<cat>", f"{both}=<dog>"), alone)
    assert not torch.equal(painted(f"{both}=<cat>"), alone)
    with pytest.raises(UndustError, match="has 2 words: <cat>, <dog>, not 'both'"):
        painted(str(both))


def test_a_file_that_changed_is_not_used(model: LatentDiffusion, lora: Path, tmp_path: Path):
    lora = Path(shutil.copy(lora, tmp_path))
    (recipe,) = model.recipes(PROMPT, size=SIZE, steps=1, loras=[str(lora)], seed=1)
    model.rerun(recipe)
    lora.write_bytes(lora.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(UndustError, match="is not the file any more"):
        model.rerun(recipe)


def test_a_lora_is_merged_for_good(
    folder: Path, model: LatentDiffusion, lora: Path, tmp_path: Path
):
    """What `undust convert --lora` writes paints as the model does with the LoRA."""
    styled = ours(model, loras=[f"{lora}:0.8"])
    target = tmp_path / "merged"
    asked = ["convert", str(folder), str(target), "--to", "folder", "--lora", f"{lora}:0.8"]
    assert main(asked) == 0
    assert torch.equal(ours(undust.load(target)), styled)


def test_what_is_saved_is_the_model_with_what_it_wears(
    folder: Path, model: LatentDiffusion, lora: Path, tmp_path: Path
):
    """Whatever was painted last."""
    styled = ours(model, loras=[f"{lora}:0.8"])
    model.save(tmp_path / "bare")
    assert undust.load(tmp_path / "bare").hash == model.hash
    (recipe,) = model.recipes(PROMPT, size=SIZE, loras=[f"{lora}:0.8"])
    model.with_adapters(recipe.loras).save(tmp_path / "merged")
    assert torch.equal(ours(undust.load(tmp_path / "merged")), styled)
    apart = undust.load(folder, merge_loras=False)
    with pytest.raises(UndustError, match="not merged into the weights"):
        apart.with_adapters(recipe.loras).save(tmp_path / "apart")
    assert not (tmp_path / "apart").exists()


def test_a_refiner_wears_what_fits_it(folder: Path, model: LatentDiffusion, lora: Path, tmp_path):
    """A model that refines itself changes nothing, whatever it wears and is shown."""
    vectors = {"clip_l": torch.randn(2, WIDTHS["CLIP"]), "clip_g": torch.randn(2, 64)}
    if len(model.texts) == 1:
        vectors = {"emb_params": vectors["clip_l" if folder.name == "sd1" else "clip_g"]}
    save_file(vectors, tmp_path / "toy.safetensors")
    asked = {"loras": [f"{lora}:0.8"], "embeddings": [f"{tmp_path / 'toy.safetensors'}=cat"]}
    assert apart(ours(model, refiner=f"{folder}@0.5", **asked), ours(model, **asked)) < 1e-6
    if folder.name != "sdxl":
        return
    build("sdxl-refiner").save(tmp_path / "refiner")
    refined = {"refiner": f"{tmp_path / 'refiner'}@0.5", "embeddings": asked["embeddings"]}
    with pytest.warns(RuntimeWarning, match="the LoRAs do not fit refiner"):
        ours(model, **refined, loras=asked["loras"])
    assert not torch.equal(ours(model, **refined), ours(model, refiner=refined["refiner"]))


def test_a_refiner_is_shown_no_controls(folder: Path, model: LatentDiffusion, controls, tmp_path):
    path, _, shown = controls[0]
    build("sdxl-refiner" if folder.name == "sdxl" else folder.name).save(tmp_path / "refiner")
    # Where it takes over it makes no difference whether there was a control until then.
    until = {"controls": [f"{path}={shown}@0.7:0-0.5"], "refiner": f"{tmp_path / 'refiner'}@0.5"}
    whole = {**until, "controls": [f"{path}={shown}@0.7"]}
    assert torch.equal(ours(model, **whole), ours(model, **until))


def test_a_loose_first_stage(folder: Path, model: LatentDiffusion, tmp_path: Path):
    """Another first stage: other pictures of the same latents."""
    other = tmp_path / "vae"
    save_component(other, shaken(model.autoencoder))
    asked: dict[str, Any] = {"size": SIZE, "steps": 1, "seed": 1}
    (plain,) = model.generate(PROMPT, **asked)
    (picture,) = undust.load(folder, vae=other).generate(PROMPT, **asked)
    assert torch.equal(picture.latent, plain.latent)
    assert picture.image.tobytes() != plain.image.tobytes()
    assert picture.recipe.model_hash == plain.recipe.model_hash
    assert plain.recipe.vae is None
    assert picture.recipe.vae is not None
    with pytest.raises(UndustError, match=r"made with another first stage: .*, not its own"):
        model.rerun(picture.recipe)
    with pytest.raises(UndustError, match="of other latents than the model's"):
        undust.load("emoji", vae=other)


def test_a_tiny_first_stage_decodes(folder: Path, model: LatentDiffusion, tmp_path: Path):
    """As in diffusers: it takes scaled latents, whatever the scale of the model's own."""
    torch.manual_seed(0)
    config = TinyConfig(
        **dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (8, 8, 8)),
        **dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), (1, 1, 1)),
    )
    save_component(tmp_path / "tiny", TinyAutoencoder(config))
    with_tiny = undust.load(folder, vae=tmp_path / "tiny")
    latents = ours(with_tiny)
    assert torch.equal(latents, ours(model))
    theirs = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "tiny")
    with torch.no_grad():
        expected = theirs.decode(latents / theirs.config.scaling_factor).sample
    torch.testing.assert_close(with_tiny.decode(latents), expected, atol=1e-5, rtol=1e-5)


def shaken(network: Autoencoder) -> Autoencoder:
    network = copy.deepcopy(network)
    torch.manual_seed(5)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def test_threads_with_different_loras(folder: Path, model: LatentDiffusion, lora: Path):
    """One model, two threads, 50 pictures: each is that of its request alone, to the byte."""
    if folder.name != "sd1":
        pytest.skip("one model is enough")
    requests: list[dict[str, Any]] = [
        {"size": SIZE, "steps": 1, "seed": seed, "exact": True, "loras": loras}
        for seed in range(2)
        for loras in ([f"{lora}:0.8"], [f"{lora}:-0.5"], [])
    ]

    def latent(request: dict[str, Any]) -> Tensor:
        return model.generate(PROMPT, **request)[0].latent

    expected = [latent(request) for request in requests]
    assert not torch.equal(expected[0], expected[1])
    with ThreadPoolExecutor(2) as threads:
        asked = [k % len(requests) for k in range(50)]
        found = threads.map(latent, (requests[k] for k in asked))
        assert all(torch.equal(own, expected[k]) for own, k in zip(found, asked, strict=True))


def test_loras_in_turn_are_merged_once_each(
    model: LatentDiffusion, lora: Path, monkeypatch: pytest.MonkeyPatch
):
    made: list[int] = []
    own = applied_loras.LoraSet._made

    def counted(loras: applied_loras.LoraSet, active: applied_loras.ActiveLoras):
        made.append(len(active))
        return own(loras, active)

    monkeypatch.setattr(applied_loras.LoraSet, "_made", counted)
    asked: dict[str, Any] = {"size": SIZE, "steps": 5, "seed": 1}
    runs = [model.steps(PROMPT, loras=[f"{lora}:{weight}"], **asked) for weight in (1, 0.5)]
    for _ in zip(*runs, strict=True):
        pass
    assert made == [1, 1]
