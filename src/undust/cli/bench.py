"""`undust bench`: what is fast on this processor."""

from __future__ import annotations

from undust.cli import console
from undust.cli.loading import use_free_cores


def bench() -> None:
    """Measure what is fast on this processor; `--engine auto` and `--dtype auto` follow it."""
    import torch

    from undust.engines import probe
    from undust.engines.bench import DTYPES, rates
    from undust.engines.memory import keep_freed_memory
    from undust.engines.processor import processor

    use_free_cores()
    count = torch.get_num_threads()
    threads = f"{count} thread{'s' if count != 1 else ''}"
    console.line(f"{processor()}, {threads}, torch {torch.__version__}")
    keep_freed_memory()
    probe.forget()
    rows: list[list[object]] = []
    for rate in rates():
        numbers = [rate.rates[dtype] for dtype in DTYPES]
        rows.append([rate.name, *("" if each is None else f"{each / 1e9:.0f}" for each in numbers)])
    names = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    console.table(["GFLOP/s", *(f"{name}>" for name in names)], rows)
    for where, speedup in (
        ("", probe.winograd_speedup()),
        ("in training, with gradients, ", probe.winograd_training_speedup()),
    ):
        used = "used" if speedup >= probe.MIN_SPEEDUP else "not used"
        console.line(
            f"{where}Winograd's convolutions are {speedup:.1f} × as fast as torch's: {used}"
        )
    if probe.int8_speedup():
        console.line(
            f"convolutions in 8 bits are {probe.int8_speedup():.1f} × as fast as torch's in float32"
        )
    console.line(f"dtype auto: {probe.fastest_dtype()}")
