"""LoRA files that fit, that do not, and that are none."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adapters import families
from adapters.families import IN, OUT, RANK, draw, net, prefixed
from formats.original.conftest import build
from undust.errors import UndustError
from undust.formats import safetensors_file, textual_inversion
from undust.formats.lora.factors import Hadamard, Kronecker, Product
from undust.formats.lora.file import Lora, load_lora
from undust.formats.networks import empty_network
from undust.networks.text_encoder import TextEncoder
from undust.networks.unet import UNet

LINEAR = "lora_unet_linear"


@pytest.fixture
def read(tmp_path):
    """Writes tensors to a file and reads it for a `Net`."""

    def of(tensors: dict[str, Tensor], metadata=None, networks=None) -> Lora:
        path = tmp_path / "some.safetensors"
        safetensors_file.save(path, tensors, metadata)
        return load_lora(path, networks or {"unet": net()})

    return of


def plain(name: str = LINEAR, shape=(OUT, IN), seed: int = 0) -> dict[str, Tensor]:
    return prefixed(name, families.lora(shape, draw(seed)))


def networks(variant: str) -> dict[str, nn.Module]:
    with torch.random.fork_rng():
        parts = build(variant).parts
    kinds = {"unet": UNet, "text_encoder": TextEncoder, "text_encoder_2": TextEncoder}
    return {part: empty_network(kinds[part], parts[part][0]) for part in kinds if part in parts}


def test_a_file_is_known_by_its_content(read, tmp_path):
    lora = read(plain())
    assert lora.name == "some"
    content = (tmp_path / "some.safetensors").read_bytes()
    assert lora.hash == hashlib.sha256(content).hexdigest()


def test_a_file_of_both_layouts(read):
    """Some trainers mix the names of diffusers and of the original code."""
    parts = networks("sdxl")
    shape = tuple(parts["unet"].get_submodule("down_blocks.1.attentions.0.proj_in").weight.shape)
    lora = read(
        {
            **plain("lora_unet_down_blocks_1_attentions_0_proj_in", shape, 1),
            **plain("lora_unet_input_blocks_3_1_proj_out", shape, 2),
            **plain("unet.mid_block.attentions.0.proj_in", shape, 3),
        },
        networks=parts,
    )
    assert set(lora.changes["unet"]) == {
        "down_blocks.1.attentions.0.proj_in",
        "down_blocks.1.attentions.0.proj_out",
        "mid_block.attentions.0.proj_in",
    }


def test_the_same_under_two_names_is_one(read):
    parts = networks("sdxl")
    shape = tuple(parts["unet"].get_submodule("down_blocks.1.attentions.0.proj_in").weight.shape)
    names = "lora_unet_down_blocks_1_attentions_0_proj_in", "lora_unet_input_blocks_3_1_proj_in"
    lora = read({**plain(names[0], shape), **plain(names[1], shape)}, networks=parts)
    (change,) = lora.changes["unet"].values()
    assert isinstance(change.weight, Product)
    with pytest.raises(
        UndustError, match=rf"2 given twice: {names[1]}\.lora_down.*, not as {names[0]}"
    ):
        read({**plain(names[0], shape), **plain(names[1], shape, seed=1)}, networks=parts)


def test_both_text_encoders(read):
    layer = "text_model_encoder_layers_0_self_attn_q_proj"
    lora = read(
        {**plain(f"lora_te1_{layer}", (32, 32)), **plain(f"lora_te2_{layer}", (64, 64))},
        networks=networks("sdxl"),
    )
    assert lora.changes.keys() == {"text_encoder", "text_encoder_2"}


@pytest.mark.parametrize("prefix", ["lora_te_", "lora_te1_", "lora_te2_", "text_encoder."])
def test_a_refiners_only_text_encoder(prefix, read):
    layer = "text_model.encoder.layers.0.self_attn.q_proj"
    name = prefix + (layer if prefix[-1] == "." else layer.replace(".", "_"))
    refiner = networks("sdxl-refiner")
    shape = tuple(refiner["text_encoder_2"].get_submodule(layer).weight.shape)
    lora = read(plain(name, shape), networks=refiner)
    assert lora.changes["text_encoder_2"].keys() == {layer}


def test_scales_of_a_refiners_only_text_encoder(read):
    """Under the name of the first, as its keys; that of the second counts more."""
    layer = "text_model.encoder.layers.0.self_attn.q_proj"
    refiner = networks("sdxl-refiner")
    shape = tuple(refiner["text_encoder_2"].get_submodule(layer).weight.shape)
    first = {"text_encoder.lora_alpha": 6}
    for prefix, options, scale in (
        ("text_encoder.", first, 2.0),
        ("text_encoder.", first | {"text_encoder_2.lora_alpha": 9}, 3.0),
        ("text_encoder_2.", first, 1.0),
    ):
        tensors = prefixed(prefix + layer, families.lora_without_alpha(shape, draw(0)))
        lora = read(tensors, {"lora_adapter_metadata": json.dumps(options)}, refiner)
        assert lora.changes["text_encoder_2"][layer].scale == scale


def test_the_first_of_two_text_encoders_is_not_a_refiners(read):
    """As in a file for SDXL's base model: of its two encoders the refiner has the second."""
    layer = "text_model_encoder_layers_0_self_attn_q_proj"
    with pytest.warns(UserWarning, match="3 unmatched: lora_te1_"):
        lora = read(
            {**plain(f"lora_te1_{layer}", (32, 32)), **plain(f"lora_te2_{layer}", (64, 64))},
            networks=networks("sdxl-refiner"),
        )
    assert lora.changes.keys() == {"text_encoder_2"}


def test_which_text_encoder_has_to_be_said(read):
    key = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj"
    with pytest.raises(UndustError, match=r"3 ambiguous: .*, of text_encoder or text_encoder_2"):
        read(plain(key, (32, 32)), networks=networks("sdxl"))
    assert read(plain(key, (32, 32)), networks=networks("sd1")).changes.keys() == {"text_encoder"}


def test_what_matches_nothing_is_named_and_left_out(read):
    strange = {f"{LINEAR}.strange_{n}": torch.zeros(2) for n in range(5)}
    with pytest.warns(UserWarning) as told:
        found = read({**plain(), **strange, "lora_unet_nowhere.alpha": torch.ones(())})
    text = str(told.pop().message)
    assert text.startswith("some.safetensors: 6 unmatched: lora_unet_linear.strange_0, ")
    assert text.endswith("lora_unet_linear.strange_2 and 3 more; the rest is used")
    assert not told.list
    known = read(plain()).changes["unet"]
    assert found.changes["unet"].keys() == known.keys() == {"linear"}
    assert torch.equal(found.changes["unet"]["linear"].weight.up, known["linear"].weight.up)


def test_a_file_of_which_most_is_elsewhere_is_for_another_model(read):
    """Half of its modules may be none of the model's, no more."""
    there = {**plain(), **plain("lora_unet_conv", (OUT, IN, 3, 3))}
    elsewhere = {}
    for n in range(2):
        elsewhere |= plain(f"lora_unet_nowhere_{n}")
        with pytest.warns(UserWarning, match=f"{3 * (n + 1)} unmatched"):
            assert len(read({**there, **elsewhere}).changes["unet"]) == 2
    elsewhere |= {"lora_unet_nowhere_2.alpha": torch.ones(())}
    with pytest.raises(UndustError, match=r"it does not fit this model: 7 unmatched: .* 4 more$"):
        read({**there, **elsewhere})


@pytest.mark.parametrize(
    ("key", "looks"),
    [
        ("lora_unet_joint_blocks_0_x.lora_up.weight", "a LoRA for Stable Diffusion 3"),
        ("transformer.single_transformer_blocks.0.x.lora_A.weight", "a LoRA for Flux"),
    ],
)
def test_what_fits_of_another_kind_is_not_used(key, looks, read):
    """Text encoders are shared by models; norms are full differences in files of other kinds."""
    with pytest.raises(UndustError, match=f"1 unmatched: .*; it looks like {looks}$"):
        read({**plain(), key: torch.zeros(2, 2)})


BUNDLED = [
    {"bundle_emb.toy.string_to_param.*": torch.ones(2, 8)},
    {"bundle_emb.toy.clip_l": torch.ones(2, 8), "bundle_emb.toy.clip_g": torch.ones(2, 12)},
    {"clip_l": torch.ones(2, 8), "clip_g": torch.ones(2, 12)},
]


@pytest.mark.parametrize("word", BUNDLED, ids=lambda word: next(iter(word)))
def test_a_word_beside_it_is_told_of(word, read, tmp_path):
    path = tmp_path / "some.safetensors"
    with pytest.warns(UserWarning, match=r"it with --embedding some\.safetensors=WORD$"):
        read({**plain(), **word})
    found = textual_inversion.load(path, "toy")
    assert [len(vectors) for vectors in found.values()] == [2] * len(word)


@pytest.mark.parametrize(
    ("keys", "looks"),
    [
        (["model.diffusion_model.out.2.weight"], "it looks like a checkpoint of a whole model"),
        (["first_stage_model.encoder.conv_in.weight"], "it looks like a checkpoint"),
        (["control_model.time_embed.0.weight"], "it looks like a ControlNet"),
        (["lora_controlnet"], "it looks like a Control-LoRA"),
        (["emb_params"], "it looks like a textual inversion"),
        (["down_blocks.0.resnets.0.conv1.weight"], "it looks like a part of a model folder"),
        (["transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"], "a LoRA for Flux"),
        (["lora_unet_double_blocks_0_img_attn_proj.lora_up.weight"], "a LoRA for Flux"),
        (["lora_unet_joint_blocks_0_x.lora_up.weight"], "a LoRA for Stable Diffusion 3"),
        (["adapter.body.0.in_conv.weight"], "a T2I-Adapter, which is not supported"),
        (["body.0.block1.weight", "conv_in.weight"], "it looks like a T2I-Adapter"),
        (["model.diffusion_model.x.lora_up.weight"], "fits this model: it holds model.diffusion"),
        (["a", "b", "c", "d"], "fits this model: it holds a, b, c and 1 more"),
        (["a\nb"], r"it holds 'a\nb'"),
        ([], "it holds no tensors"),
    ],
)
def test_what_a_file_is_instead(keys, looks, read):
    with pytest.raises(UndustError) as error:
        read({key: torch.zeros(2, 2) for key in keys})
    assert looks in str(error.value)
    assert "nothing in it fits this model: " in str(error.value)


@pytest.mark.parametrize(
    ("width", "model"), [(768, "Diffusion 1"), (1024, "Diffusion 2"), (2048, "Diffusion XL")]
)
def test_a_lora_of_another_family_says_of_which(width, model, read):
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    text = rf"it looks like a LoRA for Stable {model}$|it looks like a LoRA for Stable {model};"
    elsewhere = {**plain(name, (640, width)), **plain("lora_unet_nowhere"), **BUNDLED[0]}
    with pytest.raises(UndustError, match=text):  # as with parts of it that fit, so without any
        read({**plain(), **elsewhere})
    with pytest.raises(UndustError, match=text):
        read(elsewhere)


ones = torch.ones


def wrong(changes: dict[str, Tensor | None], family=families.lora, shape=(OUT, IN)):
    """A family's tensors with some others, or without some."""
    tensors = family(shape, draw(0)).tensors | changes
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def up(tensor: Tensor | None):
    return wrong({".lora_up.weight": tensor})


def down(tensor: Tensor | None):
    return wrong({".lora_down.weight": tensor})


def mid(tensor: Tensor):
    return wrong({".lora_mid.weight": tensor}, families.lora_mid, (OUT, IN, 3, 3))


def alpha(tensor: Tensor):
    return wrong({".alpha": tensor})


def hada(**changes: Tensor | None):
    return wrong({f".hada_{name}": tensor for name, tensor in changes.items()}, families.loha)


def lokr(family=families.lokr, **changes: Tensor | None):
    return wrong({f".lokr_{name}": tensor for name, tensor in changes.items()}, family)


MAGNITUDES = {".dora_scale": ones(OUT, 1), ".lora_magnitude_vector": ones(OUT)}
UNUSABLE = [
    ("linear", up(None), "has no lora_up"),
    ("linear", down(None), "has no lora_down"),
    ("linear", {".alpha": ones(()), ".dora_scale": ones(OUT, 1)}, "has alpha and dora_scale alone"),
    ("linear", {".lora_B.bias": ones(OUT)}, "has up_bias alone"),
    ("linear", wrong({".lora_B.bias": ones(OUT), ".diff_b": ones(OUT)}), "biases of two kinds"),
    ("linear", wrong({".lora_B.bias": ones(9)}), f"has a bias [9] where [{OUT}] is expected"),
    ("plain", wrong({".lora_B.bias": ones(OUT)}), "changes a bias that the module does not have"),
    ("linear", {".dora_scale": ones(OUT, 1)}, "has dora_scale alone"),
    ("linear", up(ones(OUT, 4)), f"has a lora_up [{OUT}, 4] where [{OUT}, 3] is expected"),
    ("linear", up(ones(9, 3)), f"has a lora_up [9, 3] where [{OUT}, 3] is expected"),
    ("linear", up(ones(3, OUT)), f"has a lora_up [3, {OUT}] where [{OUT}, 3] is expected"),
    ("linear", up(ones(())), "has a lora_up []"),
    ("linear", up(ones(OUT, 3).int()), "has a lora_up of int32, not weights"),
    ("linear", up(ones(OUT, 3).to(torch.complex64)), "has a lora_up of complex64"),
    ("linear", down(ones(3, 13)), f"has a lora_down [3, 13] where [3, {IN}] is expected"),
    ("linear", down(ones(3, IN, 3, 3)), "has a lora_down"),
    ("linear", down(ones(0, IN)), "which is not a matrix"),
    ("linear", down(ones(())), "which is not a matrix"),
    ("linear", alpha(torch.tensor(torch.nan)), "has an alpha that is not a number"),
    ("linear", alpha(torch.tensor(torch.inf)), "has an alpha that is not a number"),
    ("linear", alpha(ones(2)), "has an alpha that is not a number"),
    ("linear", alpha(ones(()).to(torch.complex64)), "has an alpha that is not a number"),
    ("linear", wrong({".diff": ones(OUT, IN)}), "has factors of two kinds"),
    ("linear", wrong({".dora_scale": ones(3, 1)}), f"[3, 1] where [{OUT}, 1] is expected"),
    ("linear", wrong(MAGNITUDES), "has magnitudes of two kinds"),
    ("linear", wrong({".diff_b": ones(9)}), f"has a bias [9] where [{OUT}] is expected"),
    ("plain", wrong({".diff_b": ones(OUT)}), "changes a bias that the module does not have"),
    ("linear", {".diff": ones(IN, OUT)}, f"[{IN}, {OUT}] where [{OUT}, {IN}] is expected"),
    ("conv", {".diff": ones(OUT, IN * 9)}, "has a diff"),
    ("conv", wrong({}), "has a lora_down"),
    ("conv", down(ones(3, 3, IN, 3)), f"[3, 3, {IN}, 3] where [3, {IN}, 3, 3] is expected"),
    ("conv", mid(ones(3, 3, 5, 5)), "has a lora_mid"),
    ("conv", mid(ones(3)), "has a lora_mid"),
    ("conv", mid(ones(4, 3, 3, 3)), "has a lora_up"),
    ("linear", hada(w2_b=None), "has no hada_w2_b"),
    ("linear", hada(w2_b=ones(3, 1)), "has a hada_w2_b"),
    ("linear", lokr(w1=ones(3, 3)), f"has a lokr_w1 [3, 3] for a weight [{OUT}, {IN}]"),
    ("linear", lokr(w1=ones(2)), "which is not a matrix"),
    ("linear", lokr(w1=ones(2, 3, 2)), "has a lokr_w1"),
    ("linear", lokr(w1=None), "has no lokr_w1_a"),
    ("linear", lokr(w1_a=ones(2, 3)), "has unexpected tensors: lokr_w1_a"),
    ("linear", lokr(w2=ones(4, 5)), "has a lokr_w2"),
    ("linear", lokr(families.lokr_low, w2_b=None), "has no lokr_w2_b"),
    ("layer_norm", wrong({}, shape=(IN, IN)), "has the factors of a matrix for a norm's weight"),
    ("layer_norm", {".w_norm": ones(3)}, f"has a diff [3] where [{IN}] is expected"),
    ("layer_norm", {".w_norm": ones(IN), ".b_norm": ones(3)}, "has a bias [3]"),
]


@pytest.mark.parametrize(("module", "tensors", "text"), UNUSABLE)
def test_what_does_not_make_a_change_is_named(module, tensors, text, read):
    name = f"lora_unet_{module}"
    with pytest.raises(UndustError) as error:
        read({name + key: tensor for key, tensor in tensors.items()})
    assert f"1 unusable: {name} " in str(error.value)
    assert text in str(error.value)


def test_nothing_larger_than_the_module_is_made(read):
    """A file of kilobytes whose product would be of terabytes."""
    long = 2**18
    column, row = ones(long, 1), ones(1, long)
    for tensors in (
        {".lora_up.weight": column, ".lora_down.weight": row},
        {".lokr_w1": ones(512, 512), ".lokr_w2": ones(512, 512)},
        {f".hada_w{n}_{side}": t for n in (1, 2) for side, t in (("a", column), ("b", row))},
    ):
        with pytest.raises(UndustError, match="1 unusable"):
            read({LINEAR + name: tensor for name, tensor in tensors.items()})


def test_ranks_differ_from_module_to_module(read):
    tensors = plain()
    other = {".lora_up.weight": ones(OUT, 7, 1, 1), ".lora_down.weight": ones(7, IN, 3, 3)}
    changes = read({**tensors, **{f"lora_unet_conv{name}": t for name, t in other.items()}}).changes
    assert [changes["unet"][name].weight.rank for name in ("linear", "conv")] == [RANK, 7]


def test_kinds_are_told_apart(read):
    shape = (OUT, IN)
    kinds = {"linear": families.loha, "plain": families.lokr, "pixel": families.full}
    tensors = {}
    for module, family in kinds.items():
        tensors |= prefixed(f"lora_unet_{module}", family(shape, draw(0)))
    changes = read(tensors).changes["unet"]
    found = [type(changes[module].weight) for module in kinds]
    assert found == [Hadamard, Kronecker, Tensor]


def told(**options) -> dict[str, str]:
    names = {f"unet.{name}": value for name, value in options.items()}
    return {"lora_adapter_metadata": json.dumps(names)}


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({}, 1.0),
        ({"lora_alpha": 6}, 2.0),
        ({"alpha": 6}, 2.0),
        ({"lora_alpha": 6, "use_rslora": True}, 6 / 3**0.5),
        ({"lora_alpha": 6, "alpha_pattern": {"linear": 9}}, 3.0),
        ({"lora_alpha": 6, "alpha_pattern": {"inear": 9}}, 2.0),
        ({"alpha_pattern": {"conv": 9}}, 1.0),
    ],
)
def test_alphas_beside_the_tensors(options, scale, read):
    tensors = prefixed("unet.linear", families.lora_without_alpha((OUT, IN), draw(0)))
    change = read(tensors, told(**options)).changes["unet"]["linear"]
    assert change.scale == pytest.approx(scale)
    tensors["unet.linear.alpha"] = torch.tensor(1.5)  # what is among them is meant more
    assert read(tensors, told(**options)).changes["unet"]["linear"].scale == 0.5


LOKR = {"peft_type": "LOKR", "r": 4, "alpha": 2}


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        (LOKR, 0.5),
        ({**LOKR, "rank_pattern": {"linear": 8}}, 0.25),
        ({**LOKR, "rank_pattern": {"inear": 8}, "alpha_pattern": {"linear": 8}}, 2.0),
        ({"r": 4}, 1.0),
        ({}, 1.0),
    ],
)
def test_a_rank_that_no_tensor_shows(config, scale, read, tmp_path: Path):
    """A LoKr of whole factors: PEFT scales it by the rank asked for, LyCORIS' files say alpha."""
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    tensors = prefixed("base_model.model.linear", families.lokr((OUT, IN), draw(0)))
    own = tensors.pop("base_model.model.linear.alpha")
    assert read(tensors).changes["unet"]["linear"].scale == scale
    tensors["base_model.model.linear.alpha"] = own
    assert read(tensors).changes["unet"]["linear"].scale == 1.0


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"alpha": 2}, "r is None"),
        ({"alpha": 2, "r": 0}, "r is 0"),
        ({"alpha": 2, "r": 4, "rank_pattern": {"l.*": 1}}, "rank_pattern has l.*"),
    ],
)
def test_a_rank_that_nothing_tells(config, text, read, tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    tensors = prefixed("base_model.model.linear", families.lokr((OUT, IN), draw(0)))
    tensors.pop("base_model.model.linear.alpha")
    with pytest.raises(UndustError) as error:
        read(tensors)
    assert text in str(error.value)
    low = prefixed("base_model.model.linear", families.lora_without_alpha((OUT, IN), draw(0)))
    assert read(low).changes["unet"]["linear"].scale == 2 / 3  # where they show it, nobody asks


def test_alphas_of_another_part_say_nothing(read):
    metadata = {"lora_adapter_metadata": json.dumps({"text_encoder.lora_alpha": 9})}
    tensors = prefixed("unet.linear", families.lora_without_alpha((OUT, IN), draw(0)))
    assert read(tensors, metadata).changes["unet"]["linear"].scale == 1.0


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"unet.lora_alpha": "x"}', "alpha is x, not a valid number"),
        ('{"unet.lora_alpha": NaN}', "alpha is nan, not a valid number"),
        ('{"unet.lora_alpha": 1e999}', "alpha is inf, not a valid number"),
        ('{"unet.lora_alpha": ' + "9" * 400 + "}", "not a valid number"),
        ('{"unet.lora_alpha": true}', "alpha is True, not a valid number"),
        ('{"unet.alpha_pattern": [1]}', "alpha_pattern is not an object"),
        ('{"unet.alpha_pattern": {"a": null}}', "alpha_pattern is None, not a valid number"),
        ('{"unet.alpha_pattern": {"(a+)+$": 2}}', "regular expressions are not supported"),
    ],
)
def test_damaged_configurations(metadata, text, read):
    with pytest.raises(UndustError) as error:
        read(plain("unet.linear"), {"lora_adapter_metadata": metadata})
    assert text in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).count("some.safetensors") == 1


def test_a_configuration_beside_a_file_is_peft_s(read, tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 6}')
    tensors = prefixed("linear", families.lora_without_alpha((OUT, IN), draw(0)))
    assert read(tensors).changes["unet"]["linear"].scale == 1.0
    named = {f"base_model.model.{key}": tensor for key, tensor in tensors.items()}
    assert read(named).changes["unet"]["linear"].scale == 2.0
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(UndustError, match=r"adapter_config\.json is not JSON"):
        read(named)


def test_a_file_that_is_none(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(UndustError, match="cannot be read"):
        load_lora(path, {"unet": net()})
    path.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(UndustError, match="is a pickle"):
        load_lora(path, {"unet": net()})
