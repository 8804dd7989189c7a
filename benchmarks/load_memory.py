"""Memory and time of loading a whole Stable Diffusion 1.5, here and in diffusers.

    python benchmarks/load_memory.py [--folder DIR]

Writes 4.3 GB of weights in half precision below DIR (the system's folder for temporary files) and
removes them at the end; needs about 9 GB of memory. Each row is a fresh process, and its memory is
counted from before the first weight is read. Resident is all that lies in memory, pages of mapped
files too, which the system takes back when it needs them; own is what it cannot take back. Both are
the highest seen, and ratios to the size of the weights in the precision asked for. Linux only.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from undust.formats import convert, safetensors_file
from undust.formats.networks import empty_network
from undust.formats.original.checkpoint import to_original
from undust.formats.original.variants import VARIANTS
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
from undust.networks.text_encoder import TextEncoder
from undust.networks.unet import UNet

UNET = UNetConfig(sample_size=64, cross_attention_dim=768)
VAE = AutoencoderConfig(
    block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512
)
TEXT = TextEncoderConfig(
    hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768
)
PRECISIONS = {"fp16": torch.float16, "fp32": torch.float32}
FILE, FOLDER = "sd15.safetensors", "sd15"
EVERY = 0.005  # seconds between two looks at the memory


def write(folder: Path) -> None:
    """The model in both layouts; it is never whole in memory."""
    number = torch.full((1,), 0.01, dtype=torch.float16)

    def weights(network: nn.Module) -> dict[str, Tensor]:
        return {name: number.expand(t.shape) for name, t in network.state_dict().items()}

    parts = {
        "unet": (UNET, weights(empty_network(UNet, UNET))),
        "vae": (VAE, weights(empty_network(Autoencoder, VAE))),
        "text_encoder": (TEXT, weights(empty_network(TextEncoder, TEXT))),
    }
    safetensors_file.save(folder / FILE, to_original(VARIANTS["sd1"], parts))
    with convert.opened(folder / FILE, folder) as found:
        convert.write(found.model, folder / FOLDER, "folder")


def memory() -> dict[str, int]:
    """What this process has, and has had, in memory, in bytes."""
    text = Path("/proc/self/status").read_text()
    return {
        name: int(amount) * 1024
        for name, amount in re.findall(r"^(VmHWM|VmRSS|RssAnon):\s+(\d+)", text, re.MULTILINE)
    }


def measure(who: str, path: Path, precision: torch.dtype) -> dict[str, float]:
    """Loads the model and says what that took."""
    if who == "undust":
        import undust

        model = undust.load
        parts = {"dtype": precision}
    else:
        from diffusers import StableDiffusionPipeline

        model = StableDiffusionPipeline.from_pretrained
        parts = {"torch_dtype": precision}
    before, own = memory(), 0
    done = threading.Event()

    def watch() -> None:
        nonlocal own
        while not done.wait(EVERY):
            own = max(own, memory()["RssAnon"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    loaded = model(str(path), **parts)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    after = memory()
    del loaded
    return {
        "resident": max(after["VmHWM"], after["VmRSS"]) - before["VmRSS"],
        "own": max(own, after["RssAnon"]) - before["RssAnon"],
        "seconds": seconds,
    }


def main() -> None:
    """Writes the model, starts a process for every row and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        who, path, precision = asked.measure
        print(json.dumps(measure(who, Path(path), PRECISIONS[precision])))
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        write(folder)
        size = (folder / FILE).stat().st_size / 2  # of a number, in bytes
        for precision, dtype in PRECISIONS.items():
            for who, path in (("undust", FILE), ("undust", FOLDER), ("diffusers", FOLDER)):
                done = subprocess.run(
                    [sys.executable, __file__, "--measure", who, str(folder / path), precision],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                found = json.loads(done.stdout.splitlines()[-1])
                weights = size * dtype.itemsize
                print(
                    f"{precision} {who:9} {'file' if path == FILE else 'folder':6} "
                    f"weights {weights / 1e9:.2f} GB  resident {found['resident'] / weights:.2f}  "
                    f"own {found['own'] / weights:.2f}  {found['seconds']:.1f} s"
                )


if __name__ == "__main__":
    main()
