"""Self-attention as a part, and its measures on networks and pictures with known values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from part_setups import emoji, setup, tiny
from undust.adapters.ablation import changed, local_self_attention, without_self_attention
from undust.explain.parts import PARTS
from undust.explain.parts import self_attention as part
from undust.explain.texts import Language
from undust.networks.attention import Attention
from undust.networks.base import DenoiserNetwork
from undust.pipeline import LatentDiffusion


@pytest.mark.parametrize(("model", "language"), [(emoji, "en"), (tiny, "ko")])
def test_it_runs(model: Callable[[], LatentDiffusion], language: Language):
    found = PARTS["self-attention"](setup(model(), language))
    assert len(found.figures) == 3
    assert {each.name for each in found.effects} == {
        *("symmetry", "symmetry_local", "rise_at_high_noise", "mirrored_attention")
    }


def test_symmetry():
    halves = torch.where(torch.arange(8) < 4, -1.0, 1.0).expand(1, 3, 8, 8)
    bands = halves.mT  # the same at the left and at the right
    quarter = torch.zeros(1, 3, 8, 8)
    quarter[..., :2] = 1  # the correlation of (1, 0, 0, 0) with (0, 0, 0, 1)
    pictures = torch.cat([bands, halves, quarter])
    assert part.symmetry(pictures) == pytest.approx([1, -1, -1 / 3], abs=1e-6)


def equal_attention(network: DenoiserNetwork) -> DenoiserNetwork:
    """Queries of 0: each place attends to all places alike."""

    def zero(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(output)

    for module in network.modules():
        if isinstance(module, Attention):
            module.to_q.register_forward_hook(zero)
    return network


def test_attention_that_is_equal_everywhere():
    model = tiny()
    even = replace(model, unet=equal_attention(changed()(model.unet)))
    across, down = part.mirrored(setup(even))
    assert across == pytest.approx([1] * 3, abs=1e-5)
    assert down == pytest.approx([1] * 3, abs=1e-5)


def test_attention_is_a_probability():
    own = setup(tiny())
    layers = part.attention(own, own.latents, [None] * len(own.latents), [(0.1, 0.9), (0.5, 0.5)])
    for found in layers:
        assert found.shape == (3, 2, *own.latents.shape[2:])
        assert torch.allclose(found.sum((2, 3)), torch.ones(3, 2), atol=1e-5)


def test_far_influence_with_a_window_of_the_whole_layer():
    own = setup(emoji())
    whole = part.far_influence(own, None)
    assert part.far_influence(own, changed(local_self_attention(64))) == pytest.approx(
        whole, abs=1e-4
    )
    off = part.far_influence(own, changed(without_self_attention))
    assert all(0 < one != two for one, two in zip(off, whole, strict=True))
