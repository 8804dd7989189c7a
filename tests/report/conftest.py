"""Folders of runs as training leaves them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

MakeRun = Callable[..., Path]
HOSTILE = (
    '<img src=x onerror=alert(1)></script><script>alert(2)</script> 고양이 & "dog" \' {{ 7*7 }}'
)


def record(**changes: Any) -> dict[str, Any]:
    """A run.json of 40 steps."""
    session = {"started": 1.7e9, "ended": 1.7e9 + 80, "processor": "Processor 1", "threads": 2}
    return {
        "kind": "diffusion",
        "sessions": [session],
        "parameters": {"unet": 1234, "text_encoder": 56},
        "notes": [HOSTILE],
        "recipe": {"kind": "diffusion", "run": {"steps": 40, "batch": 8}, "previews": [HOSTILE]},
        "data": {
            "folder": HOSTILE,
            "pictures": 12,
            "trained": 10,
            "held_out": 2,
            "groups": 12,
            "splits": {"train": 10, "test": 2},
            "captions": {HOSTILE: {"pictures": 12, "shortest": 1, "longest": 80}},
        },
        **changes,
    }


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run's folder: its log, a few previews, and run.json."""

    def make(name: str = "run", steps: int = 40, about: dict[str, Any] | None = None) -> Path:
        out = tmp_path / name
        (out / "samples").mkdir(parents=True)
        with (out / "log.jsonl").open("w") as file:
            for step in range(1, steps + 1):
                row = {"step": step, "loss": 2 * math.exp(-step / 10) + 0.1 * (step % 3)}
                row |= {"pixel": 1 / step, "gradient_norm": 1.0, "learning_rate": 1e-4}
                row |= {"memory": 0.5, "seconds": 2.0, "time": 1.7e9 + 2 * step}
                if step % 20 == 0:
                    row |= {"validation_loss": 3 / step, "PSNR, 8 pictures, 16x16": 20 + step / 9}
                file.write(json.dumps(row) + "\n")
        for number, step in enumerate((10, 20, 40)):
            text = PngImagePlugin.PngInfo()
            text.add_itxt("captions", f"{HOSTILE}\n빨간 고양이\n")
            picture = Image.new("RGB", (600, 64), (80 * number, 90, 200))
            picture.save(out / "samples" / f"step-{step:08}.png", pnginfo=text)
        (out / "run.json").write_text(json.dumps(record() if about is None else about), "utf-8")
        return out

    return make
