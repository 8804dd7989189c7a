"""What each family adds to a weight: against the formula in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.func import functional_call

from adapters import families
from adapters.families import CASES, draw, example, net, prefixed
from undust.adapters.applied_loras import LoraSet, merge
from undust.adapters.lora import delta
from undust.formats import safetensors_file
from undust.formats.lora.file import load_lora

IDS = [f"{family.__name__}-{module}" for family, module in CASES]


def read(path: Path, network, family, module: str, seed: int = 0):
    shape = tuple(network.get_submodule(module).weight.shape)
    made = family(shape, draw(seed))
    file = path / f"{family.__name__}{seed}.safetensors"
    safetensors_file.save(file, prefixed(f"lora_unet_{module}", made))
    return made, load_lora(file, {"unet": network})


def close(found, expected, bound: float, start=None) -> None:
    """start: what was added to; where the sum is smaller, its rounding is not."""
    size = expected.norm() if start is None else max(expected.norm(), start.double().norm())
    assert found.shape == expected.shape
    assert (found.double() - expected).norm() <= bound * size


@pytest.mark.parametrize(("family", "module"), CASES, ids=IDS)
@pytest.mark.parametrize("weight", [1.0, -0.7])
def test_merged_is_the_formula(family, module, weight, tmp_path):
    network = net()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    made, lora = read(tmp_path, network, family, module)
    merge({"unet": network}, [(lora, weight)])
    for name, tensor in network.state_dict().items():
        original = before[name].double()
        if name == f"{module}.weight":
            close(tensor, original + weight * made.change(before[name]), 2e-7, original)
        elif name == f"{module}.bias" and made.bias is not None:
            close(tensor, original + weight * made.bias, 2e-7)
        else:
            assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(("family", "module"), CASES, ids=IDS)
@pytest.mark.parametrize("weight", [1.0, -0.7])
def test_live_is_the_formula(family, module, weight, tmp_path):
    network = net()
    layer = network.get_submodule(module)
    made, lora = read(tmp_path, network, family, module)
    x = example(module)
    changed = {"weight": layer.weight.double() + weight * made.change(layer.weight)}
    if layer.bias is not None:
        changed["bias"] = layer.bias.double() + weight * (0 if made.bias is None else made.bias)
    expected = functional_call(net().double().get_submodule(module), changed, (x.double(),))
    plain = layer(x)
    view = LoraSet({"unet": network}, merge=False).applied([(lora, weight)])["unet"]
    close(view.get_submodule(module)(x), expected, 1e-6, plain)


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("module", ["linear", "conv"])
@pytest.mark.parametrize("family", [families.lora, families.loha, families.dora])
def test_half_precision_rounds_once(family, module, dtype, merged, tmp_path):
    network = net().to(dtype)
    layer = network.get_submodule(module)
    original = layer.weight.clone()
    made, lora = read(tmp_path, network, family, module)
    expected = original.double() + 0.7 * made.change(original)
    view = LoraSet({"unet": network}, merge=merged).applied([(lora, 0.7)])["unet"]
    layer = view.get_submodule(module)
    if merged:
        assert layer.weight.dtype == dtype
        # The last place, because float64 may round to the other side of a middle than float32.
        step = torch.finfo(dtype).eps * expected.abs()
        assert ((layer.weight.double() - expected.to(dtype).double()).abs() <= step).all()
        assert (layer.weight == expected.to(dtype)).float().mean() > 0.99
    else:
        x = example(module).to(dtype)
        there = {"weight": expected, "bias": layer.bias.double()}
        twin = net().double().get_submodule(module)
        assert layer(x).dtype == dtype
        close(layer(x), functional_call(twin, there, (x.double(),)), 8 * torch.finfo(dtype).eps)


def test_several_add_up(tmp_path):
    network = net()
    original = network.conv.weight.clone()
    cases = [(families.lora, 0.5), (families.dora, -1.2), (families.lokr_low, 0.3)]
    read_ = [read(tmp_path, network, family, "conv", seed=k) for k, (family, _) in enumerate(cases)]
    expected = original.double() + sum(
        weight * made.change(original) for (made, _), (_, weight) in zip(read_, cases, strict=True)
    )
    loras = [(lora, weight) for (_, lora), (_, weight) in zip(read_, cases, strict=True)]
    x = example("conv")
    twin = net().double().conv
    there = {"weight": expected, "bias": network.conv.bias.double()}
    plain = network.conv(x)
    beside = LoraSet({"unet": network}, merge=False).applied(loras)["unet"]
    close(beside.conv(x), functional_call(twin, there, (x.double(),)), 1e-6, plain)
    merged = LoraSet({"unet": network}).applied(loras)["unet"]
    close(merged.conv.weight, expected, 2e-7, original)


def test_a_direction_without_length_stays_nothing(tmp_path):
    network = net()
    made, lora = read(tmp_path, network, families.dora, "linear")
    assert made.weight is not None
    weight = network.linear.weight.clone()
    weight[0] = -delta_of(lora)[0]
    found = weight + delta(lora.changes["unet"]["linear"], weight)
    assert found.isfinite().all()
    assert not found[0].any()
    assert found[1:].any()


def delta_of(lora):
    """ΔW before DoRA's lengths, as the package computes it: to the bit its opposite."""
    change = lora.changes["unet"]["linear"]
    plain = type(change)(change.weight, change.scale)
    return delta(plain, torch.zeros(families.OUT, families.IN))


@pytest.mark.parametrize("module", ["linear", "pixel"])
def test_a_convolution_of_one_pixel_is_a_matrix(module, tmp_path):
    """Stable Diffusion 1 projects with the one, XL with the other; files have either form."""
    network = net()
    before = network.get_submodule(module).weight.clone()
    other = {"linear": (families.OUT, families.IN, 1, 1), "pixel": (families.OUT, families.IN)}
    for seed, family in enumerate((families.lora, families.full, families.lokr, families.dora)):
        made = family(other[module], draw(seed))
        file = tmp_path / f"{seed}.safetensors"
        safetensors_file.save(file, prefixed(f"lora_unet_{module}", made))
        view = LoraSet({"unet": network}).applied([(load_lora(file, {"unet": network}), 1.0)])[
            "unet"
        ]
        change = made.change(before.reshape(other[module])).reshape(before.shape)
        close(view.get_submodule(module).weight, before.double() + change, 2e-7)
