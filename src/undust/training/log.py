"""Numbers and pictures of a run: log.jsonl, samples/*.png, and TensorBoard where it is there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image

from undust.formats.files import atomic, atomic_write
from undust.regular import open_regular


class Log:
    """Appends to `out/log.jsonl`, writes `out/samples/` and, with the extra, `out/tensorboard/`.

    What an earlier, killed run logged after `step`, where this one goes on, is taken out.
    """

    def __init__(self, out: Path, step: int) -> None:
        self.samples = out / "samples"
        self.samples.mkdir(parents=True, exist_ok=True)
        path = out / "log.jsonl"
        if path.exists():
            atomic_write(path, "".join(_until(path, step)).encode())
        self._lines = path.open("a", encoding="utf-8")
        self._board = None
        if find_spec("tensorboard"):
            from torch.utils.tensorboard.writer import SummaryWriter

            self._board = SummaryWriter(out / "tensorboard", purge_step=step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lines.close()
        if self._board:
            self._board.close()

    def scalars(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        """Logs the values of a step and how long the step took."""
        row = {"step": step, **values, "seconds": round(seconds, 4)}
        self._lines.write(json.dumps(row) + "\n")
        self._lines.flush()
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def picture(self, step: int, picture: Image.Image) -> None:
        """Keeps a sample picture of a step."""
        with atomic(self.samples / f"step-{step:08d}.png") as path:
            picture.save(path, "PNG")
        if self._board:
            self._board.add_image("samples", np.asarray(picture), step, dataformats="HWC")


def _until(path: Path, step: int) -> Iterator[str]:
    """The whole lines of a log up to a step."""
    with open_regular(path) as file:
        text = file.read().decode()
    for line in text.splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                yield line
        except ValueError:
            pass  # the line that was being written when the run was killed
