"""Trains a small model under every kind of condition, and measures whether it is obeyed.

    python examples/emoji_set.py --out data/emoji-64 --size 64
    python examples/emoji_maps.py data/emoji-64 --out data/emoji-maps-64
    python benchmarks/conditions.py data/emoji-maps-64 --out runs/conditions [--steps 600]

On the latents of the built-in model's first stage (the super-resolution too). Held-out pictures
give the conditions. Each number is measured on the pictures that were generated for their own
condition and, to compare, on the same pictures with the conditions of others. Prints the rows of
docs/conditions.md and writes its pictures; runs that are stopped continue.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import undust
from undust.datasets import image_folder
from undust.datasets.samples import Sample
from undust.pictures import from_image, grid, to_images
from undust.pipeline import LatentDiffusion
from undust.training import kinds
from undust.training.loop import TrainingProgress
from undust.training.run import train

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from emoji_maps import colour_class, depth, segmented

SIZE, SMALL, SHOWN, COUNT = 64, 8, 8, 48
PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
UNET2D = {
    "block_out_channels": [96, 160],
    "down_block_types": ["AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 32,
    "norm_num_groups": 16,
    "attn_norm_num_groups": 16,
    "resnet_time_scale_shift": "scale_shift",
}
TEXT = {
    "unet": {
        "block_out_channels": [96, 160],
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "norm_num_groups": 16,
        "use_linear_projection": True,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 4,
        "resnet_time_scale_shift": "scale_shift",
    },
    "text_encoder": {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "captions": {"vocabulary": 2048, "length": 24},
}
LABELS = {"labels": {"column": "colour"}}
SEGMENTATION = {"kind": "segmentation", "column": "segmentation", "classes": 8, "drop": 0.1}
KINDS: dict[str, dict[str, Any]] = {
    "none": {},
    "class": LABELS,
    "text": TEXT,
    "segmentation": {"maps": [SEGMENTATION]},
    "depth": {"maps": [{"kind": "depth", "column": "depth", "drop": 0.1}]},
    "low resolution": {"low_resolution": {"max_noise_level": 100}},
    "mask": {"inpainting": {}},
    "class and segmentation": {**LABELS, "maps": [SEGMENTATION]},
}


def recipe(kind: str, data: Path, steps: int) -> Any:
    """The configuration of a run."""
    return kinds.parse(
        {
            "kind": "diffusion",
            "first_stage": "emoji",
            "data": {"folder": str(data), "size": SIZE, "draw_by": "concept"},
            "diffusion": {"prediction": "v_prediction", "shift": 2.0},
            "optimizer": {
                "kind": "muon",
                "learning_rate": 2e-3,
                "weight_decay": 0.01,
                "warm_up": 0.05,
                "cool_down": 0.4,
            },
            "run": {
                "steps": steps,
                "batch": 64,
                "ema": 0.995,
                "precision": "auto",
                "sample_every": 10**6,
                "checkpoint_every": 100,
                "keep": 1,
            },
            **({} if "text_encoder" in KINDS[kind] else {"unet2d": UNET2D}),
            **KINDS[kind],
        },
        kind,
    )


def condition(kind: str, sample: Sample) -> tuple[str, dict[str, Any], Image.Image | None]:
    """A prompt, the options of a request, and a picture of the condition, of one sample."""
    image = sample.image().convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image).convert("RGB")
    if kind == "text":
        return sample.captions["text"], {}, None
    if kind == "low resolution":
        small = image.resize((SMALL, SMALL), Image.Resampling.LANCZOS)
        return "", {"init": small, "noise_level": 10}, small.resize((SIZE, SIZE), 0)
    if kind == "mask":
        mask = Image.new("L", (SIZE, SIZE))
        mask.paste(255, (SIZE // 2, 0, SIZE, SIZE))
        seen = Image.composite(Image.new("RGB", image.size, "grey"), image, mask)
        return "", {"init": image, "mask": mask}, seen
    options: dict[str, Any] = {}
    shown = None
    if "class" in kind:
        options["label"] = sample.columns["colour"]
    for name in ("segmentation", "depth"):
        if name in kind:
            shown = sample.beside(name).convert("RGB")
            options["maps"] = [shown]
    return "", options, shown


def agreement(kind: str, made: np.ndarray, sample: Sample) -> float:
    """How well a picture [H, W, 3] of bytes agrees with the condition of a sample."""
    wanted = from_image(sample.image(), (SIZE, SIZE)).permute(1, 2, 0).numpy()
    match kind:
        case "class":
            return float(colour_class(made) == sample.columns["colour"])
        case "depth":
            return float(np.corrcoef(depth(made).ravel(), depth(wanted).ravel())[0, 1])
        case "low resolution":
            small = [
                np.asarray(Image.fromarray(each).resize((SMALL, SMALL), Image.Resampling.LANCZOS))
                for each in (made, wanted)
            ]
            return psnr(*small)
        case "mask":
            return psnr(made[:, SIZE // 2 :], wanted[:, SIZE // 2 :])
        case "text" | "none":
            return psnr(made, wanted)
        case _:
            return float((segmented(made) == segmented(wanted)).mean())


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in decibels."""
    error = np.square(one.astype(float) - other).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


MEASURES = {
    "class": "share whose main colour is the class",
    "text": "PSNR to the caption's picture, dB",
    "segmentation": "share of pixels of the segmentation's class",
    "depth": "correlation of the depth",
    "low resolution": "PSNR to the condition at 8×8, dB",
    "mask": "PSNR of the hidden half to the original, dB",
}
ALSO = {"class and segmentation": ("class", "segmentation")}
"""Kinds of several conditions, of which each is measured."""


def measured(
    kind: str, model: LatentDiffusion, samples: Sequence[Sample]
) -> tuple[dict[str, tuple[float, float]], Image.Image]:
    """For each condition the agreement with its own and the next sample's; a sheet of pictures."""
    made: list[np.ndarray] = []
    sheet: list[list[Image.Image]] = []
    for seed, sample in enumerate(samples):
        prompt, options, shown = condition(kind, sample)
        options |= {"seed": seed, "steps": 20}
        [picture] = model.generate([prompt] if prompt else [], **options)
        made.append(np.asarray(picture.image))
        column = [shown] if shown else []
        original = to_images(from_image(sample.image(), (SIZE, SIZE))[None] / 127.5 - 1)
        sheet.append([*column, picture.image, *original] if kind != "none" else [picture.image])
    found: dict[str, tuple[float, float]] = {}
    for name in ALSO.get(kind, (kind,)):
        own, other = (
            [agreement(name, each, sample) for each, sample in zip(made, given, strict=True)]
            for given in (samples, [*samples[1:], samples[0]])
        )
        found[name] = float(np.mean(own)), float(np.mean(other))
    rows = [image for row in zip(*sheet[:SHOWN], strict=True) for image in row]
    return found, grid(rows, SHOWN)


def progress(kind: str, steps: int) -> Callable[[TrainingProgress], None]:
    began = time.monotonic()

    def observe(at: TrainingProgress) -> None:
        if at.step % 50 == 0:
            took = time.monotonic() - began
            print(
                f"{kind}: {at.step}/{steps}, loss {at.losses['loss']:.3f}, {took:.0f} s", flush=True
            )

    return observe


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--kinds", nargs="+", default=[*KINDS])
    options = parser.parse_args()
    samples = [each for each in image_folder.read(options.data) if each.split != "train"][:COUNT]
    rows: list[str] = []
    for kind in options.kinds:
        out = options.out / kind.replace(" ", "-")
        config = recipe(kind, options.data, options.steps)
        out.mkdir(parents=True, exist_ok=True)
        for latents in options.out.glob("*/*latents.safetensors"):  # the same for all kinds
            if not (out / latents.name).exists():
                shutil.copyfile(latents, out / latents.name)
        train(config, out, resume=True, observe=progress(kind, options.steps))
        model = undust.load(out / "model")
        found, sheet = measured(kind, model, samples)
        name = f"condition-{kind.replace(' ', '-')}.png"
        sheet.save(PICTURES / name)
        for each, (own, other) in found.items():
            figure = f"{own:.2f} | {other:.2f}" if each in MEASURES else "– | –"
            rows.append(
                f"| {kind} | {MEASURES.get(each, '–')} | {figure} | ![]({'pictures/' + name}) |"
            )
            print(rows[-1], flush=True)
    (options.out / "table.md").write_text("\n".join(rows) + "\n", "utf-8")


if __name__ == "__main__":
    main()
