from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderTiny

from undust.networks.config import TinyConfig
from undust.networks.tiny import TinyAutoencoder

LAYOUTS = {
    "as published, narrower": {
        "encoder_block_out_channels": (8,) * 4,
        "decoder_block_out_channels": (8,) * 4,
        "latent_channels": 16,
    },
    "one level": {
        "encoder_block_out_channels": (8,),
        "decoder_block_out_channels": (12,),
        "num_encoder_blocks": (2,),
        "num_decoder_blocks": (0,),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parity_with_diffusers(layout, shake, assert_close) -> None:
    theirs = AutoencoderTiny.from_config(TinyConfig(**LAYOUTS[layout]).model_dump()).eval()
    shake(theirs)
    ours = TinyAutoencoder(TinyConfig.read(dict(theirs.config)))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = 2 * torch.rand(3, 3, 16, 24) - 1
    latents = ours.encode(x)
    assert_close(latents.mean, theirs.encode(x).latents)
    assert (latents.logvar == -torch.inf).all()
    z = 4 * torch.randn_like(latents.mean)
    picture = ours.decode(z)
    assert_close(picture, theirs.decode(z).sample)
    assert picture.shape == x.shape
    assert ours.last_layer.shape[0] == 3
