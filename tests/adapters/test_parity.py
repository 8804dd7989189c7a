"""The same files on the same networks, by diffusers and PEFT."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from adapters import families
from adapters.families import Net, draw, example
from formats.original.conftest import build
from undust.adapters.applied_loras import LoraSet
from undust.formats import safetensors_file
from undust.formats.folder import load_into
from undust.formats.lora.file import load_lora
from undust.formats.lora.names import split
from undust.formats.original import keys
from undust.networks.conditioning import Conditioning
from undust.networks.text_encoder import TextEncoder
from undust.networks.unet import UNet

TEXT_NAMES = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def built(request):
    """Our networks and diffusers' of them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny = build(request.param)
    ours: dict[str, nn.Module] = {}
    theirs: dict[str, nn.Module] = {}
    for part, (config, tensors) in tiny.parts.items():
        if part == "vae":
            continue
        fields = config.model_dump(mode="json")
        tensors = {name: tensor / 10 for name, tensor in tensors.items()}
        if part == "unet":
            ours[part] = UNet(config)
            theirs[part] = UNet2DConditionModel.from_config(fields)
        else:
            ours[part] = TextEncoder(config)
            kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
            theirs[part] = kind(CLIPTextConfig(**fields))
        named = {name: tensors[name] for name in ours[part].state_dict()}
        load_into(ours[part], named, part)
        _fill(theirs[part], tensors)
    for network in (*ours.values(), *theirs.values()):
        network.eval().requires_grad_(False)
    return request.param, ours, theirs


@pytest.fixture
def model(built):
    return deepcopy(built)


def _fill(network: nn.Module, tensors) -> None:
    """transformers 5 leaves `text_model.` off."""
    for name, parameter in network.named_parameters():
        found = tensors[name] if name in tensors else tensors[f"text_model.{name}"]
        parameter.data.copy_(found)


def pipeline(variant: str, theirs):
    nothing = dict.fromkeys(("vae", "tokenizer", "scheduler", "feature_extractor"))
    if variant == "sd1":
        return StableDiffusionPipeline(
            **theirs, **nothing, safety_checker=None, requires_safety_checker=False
        )
    return StableDiffusionXLPipeline(
        **theirs, **nothing, tokenizer_2=None, image_encoder=None, add_watermarker=False
    )


def layers(part: str, network: nn.Module, *, convolutions: bool = True):
    """What is to be changed: attention, projections and feed-forward; perhaps convolutions."""
    for name, layer in network.named_modules():
        if not isinstance(layer, nn.Linear if not convolutions else (nn.Linear, nn.Conv2d)):
            continue
        if part == "unet" and not convolutions and ".attn" not in name:
            continue
        if "text_projection" in name:
            continue
        yield name, tuple(layer.weight.shape)


def file(tmp_path: Path, tensors, metadata=None) -> Path:
    path = tmp_path / "lora.safetensors"
    safetensors_file.save(path, tensors, metadata)
    return path


def made(shape, seed: int, *, alpha: bool):
    family = families.lora if alpha else families.lora_without_alpha
    tensors = family(shape, draw(seed)).tensors
    return {name.removesuffix(".weight"): tensor for name, tensor in tensors.items()}


def kohya(variant: str, ours):
    tensors = {}
    for part, network in ours.items():
        if part == "unet":
            prefix = "lora_unet_"
        else:
            prefix = {"sd1": "lora_te_"}.get(variant, f"lora_te{1 + part.endswith('_2')}_")
        for seed, (name, shape) in enumerate(layers(part, network)):
            flat = name.replace(".", "_")
            if part == "unet" and variant == "sdxl":  # diffusers reads them with a map of its own
                place = keys.unet([f"{name}.weight"], network.config)[f"{name}.weight"]
                flat = place.key.removesuffix(".weight").replace(".", "_")
            factors = made(shape, seed, alpha=True)
            tensors[f"{prefix}{flat}.lora_up.weight"] = factors[".lora_up"]
            tensors[f"{prefix}{flat}.lora_down.weight"] = factors[".lora_down"]
            tensors[f"{prefix}{flat}.alpha"] = factors[".alpha"]
    return tensors, None


def old_diffusers(variant: str, ours):
    """Attention processors; the text encoder's projections called after the U-Net's."""
    tensors = {}
    for part, network in ours.items():
        for seed, (name, shape) in enumerate(layers(part, network, convolutions=False)):
            owner, _, last = name.removesuffix(".0").rpartition(".")
            if part == "unet":
                target = f"{owner}.processor.{last}_lora"
            elif last in TEXT_NAMES:
                target = f"{owner}.{TEXT_NAMES[last]}_lora"
            else:
                continue
            factors = made(shape, seed, alpha=False)
            tensors[f"{part}.{target}.up.weight"] = factors[".lora_up"]
            tensors[f"{part}.{target}.down.weight"] = factors[".lora_down"]
    return tensors, None


def diffusers(variant: str, ours):
    tensors = {}
    for part, network in ours.items():
        word = "lora" if part == "unet" else "lora_linear_layer"
        for seed, (name, shape) in enumerate(layers(part, network, convolutions=part == "unet")):
            factors = made(shape, seed, alpha=False)
            tensors[f"{part}.{name}.{word}.up.weight"] = factors[".lora_up"]
            tensors[f"{part}.{name}.{word}.down.weight"] = factors[".lora_down"]
    return tensors, None


def peft(variant: str, ours):
    tensors = {}
    for part, network in ours.items():
        for seed, (name, shape) in enumerate(layers(part, network)):
            factors = made(shape, seed, alpha=False)
            tensors[f"{part}.{name}.lora_B.weight"] = factors[".lora_up"]
            tensors[f"{part}.{name}.lora_A.weight"] = factors[".lora_down"]
    return tensors, None


def with_metadata(variant: str, ours):
    """The alphas beside the tensors, as diffusers' training scripts write them."""
    tensors, _ = peft(variant, ours)
    told = {}
    for part, network in ours.items():
        names = [name for name, _ in layers(part, network)]
        told |= {
            f"{part}.r": families.RANK,
            f"{part}.lora_alpha": 6,
            f"{part}.alpha_pattern": {names[0].removeprefix("text_model."): 1.5},
            f"{part}.target_modules": [name.removeprefix("text_model.") for name in names],
            f"{part}.use_rslora": part == "unet",
        }
    return tensors, {"lora_adapter_metadata": json.dumps(told)}


WRITERS = [kohya, old_diffusers, diffusers, peft, with_metadata]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_fused_by_diffusers(write, model, tmp_path):
    variant, ours, theirs = model
    path = file(tmp_path, *write(variant, ours))
    before = {part: _copies(network) for part, network in ours.items()}
    peer = pipeline(variant, theirs)
    originals = {part: _copies(network) for part, network in theirs.items()}
    peer.load_lora_weights(path.parent, weight_name=path.name)
    peer.fuse_lora(components=list(theirs), lora_scale=0.7)
    peer.unload_lora_weights()
    expected = {part: _copies(network) for part, network in theirs.items()}
    applied = LoraSet(ours).applied([(load_lora(path, ours), 0.7)])
    total = 0
    for part, network in applied.items():
        changed = 0
        for name, tensor in network.state_dict().items():
            if name not in expected[part]:
                name = name.removeprefix("text_model.")
            wanted = expected[part][name]
            assert (tensor - wanted).norm() <= 1e-6 * wanted.norm(), (part, name)
            changed += not torch.equal(wanted, originals[part][name])
        total += changed
    names = safetensors_file.header(path).tensors
    assert total == sum(split(name)[1] == "lora_up" for name in names)
    for part, network in ours.items():
        assert all(torch.equal(t, before[part][name]) for name, t in network.state_dict().items())


def _copies(network: nn.Module):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_live_as_by_diffusers(model, tmp_path):
    variant, ours, theirs = model
    path = file(tmp_path, *kohya(variant, ours))
    peer = pipeline(variant, theirs)
    peer.load_lora_weights(path.parent, weight_name=path.name)
    beside = LoraSet(ours, merge=False)
    lora = load_lora(path, ours)
    x, t = draw(1)(2, 4, 8, 8), torch.tensor([3.0, 500.0])
    context = draw(2)(2, 5, ours["unet"].config.cross_attention_dim)
    added, ours_added = {}, {}
    if variant == "sdxl":
        pooled, sizes = draw(3)(2, 64), torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
        added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
        ours_added = {"pooled": pooled, "size_ids": sizes}
    cond = Conditioning(2, context, **ours_added)
    plain = ours["unet"](x, t, cond)
    for weight in (0.05, -0.02):
        peer.set_adapters("default_0", weight)
        view = beside.applied([(lora, weight)])["unet"]
        expected = theirs["unet"](x, t, context, **added).sample
        found = view(x, t, cond)
        assert (found - expected).norm() < 1e-4 * expected.norm()
        assert (found - plain).norm() > 1e-2 * expected.norm()
    assert torch.equal(ours["unet"](x, t, cond), plain)
    peer.unload_lora_weights()


CONFIGS = {
    "loha": LoHaConfig(r=3, alpha=3, use_effective_conv2d=False, init_weights=False),
    "loha-tucker": LoHaConfig(r=3, alpha=3, use_effective_conv2d=True, init_weights=False),
    "lokr": LoKrConfig(r=1, alpha=1, decompose_both=True, init_weights=False),
    "lokr-left-whole": LoKrConfig(r=1, alpha=1, init_weights=False),
    "lokr-tucker": LoKrConfig(r=1, alpha=1, use_effective_conv2d=True, init_weights=False),
    "lora": LoraConfig(r=3, lora_alpha=7, init_lora_weights=False),
    "dora": LoraConfig(r=3, lora_alpha=7, use_dora=True, init_lora_weights=False),
    "bias": LoraConfig(r=3, lora_alpha=7, lora_bias=True, init_lora_weights=False),
    "rslora": LoraConfig(r=3, lora_alpha=7, use_rslora=True, init_lora_weights=False),
    "patterns": LoraConfig(
        r=3, lora_alpha=7, rank_pattern={"conv": 2}, alpha_pattern={"linear": 2, "conv": 5},
        init_lora_weights=False,
    ),
    "loha-alpha": LoHaConfig(r=3, alpha=7, init_weights=False),
    "lokr-whole": LoKrConfig(r=4, alpha=2, init_weights=False),
    "lokr-whole-both": LoKrConfig(r=5, alpha=9, decompose_both=True, init_weights=False),
    "lokr-alpha": LoKrConfig(r=1, alpha=3, init_weights=False),
    "lokr-factor": LoKrConfig(r=2, alpha=7, decompose_factor=2, init_weights=False),
    "lokr-factor-whole": LoKrConfig(r=6, alpha=7, decompose_factor=2, init_weights=False),
    "lokr-whole-tucker": LoKrConfig(
        r=3, alpha=2, decompose_both=True, use_effective_conv2d=True, init_weights=False
    ),
    "lokr-patterns": LoKrConfig(
        r=4, alpha=2, rank_pattern={"linear": 8, "conv": 1}, alpha_pattern={"plain": 3},
        init_weights=False,
    ),
    "lokr-dropout": LoKrConfig(
        r=4, alpha=2, rank_dropout=0.5, module_dropout=0.5, rank_dropout_scale=True,
        init_weights=False,
    ),
    "loha-patterns": LoHaConfig(
        r=4, alpha=2, rank_pattern={"linear": 3}, alpha_pattern={"plain": 3}, init_weights=False
    ),
    "rslora-patterns": LoraConfig(
        r=3, lora_alpha=7, use_rslora=True, rank_pattern={"conv": 2}, alpha_pattern={"conv": 5},
        init_lora_weights=False,
    ),
    "dora-rslora": LoraConfig(
        r=3, lora_alpha=7, use_dora=True, use_rslora=True, init_lora_weights=False
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # PEFT takes biases for broken matrices
@pytest.mark.parametrize("name", CONFIGS)
def test_folders_of_peft(name, tmp_path):
    """PEFT's own folder: adapter_model.safetensors and the configuration beside it."""
    config = CONFIGS[name]
    config.target_modules = [
        name for name in families.MATRICES if name != "plain" or not getattr(config, "lora_bias", 0)
    ]
    network = families.net()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs = get_peft_model(Whole(families.net()), config)
        for key, parameter in theirs.named_parameters():
            if "magnitude" in key:
                parameter.data *= 1 + torch.rand_like(parameter)
            elif any(kind in key for kind in ("lora_", "hada_", "lokr_")):
                parameter.data.normal_()
    theirs.save_pretrained(tmp_path)
    lora = load_lora(tmp_path / "adapter_model.safetensors", {"unet": network})
    inputs = {module: example(module) for module in config.target_modules}
    theirs.eval()
    changed = theirs.base_model.model
    expected = {module: changed.get_submodule(module)(x) for module, x in inputs.items()}
    plain = {module: network.get_submodule(module)(x) for module, x in inputs.items()}
    for merged in (False, True):
        view = LoraSet({"unet": network}, merge=merged).applied([(lora, 1.0)])["unet"]
        for module, x in inputs.items():
            found = view.get_submodule(module)(x)
            assert (found - expected[module]).norm() < 2e-6 * expected[module].norm()
            assert (found - plain[module]).norm() > 1e-2 * expected[module].norm()


class Whole(Net):
    """PEFT wants a model that can be called."""

    def __init__(self, network: Net) -> None:
        super().__init__()
        self.load_state_dict(network.state_dict())

    def forward(self, x):
        return self.linear(x)
