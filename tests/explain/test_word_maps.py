"""Word maps: closed forms, and the same maps by diffusers and a recording attention processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.nn import functional as F

import undust
from undust.conditioning.text import PromptWord
from undust.diffusion.noise import PictureNoise
from undust.explain import trace
from undust.explain.word_maps import (
    attention_shares,
    auc,
    centres_of_mass,
    of_words,
    unrepeated,
    word_maps,
)
from undust.formats.folder import read_json
from variants import build

PROMPT = "a big cat, oil painting of a dog"
NAMES = ["a", "big", "cat", "oil", "painting", "of", "a", "dog"]
SIZE, STEPS, SCALE, SEED = 64, 3, 3.0, 5


def test_auc():
    acts = torch.tensor([[True, True], [False, False]])
    for map_, expected in (
        ([[3.0, 4.0], [1.0, 2.0]], 1),
        ([[1.0, 2.0], [3.0, 4.0]], 0),
        ([[1.0, 1.0], [1.0, 1.0]], 0.5),
        ([[4.0, 2.0], [3.0, 1.0]], 0.75),
    ):
        assert auc(torch.tensor(map_), acts) == expected


def test_words_are_sums_of_their_tokens():
    probabilities = torch.rand(2, 3, 5)
    words = [PromptWord("a", (1,)), PromptWord("b", (2, 4))]
    found = of_words(probabilities, words)
    assert torch.equal(found[0], probabilities[..., 1])
    assert torch.equal(found[1], probabilities[..., 2] + probabilities[..., 4])


def test_repeated_tokens_are_one():
    once = torch.rand(2, 2, 3)
    assert torch.allclose(unrepeated(torch.cat([once / 2, once / 2], -1), 3), once)


def test_maps_are_means_of_layers_at_the_latents_size():
    words = [PromptWord("a", (0,))]
    layers = {"down": torch.full((4, 4, 2), 0.2), "mid": torch.full((2, 2, 2), 0.6)}
    assert torch.allclose(word_maps(layers, words, (4, 4)), torch.tensor(0.4))
    assert torch.allclose(word_maps(layers, words, (4, 4), "finest"), torch.tensor(0.2))
    assert torch.equal(word_maps({}, words, (4, 4)), torch.zeros(1, 4, 4))


def test_shares_and_centres():
    maps = torch.zeros(3, 4, 8)
    maps[0, 1, 6], maps[1] = 3.0, 0.5 / 32
    maps[2, 0, 0], maps[2, 3, 7] = 0.25, 0.25
    assert torch.allclose(attention_shares(maps), torch.tensor([0.75, 0.125, 0.125]))
    expected = torch.tensor([[6.5 / 8, 1.5 / 4], [0.5, 0.5], [0.5, 0.5]])
    assert torch.allclose(centres_of_mass(maps), expected)
    assert torch.equal(attention_shares(torch.zeros(2, 2, 2)), torch.zeros(2))


class Recording(AttnProcessor):
    """diffusers' processor of attention, which keeps the probabilities of the conditional half."""

    def __init__(self, kept: list[Tensor]) -> None:
        super().__init__()
        self.kept = kept

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any, **rest: Any):
        queries = attn.head_to_batch_dim(attn.to_q(hidden_states))
        keys = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        scores = attn.get_attention_scores(queries, keys)
        self.kept.append(scores.unflatten(0, (len(hidden_states), -1))[-1])
        return super().__call__(attn, hidden_states, encoder_hidden_states, **rest)


def by_diffusers(pipe: Any, start: Tensor) -> Tensor:
    """The words' maps: mean over heads, layers and steps; tokens by the pipeline's tokenizer."""
    kept: list[Tensor] = []
    pipe.unet.set_attn_processor(
        {
            name: Recording(kept) if ".attn2." in name else processor
            for name, processor in pipe.unet.attn_processors.items()
        }
    )
    pipe(
        PROMPT,
        latents=start,
        height=SIZE,
        width=SIZE,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        output_type="latent",
    )
    layers = len([name for name in pipe.unet.attn_processors if ".attn2." in name])
    assert len(kept) == STEPS * layers
    side, total = start.shape[-1], torch.zeros(len(NAMES), *start.shape[2:])
    for scores in kept:
        small = int(scores.shape[1] ** 0.5)
        place, maps = 1, []  # behind the start token
        for word in PROMPT.split():
            ids = pipe.tokenizer(word.strip(","), add_special_tokens=False).input_ids
            own = scores[:, :, place : place + len(ids)].sum(2).mean(0).reshape(1, 1, small, small)
            maps.append(F.interpolate(own, (side, side), mode="bicubic").clamp(min=0)[0, 0])
            place += len(ids) + word.count(",")
        total += torch.stack(maps) / len(kept)
    return total


@pytest.mark.parametrize("variant", ["sd1", "sdxl"])
def test_maps_agree_with_diffusers(variant: str, tmp_path: Path):
    build(variant).save(tmp_path / variant)
    kind = getattr(diffusers, read_json(tmp_path / variant / "model_index.json")["_class_name"])
    pipe = kind.from_pretrained(
        tmp_path / variant, **({} if "XL" in kind.__name__ else {"safety_checker": None})
    )
    pipe.set_progress_bar_config(disable=True)
    model = undust.load(tmp_path / variant, engine="torch")
    options: dict[str, Any] = {"sampler": "ddim", "schedule": "leading", "guidance": SCALE}
    found = trace(model, PROMPT, seed=SEED, steps=STEPS, size=SIZE, **options)
    assert [word.text for word in found.words] == NAMES
    start = PictureNoise([SEED], model.latent_shape(SIZE, SIZE)).start()
    expected = by_diffusers(pipe, start)
    assert found.maps.shape == expected.shape == (len(NAMES), 16, 16)
    apart = (found.maps - expected).norm() / expected.norm()
    assert apart < 1e-4
    assert (expected.amax() - expected.amin()) / expected.mean() > 0.1, "the maps are not flat"
