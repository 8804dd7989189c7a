from __future__ import annotations

import pytest
import torch
from diffusers import Transformer2DModel

from undust.networks.attention import SHORT, SpatialTransformer, attend


@pytest.mark.parametrize("linear", [False, True])
def test_spatial_transformer_on_faint_pictures(linear, shake, assert_close) -> None:
    # With a variance of 1e-6 the norm's epsilon decides half of what comes out.
    theirs = Transformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=32,
        num_layers=2,
        norm_num_groups=8,
        cross_attention_dim=24,
        use_linear_projection=linear,
    ).eval()
    shake(theirs)
    ours = SpatialTransformer(32, depth=2, heads=4, context_channels=24, groups=8, linear=linear)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, context = 1e-3 * torch.randn(2, 32, 5, 6), torch.randn(2, 7, 24)
    assert_close(ours(x, context), theirs(x, encoder_hidden_states=context).sample)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", [7, SHORT, SHORT + 1])
@torch.enable_grad()
def test_attention_is_the_same_with_a_gradient(tokens, causal, assert_close) -> None:
    """Short sequences are computed another way when a gradient is wanted: torch's own is right."""
    q, k, v, cost = torch.randn(4, 2, tokens, 12)
    expected = attend(q, k, v, heads=3, causal=causal)
    wanted = [part.clone().requires_grad_() for part in (q, k, v)]
    got = attend(*wanted, heads=3, causal=causal)
    assert_close(got, expected)
    # In float64 and with torch's kernel: what the gradients should be.
    exact = [part.double().requires_grad_() for part in (q, k, v)]
    heads = [part.reshape(2, tokens, 3, 4).transpose(1, 2) for part in exact]
    result = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=causal)
    reference = torch.autograd.grad(result.transpose(1, 2).flatten(2), exact, cost.double())
    for ours, theirs in zip(torch.autograd.grad(got, wanted, cost), reference, strict=True):
        assert_close(ours, theirs.float())
