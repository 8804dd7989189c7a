"""Samples a second of the training loop against a minimal loop of diffusers and transformers.

    python benchmarks/training_throughput.py [--rounds 5] [--batch 64] [--optimizer adamw muon]
                                             [--precision fp32 bf16] [--threads 1] [--device cpu]
                                             [--compile]

The networks and batches of recipes/emoji-diffusion.toml: a U-Net and a text encoder trained on
latents that are in memory. The minimal loop is what a training script has in its inner loop, with
torch's optimizers at their defaults: noise, `add_noise`, the text encoder, the U-Net, loss,
backward pass, clipping, AdamW or torch.optim.Muon (for the same weights, as matrices), zero_grad.
Ours does the same, and averages the weights and computes the noise by counters. Steps alternate in
one process. Prints the medians of wall and of processor time, and the ratios of ours to theirs.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from undust.datasets import image_folder
from undust.formats.components import save_component
from undust.networks.autoencoder import Autoencoder
from undust.training.caches import all_views
from undust.training.diffusion import DiffusionConfig, DiffusionTask
from undust.training.first_stage import FirstStageConfig
from undust.training.optimizers import is_hidden_matrix
from undust.training.run import prepare

RECIPES = Path(__file__).parents[1] / "recipes"
PICTURES = 256
Step = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--optimizer", nargs="+", default=["adamw", "muon"])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="run.compile, and theirs compiled")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{torch.get_num_threads()} threads, batches of {options.batch}, {options.device}")
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(Path(folder))
        for optimizer in options.optimizer:
            for precision in options.precision:
                changes = {
                    "optimizer": {"kind": optimizer, "warm_up": 0, "cool_down": 0},
                    "run": {
                        "precision": precision,
                        "batch": options.batch,
                        "steps": 10**6,
                        "device": options.device,
                        "compile": options.compile,
                    },
                }
                compare(Path(folder), changes, options.rounds)


def compare(folder: Path, changes: dict[str, dict[str, object]], rounds: int) -> None:
    """Prints one line: an optimizer in a precision."""
    tree = tomllib.loads((RECIPES / "emoji-diffusion.toml").read_text("utf-8"))
    tree = {**tree, "first_stage": str(folder / "first stage")}
    for table, values in {**changes, "data": {"folder": str(folder / "pictures")}}.items():
        tree[table] = {**tree[table], **values}
    with tempfile.TemporaryDirectory() as out:
        trainer, _ = prepare(DiffusionConfig.model_validate(tree), Path(out))
        assert isinstance(trainer.task, DiffusionTask)
        steps = {"ours": trainer.advance, "theirs": minimal_loop(trainer.config, trainer.task)}
        wall: dict[str, list[float]] = {name: [] for name in steps}
        processor: dict[str, list[float]] = {name: [] for name in steps}
        warm_up = 3 if trainer.config.run.compile else 1
        for number in range(rounds + warm_up):
            for name, step in steps.items():
                began = time.perf_counter(), time.process_time()
                step()
                if trainer.device.type != "cpu":
                    torch.accelerator.synchronize()
                if number >= warm_up:
                    wall[name].append(time.perf_counter() - began[0])
                    processor[name].append(time.process_time() - began[1])
    optimizer, precision = trainer.config.optimizer.kind, trainer.config.run.precision
    parts = [f"{optimizer}, {precision} (Muon {trainer.config.run.muon_precision})"]
    for title, times in (("wall", wall), ("processor", processor)):
        ours, theirs = (statistics.median(times[name]) for name in ("ours", "theirs"))
        ratio = statistics.median(
            b / a for a, b in zip(times["ours"], times["theirs"], strict=True)
        )
        parts.append(
            f"{title} {ours:.3f} s against {theirs:.3f} s, {ratio:.2f} × the samples a second"
        )
    print("; ".join(parts))


def minimal_loop(config: DiffusionConfig, task: DiffusionTask) -> Step:
    """One step of the loop that we are compared with."""
    keys = config.unet.model_dump(exclude_none=True)
    device = config.run.place
    unet = UNet2DConditionModel(**keys).to(device)
    unet.load_state_dict(task.model.unet.state_dict())
    text_config = task.model.texts[0].encoder.config.model_dump(exclude_none=True)
    text_encoder = CLIPTextModel(CLIPTextConfig(**text_config)).to(device)
    if config.run.compile:
        unet.compile()
        text_encoder.compile()
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
    )
    latents = task.latents.posterior(all_views(task.data)).mean.to(device)
    tokenizer, batch = task.model.texts[0].tokenizer, config.run.batch
    ids = tokenizer([sample.captions["text"] for sample in task.data.samples]).to(device)
    parameters = {
        **dict(unet.named_parameters(prefix="unet")),
        **dict(text_encoder.named_parameters(prefix="text_encoder")),
    }
    optimizers, matrices = torch_optimizers(config, parameters)
    half = config.run.precision == "bf16"

    def step() -> float:
        chosen = torch.randint(len(latents), (batch,), device=device)
        z = latents[chosen]
        noise = torch.randn_like(z)
        timesteps = torch.randint(0, 1000, (batch,), device=device)
        noisy = scheduler.add_noise(z, noise, timesteps)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            states = text_encoder(ids[chosen]).last_hidden_state
            output = unet(noisy, timesteps, states).sample
        target = scheduler.get_velocity(z, noise, timesteps)
        loss = nn.functional.mse_loss(output.float(), target)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), config.optimizer.clip)
        for name, matrix in matrices.items():
            gradient = parameters[name].grad
            matrix.grad = None if gradient is None else gradient.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for parameter in parameters.values():
            parameter.grad = None
        return loss.item()

    return step


def torch_optimizers(
    config: DiffusionConfig, parameters: dict[str, nn.Parameter]
) -> tuple[list[torch.optim.Optimizer], dict[str, nn.Parameter]]:
    """torch's AdamW, and its Muon for the weights that ours trains with Muon, as matrices."""
    rate, decay, betas = 1e-4, config.optimizer.weight_decay, config.optimizer.betas
    if config.optimizer.kind == "adamw":
        adamw = torch.optim.AdamW(parameters.values(), lr=rate, betas=betas, weight_decay=decay)
        return [adamw], {}
    matrices: dict[str, nn.Parameter] = {
        name: nn.Parameter(value.detach().view(len(value), -1))
        for name, value in parameters.items()
        if is_hidden_matrix(name, value)
    }
    rest = [value for name, value in parameters.items() if name not in matrices]
    return [
        torch.optim.AdamW(rest, lr=rate, betas=betas, weight_decay=decay),
        torch.optim.Muon(
            matrices.values(), lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        ),
    ], matrices


def make_inputs(folder: Path) -> None:
    """Pictures of two colours with captions, and a first stage with random weights."""
    (folder / "pictures").mkdir()
    chance = torch.Generator().manual_seed(0)
    rows: list[dict[str, str]] = []
    for number in range(PICTURES):
        left, right = torch.randint(0, 256, (2, 3), generator=chance).tolist()
        picture = Image.new("RGB", (64, 64), tuple(left))
        picture.paste(tuple(right), (32, 0, 64, 64))
        picture.save(folder / "pictures" / f"{number}.png")
        text = f"colour {left[0]} {left[1]} beside colour {right[0]} {right[1]}"
        rows.append({"file_name": f"{number}.png", "text": text})
    image_folder.write(folder / "pictures", rows)
    tree = tomllib.loads((RECIPES / "emoji-first-stage.toml").read_text("utf-8"))
    save_component(
        folder / "first stage", Autoencoder(FirstStageConfig.model_validate(tree).autoencoder)
    )


if __name__ == "__main__":
    main()
