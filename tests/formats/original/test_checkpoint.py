"""Whole files: what they are, that nothing is lost on the way, and what is said of broken ones."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from undust.errors import UndustError
from undust.formats.original import checkpoint as checkpoints
from undust.formats.original import keys
from undust.formats.original.checkpoint import scan_checkpoint, to_original
from undust.formats.original.detect import UNSUPPORTED
from undust.formats.original.variants import FIRST_STAGE, UNET, VARIANTS

GIGABYTES = {  # of the published files in half precision
    "sd1": 2.13,
    "sd2": 2.61,
    "sdxl": 6.94,
    "sdxl-refiner": 6.08,
    "x4-upscaler": 1.77,
}
SLOW = settings(
    max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


def shapes(tensors):
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def one_line(error: pytest.ExceptionInfo[UndustError]) -> str:
    said = str(error.value)
    assert "\n" not in said
    assert len(said) < 1500
    return said


@pytest.mark.parametrize("variant", GIGABYTES)
def test_a_published_file_is_known_whole(variant, published, hollow):
    path = hollow(published(variant))
    found = scan_checkpoint(path)
    assert found.variant == VARIANTS[variant]
    assert path.stat().st_size / 1e9 == pytest.approx(GIGABYTES[variant], abs=0.01)
    used = sum(len({place.key for place in part.key_map.values()}) for part in found.parts.values())
    assert used + sum(found.ignored.values()) == len(published(variant))
    unused = found.ignored.pop("unused parts of the text encoder", 0)
    # The last of OpenCLIP-H's layers, of twelve tensors, and its projection.
    assert unused == (13 if variant in ("sd2", "x4-upscaler") else 0)
    assert found.ignored.keys() <= {"constants", "training of CLIP"}
    unet, vae = found.parts["unet"].network.config, found.parts["vae"].network.config
    assert unet.sample_size == {"sd1": 64, "sd2": 64}.get(variant, 128)
    assert vae.scaling_factor == VARIANTS[variant].scaling_factor


@pytest.mark.parametrize("variant", VARIANTS)
def test_there_and_back_is_the_same_to_the_bit(variant, tiny, save):
    model = tiny(variant)
    file = model.original()
    found = scan_checkpoint(save(file))
    assert found.variant == VARIANTS[variant]
    assert found.ignored == {}
    assert found.parts.keys() == model.parts.keys()
    for name, (config, own) in model.parts.items():
        part = found.parts[name]
        told = config.model_dump(exclude={"vocab_size"})
        assert part.network.config.model_dump(exclude={"vocab_size"}) == told
        assert part.shapes == shapes(own)
        back = checkpoints.key_map.from_original(file, part.key_map)
        assert back.keys() == own.keys()
        assert all(torch.equal(back[key], own[key]) for key in own)
    again = to_original(found.variant, {name: (c, t) for name, (c, t) in model.parts.items()})
    assert again.keys() == file.keys()
    assert all(torch.equal(again[key], file[key]) for key in file)


@pytest.mark.parametrize("variant", ["sd2", "sdxl", "sdxl-refiner"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_networks_get_the_weights_of_the_file(dtype, variant, tiny, save):
    model = tiny(variant)
    path = save({key: tensor.to(dtype) for key, tensor in model.original().items()})
    networks = scan_checkpoint(path).load(dtype)
    for name, (_, own) in model.parts.items():
        state = networks[name].state_dict()
        assert state.keys() == own.keys()
        assert all(torch.equal(state[key], tensor.to(dtype)) for key, tensor in own.items())


def test_averages_are_taken_when_asked_for(tiny, save):
    file = tiny("sd1").original()
    averages = {keys.ema(key): tensor + 1 for key, tensor in file.items() if key.startswith(UNET)}
    counts = {"model_ema.decay": torch.ones(()), "model_ema.num_updates": torch.ones(())}
    path = save({**file, **averages, **counts})
    _, own = tiny("sd1").parts["unet"]
    last, mean = scan_checkpoint(path), scan_checkpoint(path, ema=True)
    assert last.ignored == {"moving averages of the weights": len(averages) + 2}
    assert mean.ignored == {
        "last weights of the U-Net": len(averages),
        "moving averages of the weights": 2,
    }
    for found, added in ((last, 0), (mean, 1)):
        state = found.load()["unet"].state_dict()
        assert all(torch.equal(state[key], tensor + added) for key, tensor in own.items())
    del averages[next(iter(averages))]
    with pytest.raises(UndustError, match=r"1 missing: model_ema\.diffusion_model"):
        scan_checkpoint(save({**file, **averages}), ema=True)
    with pytest.raises(UndustError, match="no moving averages"):
        scan_checkpoint(save(file), ema=True)


@pytest.mark.parametrize("prefix", [FIRST_STAGE, "vae.", ""])
def test_a_first_stage_alone(prefix, tiny, save):
    config, own = tiny("sd1").parts["vae"]
    bare = to_original(None, {"vae": (config, own)})
    file = {prefix + key: tensor for key, tensor in bare.items()}
    found = scan_checkpoint(save({**file, "loss.logvar": torch.zeros(())}))
    assert found.variant is None
    assert found.ignored == {"training of the first stage": 1}
    state = found.load()["vae"].state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in own.items())


def test_what_files_hold_beside_is_told_apart(tiny, save):
    beside = {
        **dict.fromkeys(("betas", "alphas_cumprod_prev", "sqrt_recipm1_alphas_cumprod"), 1),
        **dict.fromkeys(("log_one_minus_alphas_cumprod", "posterior_mean_coef1", "logvar"), 1),
        **dict.fromkeys(("denoiser.sigmas", "low_scale_model.sqrt_one_minus_alphas_cumprod"), 1),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": 1,
        "cond_stage_model.logit_scale": 1,
        "first_stage_model.loss.perceptual_loss.net.weight": 1,
        "cond_stage_model.transformer.text_projection.weight": 1,
        "embedding_manager.string_to_param_dict.*": 1,
    }
    file = {key: torch.zeros(3) for key in beside}
    found = scan_checkpoint(save({**tiny("sd1").original(), **file}))
    assert found.ignored == {
        "constants": 1,
        "noise schedule": 8,
        "training of CLIP": 1,
        "training of the first stage": 1,
        "training of embeddings": 1,
        "unused parts of the text encoder": 1,
    }


def test_marks_are_read_and_need_no_network(tiny, hollow):
    found = scan_checkpoint(
        hollow({**shapes(tiny("sdxl").original()), "v_pred": (0,), "ztsnr": ()})
    )
    assert found.variant.prediction == "v_prediction"
    assert found.variant.process().ends_in_noise
    assert found.ignored == {"marks": 2}


def test_a_text_encoder_without_its_prefix(tiny, save):
    file = {
        key.replace("transformer.text_model.", "transformer."): tensor
        for key, tensor in tiny("sd1").original().items()
    }
    _, own = tiny("sd1").parts["text_encoder"]
    state = scan_checkpoint(save(file)).load()["text_encoder"].state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in own.items())


def test_attention_in_the_first_stage_may_be_matrices(tiny, save):
    file = tiny("sd1").original()
    flat = {k: t[:, :, 0, 0] if ".attn_1." in k and t.ndim == 4 else t for k, t in file.items()}
    assert flat["first_stage_model.encoder.mid.attn_1.q.weight"].ndim == 2
    _, own = tiny("sd1").parts["vae"]
    state = scan_checkpoint(save(flat)).load()["vae"].state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in own.items())


@SLOW
@given(data=st.data())
def test_whatever_is_missing_is_named(data, tiny, hollow):
    found = shapes(tiny("sd1").original())
    key = data.draw(st.sampled_from(sorted(found)))
    del found[key]
    with pytest.raises(UndustError) as error:
        scan_checkpoint(hollow(found))
    # By its own name, or by its neighbours' if it is what shows that there are any.
    network = key.split(".")[0]
    assert network in one_line(error) or "known: sd1" in str(error.value)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (
            "output_blocks.3.1.proj_in.bias",
            r"1 missing: model\.\S+output_blocks\.3\.1\.proj_in\.bias$",
        ),
        ("input_blocks.1.0.out_layers.3.weight", r"model\.…: input_blocks\.1\.0"),
        ("out.2.weight", r"model\.…: out\.2\.weight"),
        ("input_blocks.0.0.weight", "known: sd1"),
        ("middle_block.1.transformer_blocks.0.norm1.weight", "unknown: .*middle_block"),
        ("input_blocks.3.0.op.weight", "unknown: .*input_blocks"),
    ],
)
def test_what_is_missing_is_named(key, said, tiny, hollow):
    found = shapes(tiny("sd1").original())
    del found[UNET + key]
    with pytest.raises(UndustError, match=said) as error:
        scan_checkpoint(hollow(found))
    one_line(error)


@SLOW
@given(name=st.text(min_size=1, max_size=200).filter(lambda name: name != "__metadata__"))
def test_whatever_is_unknown_is_named(name, tiny, hollow):
    found = shapes(tiny("sdxl").original())
    try:
        name.encode()
    except UnicodeEncodeError:
        return
    if name in found:
        return
    with pytest.raises(UndustError, match=r"1 unknown: ['\"]?model\.diff") as error:
        scan_checkpoint(hollow({**found, UNET + name: (1,)}))
    one_line(error)
    # Outside of the networks it is named and left out, or tells what else the file is.
    try:
        beside = scan_checkpoint(hollow({**found, name: (1,)}))
        assert beside.unknown == (name,) or (beside.ignored and not beside.unknown)
    except UndustError as refused:
        assert "1 unknown: " in str(refused)
        assert any(re.search(pattern, name) for pattern in UNSUPPORTED)


def test_a_number_that_no_integer_can_be_is_a_name(tiny, hollow):
    name = f"cond_stage_model.model.transformer.resblocks.{'9' * 5000}.ln_1.bias"
    with pytest.raises(UndustError, match="1 unknown: cond_stage") as error:
        scan_checkpoint(hollow({**shapes(tiny("sd2").original()), name: (1,)}))
    one_line(error)


@pytest.mark.parametrize("name", ["text_projection", "text.transformer.resblocks.30.ln_1.bias"])
def test_only_the_text_encoder_has_unused_layers(name, tiny, hollow):
    found = scan_checkpoint(hollow({**shapes(tiny("sd2").original()), name: (1,)}))
    assert found.unknown == (name,)
    assert found.ignored == {"unknown tensors": 1}


def test_many_are_counted_and_the_first_are_named(tiny, hollow):
    found = shapes(tiny("sd1").original())
    rest = {key: shape for key, shape in found.items() if ".time_embed." not in key}
    with pytest.raises(UndustError) as error:
        scan_checkpoint(hollow({**rest, "a": (1,), "b": (1,), "c": (1,), "d": (1,)}))
    assert one_line(error).endswith(
        "hollow.safetensors: Stable Diffusion 1 does not fit: "
        "4 missing: model.diffusion_model.time_embed.0.bias, "
        "model.diffusion_model.time_embed.0.weight, model.diffusion_model.time_embed.2.bias "
        "and 1 more; 4 unknown: a, b, c and 1 more"
    )


def test_what_lies_beside_the_networks_is_told(tiny, save):
    zero = torch.zeros(1)
    whole = tiny("sd1").original()
    assert scan_checkpoint(save({**whole, "state_dict.foo": zero, "__step__": zero})).unknown == (
        "__step__",
        "state_dict.foo",
    )
    eyes = {"cond_stage_model.transformer.vision_model.a": zero, "safety_checker.b": zero}
    assert scan_checkpoint(save({**whole, **eyes})).unknown == ()


@pytest.mark.parametrize("name", ["control_model.a", "double_blocks.0.b", "lora_te_c"])
def test_what_tells_of_another_kind_of_model_is_refused(name, tiny, hollow):
    with pytest.raises(UndustError, match=f"1 unknown: {name}"):
        scan_checkpoint(hollow({**shapes(tiny("sd1").original()), name: (1,)}))


@SLOW
@given(
    seed=st.integers(0, 2**32),
    variant=st.sampled_from(sorted(VARIANTS)),
    faults=st.integers(1, 6),
)
def test_no_wrong_file_is_taken_for_a_right_one(seed, variant, faults, tiny, hollow):
    """Keys taken away, added, and tensors of other shapes, several at once."""
    chance = random.Random(seed)
    right = shapes(tiny(variant).original())
    found = dict(right)
    for _ in range(faults):
        key = chance.choice(sorted(found))
        match chance.randrange(4):
            case 0:
                del found[key]
            case 1:
                found[key + chance.choice([".weight", "s", ".0"])] = found[key]
            case 2:
                found[key] = (*found[key], chance.choice([2, 3]))
            case _:
                at = chance.randrange(max(1, len(found[key])))
                changed = list(found[key] or (1,))
                changed[at] = chance.choice([0, 1, 2, 5, changed[at] * 2])
                found[key] = tuple(changed)
    if found == right:
        return
    path = hollow(found)
    if path.stat().st_size > 2**28:
        return
    with pytest.raises(UndustError) as error:
        scan_checkpoint(path)
    one_line(error)


def test_whole_numbers_are_no_weights(tiny, hollow):
    with pytest.raises(UndustError, match=r"holds torch\.int64, not weights"):
        scan_checkpoint(hollow(shapes(tiny("sd1").original()), dtype="I64"))


@pytest.mark.parametrize("part", [0.0, 0.001, 0.01, 0.5, 0.999, 1.001])
def test_a_file_that_was_cut_short(part, tiny, save, tmp_path):
    whole = save(tiny("sd1").original()).read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((whole + bytes(len(whole)))[: int(part * len(whole))])
    with pytest.raises(UndustError, match=r"cut\.safetensors is ") as error:
        scan_checkpoint(cut)
    one_line(error)


def test_a_damaged_header_never_gets_further(tiny, hollow, tmp_path: Path):
    """Files with a few bytes of their headers changed: known, or one line why not."""
    path = hollow(shapes(tiny("sd1").original()))
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    chance = random.Random(0)
    refused = 0
    for _ in range(50):
        bad = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            bad[chance.randrange(8 + length)] = chance.randrange(256)
        path.write_bytes(bad)
        try:
            scan_checkpoint(path)
        except UndustError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 40
