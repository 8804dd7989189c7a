"""Log of a run: losses in log.jsonl, previews in samples/, and TensorBoard if installed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image, PngImagePlugin

from undust.formats.files import atomic, atomic_write
from undust.formats.run_folder import LOG
from undust.regular import open_regular
from undust.training.machine import peak_memory

RECENT = 10  # logged steps for the mean loss of a run


class Log:
    """Appends to `out/log.jsonl`, writes `out/samples/` and, with the extra, `out/tensorboard/`.

    Lines that a killed run logged after `step`, from where this one continues, are removed.
    """

    def __init__(self, out: Path, step: int) -> None:
        self.samples = out / "samples"
        self.samples.mkdir(parents=True, exist_ok=True)
        path = out / LOG
        if path.exists():
            atomic_write(path, "".join(_until(path, step)).encode())
        self._lines = path.open("a", encoding="utf-8")
        self._board = None
        if find_spec("tensorboard"):
            self._board = _Board(out / "tensorboard", step + 1)

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
        """Logs the values of a step, its duration, the memory so far and the time."""
        values = {**values, **peak_memory()}
        row = {"step": step, **values, "seconds": round(seconds, 4), "time": round(time.time(), 1)}
        self._lines.write(json.dumps(row) + "\n")
        self._lines.flush()
        if self._board:
            self._board.scalars(step, values)

    def picture(self, step: int, picture: Image.Image, captions: Sequence[str] = ()) -> Path:
        """Saves the preview of a step, and returns its path.

        captions: of its cells, row by row. They are written to the picture's text chunk "captions"
        and, one per line, to `samples/captions.txt`: Pillow's own font has only Latin letters.
        """
        text = PngImagePlugin.PngInfo()
        if captions:
            lines = "".join(f"{' '.join(caption.split())}\n" for caption in captions)
            text.add_itxt("captions", lines)
            atomic_write(self.samples / "captions.txt", lines.encode())
        path = self.samples / f"step-{step:08d}.png"
        with atomic(path) as temporary:
            picture.save(temporary, "PNG", pnginfo=text)
        if self._board:
            self._board.picture(step, picture)
        return path


def recent_loss(out: Path, step: int) -> tuple[float | None, int]:
    """The mean of the last losses that a run logged up to `step`, and their number."""
    path = out / LOG
    rows = [json.loads(line) for line in _until(path, step)] if path.is_file() else []
    losses = [float(row["loss"]) for row in rows[-RECENT:] if "loss" in row]
    return (sum(losses) / len(losses) if losses else None), len(losses)


class _Board:
    """A TensorBoard event file, written without a thread.

    torch's SummaryWriter writes in its own thread and opens the file each time, so that moving the
    folder ends that thread in a traceback.
    """

    def __init__(self, folder: Path, step: int) -> None:
        """TensorBoard ignores earlier events of `step` and later steps in the folder."""
        self._summary = import_module("torch.utils.tensorboard.summary")
        self._event = import_module("tensorboard.compat.proto.event_pb2")
        records = import_module("tensorboard.summary.writer.record_writer")
        folder.mkdir(exist_ok=True)
        self._file = (folder / f"events.out.tfevents.{time.time():.6f}").open("ab")
        self._records = records.RecordWriter(self._file)
        self._write(0, file_version="brain.Event:2")
        start = self._event.SessionLog(status=self._event.SessionLog.START)
        self._write(step, session_log=start)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._write(step, summary=self._summary.scalar(name, value))

    def picture(self, step: int, picture: Image.Image) -> None:
        drawn = self._summary.image("samples", np.asarray(picture), dataformats="HWC")
        self._write(step, summary=drawn)

    def close(self) -> None:
        self._file.close()

    def _write(self, step: int, **content: object) -> None:
        event = self._event.Event(wall_time=time.time(), step=step, **content)
        self._records.write(event.SerializeToString())
        self._records.flush()


def _until(path: Path, step: int) -> Iterator[str]:
    """The complete lines of a log up to a step."""
    with open_regular(path) as file:
        text = file.read().decode("utf-8", "replace")
    for line in text.splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                yield line
        except (ValueError, TypeError, KeyError, RecursionError):
            pass  # the line that was being written when the run was killed
