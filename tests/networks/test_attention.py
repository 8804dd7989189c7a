from __future__ import annotations

import pytest
import torch
from diffusers import Transformer2DModel

from undust.networks.attention import SpatialTransformer


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
