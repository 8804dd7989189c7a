"""Stable Diffusion at full size beside diffusers: the same latents, the time to load, peak memory.

    python benchmarks/full_size.py sd1 | sd2 | sdxl [--size 512] [--steps 2] [--dtype float32]
                                   [--device cpu] [--engine auto] [--no-low-memory] [--room GB]

Random weights, written once as a model folder into --scratch (2 bytes a weight: 2 to 7 GB) and
read by both, each in a process of its own that does nothing else. What is compared are the latents
after a few steps from the same noise, which are decoded too. Ends with an error if the latents
differ by more than --tolerance. On a GPU its memory is told beside the machine's; with --room it
has no more than that, and of diffusers its offloading is asked for. --engine and --low-memory are
undust's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

PROMPT = "a photograph of an astronaut riding a horse"
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512}
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_H = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "projection_dim": 1024,
    "hidden_act": "gelu",
}
CLIP_G = {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
MODELS: dict[str, dict[str, Any]] = {
    "sd1": {"unet": {"cross_attention_dim": 768, "sample_size": 64}, "texts": [CLIP_L]},
    "sd2": {
        "unet": {
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
            "sample_size": 64,
        },
        "texts": [CLIP_H],
    },
    "sdxl": {
        "unet": {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": (PLAIN, CROSS, CROSS),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "texts": [CLIP_L, CLIP_G],
    },
}


def write(name: str, folder: Path) -> None:
    """The model with random weights in float16: as large as those of published files."""
    from torch import nn

    from undust.conditioning.clip import clip
    from undust.conditioning.text import TextConditioner
    from undust.formats import model_folder
    from undust.formats.components import Components
    from undust.formats.networks import empty_network
    from undust.formats.original.variants import VARIANTS
    from undust.networks.autoencoder import Autoencoder
    from undust.networks.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
    from undust.networks.text_encoder import TextEncoder
    from undust.networks.unet import UNet

    generator = torch.Generator().manual_seed(0)

    def filled(network: nn.Module) -> nn.Module:
        network.to_empty(device="cpu").half()
        for key, parameter in network.named_parameters():
            if parameter.ndim > 1:
                fan = parameter[0].numel()
                parameter.data.normal_(0, fan**-0.5, generator=generator)
            else:
                parameter.data.normal_(float("norm" in key and "weight" in key), 0.02)
        return network.requires_grad_(False)

    known, variant = MODELS[name], VARIANTS[name]
    vae = {**VAE, "scaling_factor": variant.scaling_factor}
    torch.manual_seed(0)
    parts = Components(
        filled(empty_network(Autoencoder, AutoencoderConfig.read(vae))),  # pyright: ignore
        filled(empty_network(UNet, UNetConfig.read(known["unet"]))),  # pyright: ignore
        tuple(
            TextConditioner(
                clip(text.padding),
                filled(empty_network(TextEncoder, TextEncoderConfig.read(config))),  # pyright: ignore
                text.penultimate,
                text.pooled,
                name=text.folder,
            )
            for text, config in zip(variant.texts, known["texts"], strict=True)
        ),
        variant.process(),
        variant.prediction,
        variant.force_zeros_for_empty_prompt,
    )
    model_folder.write(parts, folder)


def memory() -> dict[str, float]:
    """The most that this process has held, and what it holds now that is no file's page; GB."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text("utf-8").splitlines()
    )
    own = {
        name: int(fields[key].split()[0]) / 2**20
        for name, key in (("peak", "VmHWM"), ("anonymous", "RssAnon"))
    }
    cuda = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return {**own, "device": cuda}


def paint(whose: str, arguments: argparse.Namespace) -> None:
    """Loads, paints, and says on stdout how long and with how much memory."""
    folder, size = arguments.scratch / arguments.model, arguments.size
    dtype = getattr(torch, arguments.dtype)
    if arguments.room:
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(arguments.room * 2**30 / whole)
    noise = torch.randn(1, 4, size // 8, size // 8, generator=torch.manual_seed(0))
    if whose == "undust":
        import undust

        before, began = memory(), time.perf_counter()
        model = undust.load(
            folder,
            dtype=dtype,
            device=arguments.device,
            engine=arguments.engine,
            low_memory=arguments.low_memory,
        )
        loaded, seconds = memory(), time.perf_counter() - began
        options = {"steps": arguments.steps, "guidance": 3.0, "size": size, "sampler": "ddim"}
        began = time.perf_counter()
        *_, last = model.steps(PROMPT, noise=noise, schedule="leading", **options)
        latent, painted = last.x, time.perf_counter()
        model.decode(latent)
    else:
        import diffusers

        kind = "StableDiffusionXLPipeline" if "xl" in arguments.model else "StableDiffusionPipeline"
        spare = {} if "XL" in kind else {"safety_checker": None}
        before, began = memory(), time.perf_counter()
        pipe = getattr(diffusers, kind).from_pretrained(folder, torch_dtype=dtype, **spare)
        if arguments.room:
            pipe.enable_model_cpu_offload()
        else:
            pipe.to(arguments.device)
        loaded, seconds = memory(), time.perf_counter() - began
        pipe.set_progress_bar_config(disable=True)
        began = time.perf_counter()
        latent = pipe(
            PROMPT,
            latents=noise.to(arguments.device, dtype),
            height=size,
            width=size,
            num_inference_steps=arguments.steps,
            guidance_scale=3.0,
            output_type="latent",
        ).images
        painted = time.perf_counter()
        pipe.vae.decode(latent / pipe.vae.config.scaling_factor)
    torch.save(latent.float().cpu(), arguments.scratch / f"{arguments.model}-{whose}.pt")
    print(
        json.dumps(
            {
                "before": before["peak"],
                "load_seconds": seconds,
                "load_peak": loaded["peak"],
                "load_anonymous": loaded["anonymous"],
                "paint_seconds": painted - began,
                "decode_seconds": time.perf_counter() - painted,
                "paint_peak": memory()["peak"],
                "device_peak": memory()["device"],
            }
        )
    )


def main() -> int:
    """Writes, runs both, compares."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--low-memory", action=argparse.BooleanOptionalAction)
    parser.add_argument("--room", type=float, default=0.0)
    parser.add_argument("--scratch", type=Path, default=Path("full-size"))
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--whose", choices=["undust", "diffusers"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.whose:
        with torch.no_grad():
            paint(arguments.whose, arguments)
        return 0
    folder = arguments.scratch / arguments.model
    if not folder.exists():
        arguments.scratch.mkdir(parents=True, exist_ok=True)
        write(arguments.model, folder)
    files = folder.rglob("*.safetensors")
    width = torch.empty((), dtype=getattr(torch, arguments.dtype)).element_size()
    weights = sum(path.stat().st_size for path in files) / 2 * width / 2**30
    print(f"{arguments.model}, {arguments.dtype}: {weights:.2f} GB of weights", flush=True)
    found: dict[str, dict[str, float]] = {}
    for whose in ("undust", "diffusers"):
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--whose", whose],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found[whose] = json.loads(done.stdout.splitlines()[-1])
        print(whose, json.dumps({k: round(v, 2) for k, v in found[whose].items()}), flush=True)
    a, b = (torch.load(arguments.scratch / f"{arguments.model}-{whose}.pt") for whose in found)
    apart = float((a - b).norm() / b.norm())
    ours, theirs = found["undust"], found["diffusers"]
    ratios = {key: value / theirs[key] for key, value in ours.items() if theirs[key]}
    print("undust / diffusers", json.dumps({k: round(v, 3) for k, v in ratios.items()}))
    peak = found["undust"]["load_peak"] - found["undust"]["before"]
    print(f"peak while loading, less what was held before, over the weights: {peak / weights:.2f}")
    print(f"relative difference of the latents after {arguments.steps} steps: {apart:.2e}")
    return int(not apart < arguments.tolerance)


if __name__ == "__main__":
    sys.exit(main())
