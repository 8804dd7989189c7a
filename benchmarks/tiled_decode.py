"""Decoding a large picture at Stable Diffusion's configuration: in one piece, in strips, in tiles.

    python benchmarks/tiled_decode.py [--size 1024] [--dtype float32] [--device cpu] [--threads N]

Each way has a process of its own, with the same random weights and latent, and so a peak of memory
of its own: undust in one piece and in strips (what it does by itself above 1024x1024), diffusers in
one piece and with `enable_tiling`. Prints what each adds to the memory and how long it takes, as
ratios to the same library in one piece; on a CPU the time is what its threads worked, which other
processes disturb less. The differences are from that picture in one piece, in levels of 255.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

SD = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512}
WAYS = ("undust whole", "undust strips", "diffusers whole", "diffusers tiles")


def decoder(way: str, place: dict[str, Any]) -> Any:
    """The function that decodes a latent in that way."""
    import torch

    from undust.networks.autoencoder import Autoencoder
    from undust.networks.config import AutoencoderConfig

    torch.manual_seed(0)
    ours = Autoencoder(AutoencoderConfig(**SD)).requires_grad_(False)
    if way.startswith("undust"):
        ours.to(**place)
        half = ours.decoder.streamed if way.endswith("strips") else ours.decoder
        return lambda z: half(ours.post_quant_conv(z))
    from diffusers import AutoencoderKL

    theirs = AutoencoderKL.from_config(ours.config.model_dump(mode="json")).eval()
    theirs.load_state_dict(ours.state_dict())
    theirs.to(**place)
    if way.endswith("tiles"):
        theirs.enable_tiling()
    return lambda z: theirs.decode(z).sample


def serve(way: str, asked: argparse.Namespace, answers: Any, file: Path) -> None:
    """Decodes once; the answer is bytes added at the peak and seconds."""
    import torch

    torch.set_num_threads(asked.threads)
    place = {"dtype": getattr(torch, asked.dtype), "device": asked.device}
    decode = decoder(way, place)
    cuda = asked.device != "cpu"
    clock = time.perf_counter if cuda else time.process_time

    def peak() -> int:
        if cuda:
            return torch.cuda.max_memory_allocated()
        status = Path("/proc/self/status").read_text("ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    with torch.inference_mode():
        decode(torch.zeros(1, 4, 16, 16, **place))
        z = torch.randn(1, 4, asked.size // 8, asked.size // 8, generator=torch.manual_seed(1))
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak begins at what is now
        before, start = peak(), clock()
        picture = decode(z.to(**place)).float().cpu()
        answers.send((peak() - before, clock() - start))
    torch.save(picture, file)


def main() -> None:
    """Runs the ways one after the other and prints what they took."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            answers, end = context.Pipe()
            file = Path(folder) / f"{way}.pt"
            process = context.Process(target=serve, args=(way, asked, end, file))
            process.start()
            end.close()  # so that a process that dies is noticed
            added, seconds = answers.recv()
            process.join()
            picture = torch.load(file).mul(127.5)
            if way.endswith("whole"):
                whole = picture, added, seconds
            off = (picture - whole[0]).abs()
            print(
                f"{way:16} {added / 2**30:6.2f} GiB ({added / whole[1]:.2f}), "
                f"{seconds:7.1f} s ({seconds / whole[2]:.2f}), "
                f"difference: at most {off.max():.4f}, on average {off.mean():.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
