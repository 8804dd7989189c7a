"""Learnt words: every layout that there is, and one line for what is none of them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from undust.conditioning import tokenizer as tokenizers
from undust.conditioning.text import TextConditioner
from undust.errors import UndustError
from undust.formats import safetensors_file, textual_inversion
from undust.networks.config import TextEncoderConfig
from undust.networks.text_encoder import TextEncoder

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def save(tmp_path: Path):
    def write(tensors: dict[str, Tensor]) -> Path:
        path = tmp_path / "word.safetensors"
        safetensors_file.save(path, tensors)
        return path

    return write


def vectors(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name", ["emb_params", "emp_params", "string_to_param.*", "*", "step", "<cat-toy>", "고양이"]
)
def test_one_tensor_is_for_whoever_is_as_wide(name, dtype, save):
    given_ = vectors(3, 8).to(dtype)
    loaded = textual_inversion.load(save({name: given_}))
    assert loaded.keys() == {""}
    assert loaded[""].dtype == torch.float32
    assert torch.equal(loaded[""], given_.float())


@pytest.mark.parametrize("count", [1, 75])
def test_both_text_encoders_of_sdxl(count, save):
    tensors = {"clip_l": vectors(count, 8), "clip_g": vectors(count, 12)}
    loaded = textual_inversion.load(save(tensors))
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("name", ["clip_l", "clip_g"])
def test_one_text_encoder_of_sdxl(name, save):
    loaded = textual_inversion.load(save({name: vectors(2, 8)}))
    assert torch.equal(loaded[name], vectors(2, 8))


def test_a_single_vector(save):
    loaded = textual_inversion.load(save({"<cat>": vectors(8)}))
    assert torch.equal(loaded[""], vectors(8)[None])
    both = textual_inversion.load(save({"clip_l": vectors(8), "clip_g": vectors(1, 12)}))
    assert [tuple(both[name].shape) for name in ("clip_l", "clip_g")] == [(1, 8), (1, 12)]


@pytest.mark.parametrize("count", [1, 5])
def test_lengths_of_1_before_it_are_left_off(count, save):
    loaded = textual_inversion.load(save({"emb_params": vectors(1, count, 8)}))
    assert torch.equal(loaded[""], vectors(1, count, 8)[0])


def test_notes_beside_the_vectors_are_not_read(save):
    """AUTOMATIC1111's, as they come out of a pickle."""
    notes = {"step": torch.tensor(500), "string_to_token.*": torch.tensor(265)}
    loaded = textual_inversion.load(save({"string_to_param.*": vectors(2, 8), **notes}))
    assert torch.equal(loaded[""], vectors(2, 8))


def test_several_words_in_one_file(save):
    file = {"<s0>": vectors(2, 8), "<s1>": vectors(8)}
    path = save(file)
    assert textual_inversion.words(path) == ["<s0>", "<s1>"]
    assert torch.equal(textual_inversion.load(path, "<s0>")[""], file["<s0>"])
    assert torch.equal(textual_inversion.load(path, "<s1>")[""], file["<s1>"][None])
    says = r"has 2 words: <s0>, <s1>, not 'word'; name one .* word\.safetensors=<s0>$"
    with pytest.raises(UndustError, match=says):
        textual_inversion.load(path, "word")


def test_words_of_pivotal_tuning(save):
    tensors = {"text_encoders_0": vectors(2, 8), "text_encoders_1": vectors(2, 12)}
    loaded = textual_inversion.load(save(tensors))
    assert torch.equal(loaded["clip_l"], tensors["text_encoders_0"])
    assert torch.equal(loaded["clip_g"], tensors["text_encoders_1"])


def test_words_that_are_bundled_with_a_lora(save):
    file = {
        "lora_unet_conv_in.lora_up.weight": vectors(320, 4, 1, 1),
        "lora_unet_conv_in.strange": vectors(3),
        "bundle_emb.a cat.string_to_param.*": vectors(2, 8),
        "bundle_emb.a.toy.emb_params": vectors(3, 8),
    }
    path = save(file)
    assert len(textual_inversion.load(path, "a cat")[""]) == 2
    assert len(textual_inversion.load(path, "a.toy")[""]) == 3
    with pytest.raises(UndustError, match=r"has 2 words: a cat, a\.toy"):
        textual_inversion.load(path, "a")


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "holds no tensors"),
        ({"a": vectors(1, 8), "b": vectors(1, 8)}, "has 2 words: a, b, not ''"),
        ({"a": vectors(1, 8), "b": vectors(1, 9)}, "its vectors differ in width"),
        ({"a": vectors(1, 8), "b": vectors(3, 8, 3, 3)}, r"not a textual inversion: b is \[3, 8"),
        ({"clip_l": vectors(1, 8), "t5xxl": vectors(1, 8)}, "1 tensors: t5xxl beside a word's"),
        ({"clip_l": vectors(1, 8), "emb_params": vectors(1, 8)}, "and clip_l are for the same"),
        ({"clip_l": vectors(1, 8), "text_encoders_0": vectors(1, 8)}, "are for the same word"),
        ({"clip_l_out": vectors(1, 8)}, "trained at the text encoder's output, which is not"),
        ({"emp_params": vectors(1, 8), "emp_params_out": vectors(1, 8)}, "encoder's output"),
        ({"a.lora_up.weight": vectors(1, 8)}, "textual inversion: it holds 1 tensors: a.lora"),
        ({"clip_l": vectors(2, 8), "clip_g": vectors(1, 12)}, "have to be equal"),
        ({"a": vectors(76, 8)}, r"a is \[76, 8\], not 1 to 75 vectors"),
        ({"a": vectors(0, 8)}, r"a is \[0, 8\]"),
        ({"a": vectors(2, 0)}, r"a is \[2, 0\]"),
        ({"a": vectors(0)}, r"a is \[0\]"),
        ({"a": vectors()}, r"a is \[\]"),
        ({"a": vectors(2, 2, 8)}, r"a is \[2, 2, 8\]"),
        ({"a": vectors(1, 76, 8)}, r"a is \[1, 76, 8\]"),
        ({"a": vectors(1, 8193)}, r"at most 8,192 numbers"),
        ({"a": torch.ones(2, 8, dtype=torch.int64)}, r"a holds torch\.int64, not vectors"),
        ({"a": torch.ones(2, 8, dtype=torch.bool)}, "not vectors"),
        ({"a": torch.ones(2, 8, dtype=torch.complex64)}, "not vectors"),
        ({"a": torch.tensor([[1.0, torch.nan]])}, "it holds NaN or infinity"),
        ({"a": torch.tensor([[1.0, -torch.inf]])}, "it holds NaN or infinity"),
        ({"a": torch.tensor([[1e300]], dtype=torch.float64)}, "it holds NaN or infinity"),
        ({"a\nb" * 99: vectors(99, 8)}, r"is not a textual inversion: 'a\\nb"),
    ],
)
def test_what_is_none_is_refused(tensors, said, save):
    with pytest.raises(UndustError, match=said) as error:
        textual_inversion.load(save(tensors))
    assert "word.safetensors" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_pickles_and_what_is_not_there_are_named(tmp_path: Path):
    path = tmp_path / "word.pt"
    torch.save({"string_to_param": {"*": vectors(1, 8)}}, path)
    with pytest.raises(UndustError, match="it is a pickle"):
        textual_inversion.load(path)
    with pytest.raises(UndustError, match="cannot be read"):
        textual_inversion.load(tmp_path / "other.safetensors")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), changes=st.integers(1, 4))
@example(seed=0, changes=1)
def test_a_damaged_file_gives_vectors_or_one_line(seed, changes, save):
    """Bytes changed, put in and taken away, mostly in the header."""
    path = save({"clip_l": vectors(2, 8), "clip_g": vectors(2, 12)})
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    chance = random.Random(seed)
    for _ in range(changes):
        at = chance.randrange(header if chance.random() < 0.8 else len(data))
        match chance.randrange(4):
            case 0:
                del data[at:]
            case 1:
                data[at:at] = bytes([chance.randrange(256)])
            case _:
                data[at : at + 1] = bytes([chance.randrange(256)])
        data = data or bytearray(1)
    path.write_bytes(data)
    try:
        loaded = textual_inversion.load(path)
    except UndustError as error:
        assert "\n" not in str(error)
        return
    for own in loaded.values():
        assert own.dtype == torch.float32
        assert own.isfinite().all()
        assert 1 <= len(own) <= 75


def test_a_loaded_word_is_read(save):
    """From the file to the states: the word's own vectors are its tokens' embeddings."""
    tokenizer = tokenizers.train(["a cat"], size=600, length=8)
    config = TextEncoderConfig(
        vocab_size=len(tokenizer.vocabulary), hidden_size=8, intermediate_size=8,
        num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=8,
    )  # fmt: skip
    torch.manual_seed(0)
    encoder = TextEncoder(config)
    table = encoder.get_parameter("text_model.embeddings.token_embedding.weight")
    known = [number for (number,) in tokenizer.words("a cat")]
    loaded = textual_inversion.load(save({"emb_params": table[known]}))
    taught = TextConditioner(tokenizer, encoder, embeddings={"toy": loaded[""]})
    torch.testing.assert_close(taught(["toy"])[0], encoder(tokenizer(["a cat"])))
