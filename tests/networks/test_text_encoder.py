from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from undust.errors import UndustError
from undust.networks.config import TextEncoderConfig
from undust.networks.text_encoder import TextEncoder

TINY = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 20,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# text_encoder_2/config.json of huggingface.co/stabilityai/stable-diffusion-xl-base-1.0.
SDXL_TEXT_ENCODER_2 = {
    "architectures": ["CLIPTextModelWithProjection"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 5120,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "pad_token_id": 1,
    "projection_dim": 1280,
    "torch_dtype": "float16",
    "transformers_version": "4.32.0.dev0",
    "vocab_size": 49408,
}
PROJECTING = "CLIPTextModelWithProjection"


def published(theirs: CLIPTextModel) -> dict[str, torch.Tensor]:
    """The state under the keys of published files, which transformers 5 leaves the front off."""
    prefix = "text_model."
    state = theirs.state_dict()
    return {prefix + key.removeprefix(prefix): value for key, value in state.items()}


def pair(shake, **changes) -> tuple[TextEncoder, CLIPTextModel]:
    theirs = CLIPTextModel(CLIPTextConfig(**{**TINY, **changes})).eval()
    shake(theirs)
    ours = TextEncoder(TextEncoderConfig.read(theirs.config.to_dict()))
    ours.load_state_dict(published(theirs), strict=True)
    return ours, theirs


@pytest.mark.parametrize("length", [1, 13, 20])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_parity_with_transformers(activation, length, shake, assert_close) -> None:
    ours, theirs = pair(shake, hidden_act=activation, layer_norm_eps=1e-4)
    ids = torch.randint(3, 50, (4, length))
    assert_close(ours(ids), theirs(ids).last_hidden_state)


def test_transformers_opens_ours(tmp_path: Path, shake, assert_close) -> None:
    ours = TextEncoder(TextEncoderConfig(**TINY))
    shake(ours)
    (tmp_path / "config.json").write_text(ours.config.model_dump_json())
    save_file(ours.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, report = CLIPTextModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    ids = torch.randint(3, 50, (2, 20))
    assert_close(ours(ids), theirs.eval()(ids).last_hidden_state)


def projecting(shake, **changes) -> tuple[TextEncoder, CLIPTextModelWithProjection]:
    fields = {"architectures": [PROJECTING], "projection_dim": 24, **TINY, **changes}
    theirs = CLIPTextModelWithProjection(CLIPTextConfig(**fields)).eval()
    shake(theirs)
    ours = TextEncoder(TextEncoderConfig.read(theirs.config.to_dict()))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def sentences(end: int) -> torch.Tensor:
    """Rows of 20 tokens: 1, words from 3 to 47, `end` in some place, and the padding."""
    ids = torch.randint(3, 48, (4, 20))
    ids[:, 0] = 1
    for row, place in zip(ids, (1, 7, 12, 19), strict=True):
        row[place] = end
        row[place + 1 :] = torch.where(torch.arange(19 - place) % 2 == 0, 0, end)
    return ids


@pytest.mark.parametrize("end", [2, 49])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_reads_as_transformers_with_a_projection(activation, end, shake, assert_close) -> None:
    """Every layer's states, as SDXL is shown the last but one, and the end's.

    An end that is called 2 is the largest number of a row: 49.
    """
    ours, theirs = projecting(shake, hidden_act=activation, eos_token_id=end)
    ids = sentences(49)
    expected = theirs(ids, output_hidden_states=True)
    assert len(expected.hidden_states) == 4
    for skip in range(4):
        got = ours.read(ids, skip=skip, norm=False)
        assert_close(got.states, expected.hidden_states[-1 - skip])
        assert_close(got.pooled, expected.text_embeds)
    assert_close(ours.read(ids).states, expected.last_hidden_state)
    assert got.pooled.shape == (4, 24)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_skip_is_that_of_diffusers(activation, shake, assert_close) -> None:
    """Stable Diffusion 1: the states of an earlier layer through the final norm."""
    ours, theirs = pair(shake, hidden_act=activation)
    ids = torch.randint(3, 50, (2, 20))
    states = theirs(ids, output_hidden_states=True).hidden_states
    for skip in range(4):
        got = ours.read(ids, skip=skip)
        assert_close(got.states, theirs.final_layer_norm(states[-(skip + 1)]))
        assert got.pooled is None
    assert torch.equal(ours.read(ids).states, ours(ids))


def test_rows_are_what_a_longer_vocabulary_is(shake, assert_close) -> None:
    """As diffusers does it, who puts new rows into the table."""
    ours, theirs = projecting(shake, eos_token_id=49)
    rows = torch.randn(3, 32)
    theirs.resize_token_embeddings(53)
    theirs.get_input_embeddings().weight[50:] = rows
    ids = sentences(49)
    ids[0, 3:6], ids[3, 2] = torch.tensor([50, 51, 52]), 51
    expected = theirs(ids, output_hidden_states=True)
    got = ours.read(ids, skip=1, norm=False, rows=rows)
    assert_close(got.states, expected.hidden_states[-2])
    assert_close(got.pooled, expected.text_embeds)
    # Where the end is the largest number, the rows' larger ones are not taken for it.
    legacy = TextEncoder(ours.config.model_copy(update={"eos_token_id": 2}))
    legacy.load_state_dict(ours.state_dict())
    assert torch.equal(legacy.read(ids, rows=rows).pooled, ours.read(ids, rows=rows).pooled)


@pytest.mark.parametrize("skip", [4, -1])
def test_there_are_only_so_many_layers(skip, shake) -> None:
    ours, _ = pair(shake)
    with pytest.raises(UndustError, match=f"clip skip: {skip} is not 0 to 3"):
        ours.read(torch.zeros(1, 3, dtype=torch.int64), skip=skip)


def test_sdxls_second_text_encoder_has_the_published_keys() -> None:
    with torch.device("meta"):
        ours = TextEncoder(TextEncoderConfig.read(SDXL_TEXT_ENCODER_2))
        theirs = CLIPTextModelWithProjection(CLIPTextConfig(**SDXL_TEXT_ENCODER_2))
    published = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == published
    assert published["text_projection.weight"] == (1280, 1280)


@pytest.mark.parametrize(
    ("field", "value"), [("projection_dim", None), ("projection_dim", 0), ("eos_token_id", [2, 3])]
)
def test_a_projection_needs_its_width_and_its_end(field, value) -> None:
    with pytest.raises(UndustError, match=f"needs .*{field}"):
        TextEncoderConfig.read({**SDXL_TEXT_ENCODER_2, field: value})


def test_transformers_opens_our_projection(tmp_path: Path, shake, assert_close) -> None:
    ours, _ = projecting(shake)
    (tmp_path / "config.json").write_text(ours.config.model_dump_json())
    save_file(ours.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, report = CLIPTextModelWithProjection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    ids = sentences(49)
    assert_close(ours.read(ids).pooled, theirs.eval()(ids).text_embeds)


def test_a_token_sees_only_those_before_it(shake) -> None:
    ours, _ = pair(shake)
    ids = torch.randint(3, 50, (1, 20))
    changed = ids.clone()
    changed[:, 10:] = (ids[:, 10:] + 1) % 50
    before, after = ours(ids), ours(changed)
    torch.testing.assert_close(before[:, :10], after[:, :10])
    assert not torch.isclose(before[:, 10:], after[:, 10:]).all(dim=-1).any()


def test_too_many_tokens_are_refused(shake) -> None:
    ours, _ = pair(shake)
    with pytest.raises(UndustError, match=r"21 tokens are too many.*takes 20"):
        ours(torch.zeros(1, 21, dtype=torch.int64))


@pytest.mark.parametrize("model", [CLIPTextModel, CLIPTextModelWithProjection])
def test_starts_with_the_spread_that_transformers_starts_with(model) -> None:
    fields = {**TINY, "vocab_size": 2000, "hidden_size": 128, "intermediate_size": 256}
    fields |= {"initializer_factor": 1.5, "architectures": [model.__name__]}
    theirs = model(CLIPTextConfig(**fields)).state_dict()
    if model is CLIPTextModel:
        theirs = {"text_model." + key: tensor for key, tensor in theirs.items()}
    own = TextEncoder(TextEncoderConfig(**fields)).state_dict()
    assert own.keys() == theirs.keys()
    for key, weight in own.items():
        # 2,560 draws at least: one standard error of their spread is 1.4 %.
        torch.testing.assert_close(weight.std(), theirs[key].std(), rtol=0.1, atol=1e-8)
