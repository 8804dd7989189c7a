"""The networks' configurations: the published field names and defaults, checked one by one.

No torch here: a recipe or a model folder can be read and refused before anything heavy starts.
"""

from undust.networks.config.autoencoder import AutoencoderConfig, EncoderDecoderConfig, VQConfig
from undust.networks.config.base import LARGEST, DenoiserConfig, NetworkConfig
from undust.networks.config.dit import DiTConfig, PixArtConfig
from undust.networks.config.jit import JiTConfig
from undust.networks.config.text_encoder import TextEncoderConfig
from undust.networks.config.tiny import TinyConfig
from undust.networks.config.unet import ControlNetConfig, UNetConfig
from undust.networks.config.unet2d import UNet2DConfig
from undust.networks.config.video import SpatioTemporalUNetConfig, TemporalAutoencoderConfig

__all__ = [
    "LARGEST",
    "AutoencoderConfig",
    "ControlNetConfig",
    "DenoiserConfig",
    "EncoderDecoderConfig",
    "DiTConfig",
    "JiTConfig",
    "NetworkConfig",
    "PixArtConfig",
    "SpatioTemporalUNetConfig",
    "TemporalAutoencoderConfig",
    "TextEncoderConfig",
    "UNet2DConfig",
    "TinyConfig",
    "UNetConfig",
    "VQConfig",
]
