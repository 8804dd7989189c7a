"""Writes svd-tiny.safetensors by the original code: see README.md beside this file.

    PYTHONPATH=tests:CHECKOUT python tests/formats/original/films/make.py CHECKOUT

CHECKOUT: a checkout of Stability-AI/generative-models. Needs einops and open_clip_torch too.
"""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from made_weights import made_weights, uniform

FILMS, FRAMES, NUMBERS = 2, 3, [[6.0, 127.0, 0.02], [9.0, 30.0, 0.1]]
TIMES = [1.3, -0.7]
UNET: dict[str, Any] = {  # of svd.yaml, with fewer channels
    "adm_in_channels": 48,
    "num_classes": "sequential",
    "in_channels": 8,
    "out_channels": 4,
    "model_channels": 64,
    "attention_resolutions": [2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 2],
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
    "transformer_depth": 1,
    "context_dim": 24,
    "spatial_transformer_attn_type": "softmax",
    "extra_ff_mix_layer": True,
    "use_spatial_context": True,
    "merge_strategy": "learned_with_images",
    "video_kernel_size": [3, 1, 1],
}
FIRST_STAGE: dict[str, Any] = {
    "attn_type": "vanilla",
    "double_z": True,
    "z_channels": 4,
    "resolution": 16,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2, 2],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
IMAGE_ENCODER: dict[str, Any] = {
    "image_size": 224,
    "patch_size": 112,
    "width": 160,
    "layers": 2,
    "heads": 2,
    "mlp_ratio": 2.0,
    "output_dim": 24,
}


class _Absent(ModuleType):
    """A package that is imported and not used: open_clip's torchvision."""

    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return nn.Identity


class _Absences:
    """Finds torchvision and its modules."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        found = name.partition(".")[0] == "torchvision"
        return ModuleSpec(name, self, is_package=True) if found else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Absent(spec.name)

    def exec_module(self, _: ModuleType) -> None:
        pass


def main(checkout: Path) -> None:
    sys.meta_path.insert(0, _Absences())  # type: ignore[arg-type]
    # Their __init__.py import the code for training, which is not needed.
    found = find_spec("open_clip")
    assert found and found.submodule_search_locations, "pip install --no-deps open_clip_torch"
    for package, place in {
        "sgm": checkout / "sgm",
        "sgm.modules": checkout / "sgm/modules",
        "open_clip": found.submodule_search_locations[0],
    }.items():
        module = ModuleType(package)
        module.__path__ = [str(place)]
        sys.modules[package] = module
    from open_clip.transformer import VisionTransformer
    from sgm.modules.autoencoding.temporal_ae import VideoDecoder
    from sgm.modules.diffusionmodules.model import Encoder
    from sgm.modules.diffusionmodules.util import timestep_embedding
    from sgm.modules.diffusionmodules.video_model import VideoUNet

    parts = {
        "model.diffusion_model.": VideoUNet(**UNET),
        "first_stage_model.decoder.": VideoDecoder(**FIRST_STAGE, video_kernel_size=[3, 1, 1]),
        "conditioner.embedders.3.encoder.encoder.": Encoder(**FIRST_STAGE),
        "conditioner.embedders.3.encoder.quant_conv.": nn.Conv2d(8, 8, 1),
        "conditioner.embedders.0.open_clip.model.visual.": VisionTransformer(**IMAGE_ENCODER),
    }
    shapes = {
        prefix + name: tuple(tensor.shape)
        for prefix, part in parts.items()
        for name, tensor in part.state_dict().items()
    }
    weights = made_weights(shapes)
    for prefix, part in parts.items():
        part.load_state_dict(
            {key[len(prefix) :]: weights[key] for key in weights if key.startswith(prefix)}
        )
        part.eval()
    unet, decoder, encoder, quant_conv, visual = parts.values()

    def each(x: Tensor) -> Tensor:  # of a film: for each of its frames
        return x.repeat_interleave(FRAMES, 0)

    waves = timestep_embedding(torch.tensor(NUMBERS).flatten(), UNET["adm_in_channels"] // 3)
    with torch.no_grad():
        outputs = {
            "unet": unet(
                uniform("x", (FILMS * FRAMES, 8, 8, 8)),
                timesteps=each(torch.tensor(TIMES)),
                context=each(uniform("context", (FILMS, 1, 24))),
                y=each(waves.reshape(FILMS, -1)),
                num_video_frames=FRAMES,
                image_only_indicator=torch.zeros(FILMS, FRAMES),
            ),
            "frames": decoder(uniform("z", (FRAMES, 4, 4, 4)), timesteps=FRAMES),
            "moments": quant_conv(encoder(uniform("picture", (1, 3, 16, 16)))),
            "embedding": visual(uniform("normalised", (1, 3, 224, 224))),
        }
    path = Path(__file__).with_name("svd-tiny.safetensors")
    outputs = {name: output.contiguous() for name, output in outputs.items()}
    save_file(outputs, path, {"shapes": json.dumps(shapes)})
    for name, output in outputs.items():
        sys.stdout.write(f"{name} {tuple(output.shape)}, deviation {output.std():.3g}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
