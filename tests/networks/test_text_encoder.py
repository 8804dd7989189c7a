from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

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


def test_starts_with_the_spread_that_transformers_starts_with() -> None:
    fields = {**TINY, "vocab_size": 2000, "hidden_size": 128, "intermediate_size": 256}
    fields["initializer_factor"] = 1.5
    theirs = published(CLIPTextModel(CLIPTextConfig(**fields)))
    for key, weight in TextEncoder(TextEncoderConfig(**fields)).state_dict().items():
        # 2,560 draws at least: one standard error of their spread is 1.4 %.
        torch.testing.assert_close(weight.std(), theirs[key].std(), rtol=0.1, atol=1e-8)
