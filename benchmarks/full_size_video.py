"""Stable Video Diffusion at full size: seconds a step and of decoding, peak memory.

    python benchmarks/full_size_video.py [--frames 14] [--steps 1] [--guidance 3]
        [--size 1024x576] [--engine auto]

Random weights, written once as a model folder of float16 into --scratch (5 GB) by diffusers and
transformers; the film is made by undust in this process.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import nn

from undust.formats.components import save_component
from undust.formats.folder import write_json
from undust.formats.networks import empty_network
from undust.networks.config import SpatioTemporalUNetConfig, TemporalAutoencoderConfig
from undust.networks.video import SpatioTemporalUNet, TemporalAutoencoder

SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}


def filled(network: nn.Module) -> nn.Module:
    """With random weights in float16."""
    generator = torch.Generator().manual_seed(0)
    network.to_empty(device="cpu")
    network.half()
    for key, parameter in network.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.data.normal_(float("norm" in key and "weight" in key), 0.02)
    return network.requires_grad_(False)


def write(folder: Path) -> None:
    """The model's folder."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    unet = SpatioTemporalUNetConfig.read(
        {"sample_size": 96, "num_attention_heads": (5, 10, 20, 20)}
    )
    save_component(folder / "unet", filled(empty_network(SpatioTemporalUNet, unet)))
    vae = TemporalAutoencoderConfig.read(
        {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 768}
    )
    save_component(folder / "vae", filled(empty_network(TemporalAutoencoder, vae)))
    vision = CLIPVisionConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        patch_size=14,
        projection_dim=1024,
        hidden_act="gelu",
    )
    with torch.device("meta"):
        encoder = CLIPVisionModelWithProjection(vision)
    filled(encoder).save_pretrained(folder / "image_encoder")
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "model_index.json", {"_class_name": "StableVideoDiffusionPipeline"})


def memory() -> float:
    """The most that this process has held, in GiB."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    raise OSError("no VmHWM")


def main() -> None:
    """Writes the model if need be, makes a film, prints times and memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=14)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--size", default="1024x576")
    parser.add_argument("--guidance", type=float, default=3.0, help="1: one call a step, not two")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--scratch", type=Path, default=Path("full-size"))
    asked = parser.parse_args()
    folder = asked.scratch / "svd"
    if not folder.exists():
        write(folder)
    from PIL import Image

    import undust
    from undust.generation.animation import decode_film
    from undust.generation.loop import Step

    began = time.perf_counter()
    model = undust.load_video(folder, engine=asked.engine)
    print(f"loaded in {time.perf_counter() - began:.1f} s, {memory():.1f} GiB", flush=True)
    picture = Image.radial_gradient("L").convert("RGB")
    asks = {"steps": asked.steps, "size": asked.size, "guidance": asked.guidance}
    recipe = model.recipe(picture, frames=asked.frames, seed=1, **asks)
    watch, done = Watch(), list[Step]()
    for step in model.steps(recipe):
        print(f"step {step.index + 1}: {watch.lap()}, {memory():.1f} GiB", flush=True)
        done = [step]
    film = decode_film(recipe, *done)
    together = f"{len(film.frames)} frames decoded, {recipe.decoded_frames} at a time"
    print(f"{together}: {watch.lap()}, {memory():.1f} GiB")


class Watch:
    """Seconds since the last lap, of the clock and of all cores, which other programs share."""

    def __init__(self) -> None:
        self.clock, self.cores = time.perf_counter(), time.process_time()

    def lap(self) -> str:
        """Both, for people."""
        before = self.clock, self.cores
        self.clock, self.cores = time.perf_counter(), time.process_time()
        return f"{self.clock - before[0]:.0f} s ({self.cores - before[1]:.0f} s of processor time)"


if __name__ == "__main__":
    main()
