"""Files that mean ill: one clear line, or a LoRA that can be worn."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters import families
from adapters.families import CASES, IN, OUT, draw, net, prefixed
from undust.adapters.applied_loras import LoraSet
from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.formats.lora.file import load_lora
from undust.formats.lora.names import ROLES

SUFFIXES = sorted(
    {
        suffix
        for family, module in CASES
        for suffix in family(tuple(net().get_submodule(module).weight.shape), draw(0)).tensors
    }
)
LENGTHS = st.sampled_from([0, 1, 2, 3, 4, 6, OUT, IN, IN * 9, 2**16])
SHAPES = st.lists(LENGTHS, max_size=5).filter(lambda shape: math.prod(shape) < 2**17)
DTYPES = st.sampled_from(list(safetensors_file.DTYPES.values()))
MODULES = st.sampled_from(["linear", "conv", "pixel", "layer_norm", "nowhere"])


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "some.safetensors"


def survives(path: Path) -> None:
    """Loads and wears the file, or says in one line why not."""
    network = net()
    try:
        lora = load_lora(path, {"unet": network})
    except UndustError as error:
        assert "\n" not in str(error)
        assert str(path) in str(error)
        return
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert LoraSet({"unet": network}).applied([(lora, 0.5)])
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


@given(
    claims=st.dictionaries(
        st.tuples(MODULES, st.sampled_from(SUFFIXES)), st.tuples(SHAPES, DTYPES), max_size=6
    )
)
def test_any_shapes_under_any_names(path, claims):
    tensors = {
        f"lora_unet_{module}{suffix}": torch.zeros(shape, dtype=torch.uint8).to(dtype)
        for (module, suffix), (shape, dtype) in claims.items()
    }
    safetensors_file.save(path, tensors)
    survives(path)


@given(
    case=st.sampled_from([case for case in CASES if case[1] in ("linear", "conv", "layer_norm")]),
    victim=st.integers(0, 10),
    shape=SHAPES | st.none(),
    dtype=DTYPES | st.none(),
)
def test_one_tensor_of_a_good_file_is_another(path, case, victim, shape, dtype):
    family, module = case
    good = family(tuple(net().get_submodule(module).weight.shape), draw(0))
    tensors = prefixed(f"lora_unet_{module}", good)
    name = sorted(tensors)[victim % len(tensors)]
    if shape is None and dtype is None:
        del tensors[name]
    if shape is not None:
        tensors[name] = torch.ones(shape)
    if dtype is not None and name in tensors:
        tensors[name] = tensors[name].to(dtype)
    safetensors_file.save(path, tensors)
    survives(path)


@given(
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=8),
    cut=st.none() | st.integers(0, 2**16),
)
def test_any_bytes_of_a_good_file_are_others(path, changes, cut):
    made = families.lora((OUT, IN), draw(0))
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2})}
    safetensors_file.save(path, prefixed("unet.linear", made), metadata)
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    path.write_bytes(content[: None if cut is None else cut % len(content)])
    survives(path)


@given(key=st.text(max_size=80), role=st.sampled_from(["", ".alpha", ".diff", ".lora_up.weight"]))
def test_any_names(path, key, role):
    safetensors_file.save(path, {key + role: torch.ones(2)})
    survives(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(
    told=JSON
    | st.dictionaries(
        st.sampled_from(["unet.lora_alpha", "lora_alpha", "unet.alpha_pattern", "unet.use_rslora"]),
        JSON | st.dictionaries(st.sampled_from(["linear", "a(b", ""]), JSON, max_size=2),
    )
)
def test_any_configuration(path, told):
    made = families.lora_without_alpha((OUT, IN), draw(0))
    metadata = {"lora_adapter_metadata": json.dumps(told)}
    safetensors_file.save(path, prefixed("unet.linear", made), metadata)
    survives(path)


def test_every_role_was_tried():
    tried = {suffix.split(".")[1] for suffix in SUFFIXES}
    assert tried | {"magnitude", "bias", "up_bias"} >= set(ROLES)
