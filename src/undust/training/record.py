"""`run.json`: a run's recipe, data and machine, written when it starts, for `undust report`."""

from __future__ import annotations

import base64
import io
import json
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import BaseModel, ValidationError

from undust.engines.processor import processor
from undust.errors import UndustError
from undust.formats.files import atomic_write
from undust.formats.folder import read_json
from undust.formats.run_folder import RECORD
from undust.pictures import from_image
from undust.training.sources import TrainingData
from undust.training.task import Task, TrainingConfig
from undust.version import __version__

LIMIT = 8 * 2**20  # bytes
EXAMPLES = 16  # pictures of the contact sheet
SIDE = 128  # of each, pixels
MAX_COLUMNS = 20  # of captions
MEASURED = 1000  # pictures whose sizes are read
MAX_SIZES = 20
SHOWN_COLUMNS = 3  # of an example's captions
MAX_CAPTION = 300  # characters of each


class Session(BaseModel):
    """One start of a run, until it was stopped.

    started, ended: Unix times; step: from which it continued; error: the reason why it failed.
    """

    started: float
    ended: float | None = None
    step: int = 0
    error: str = ""
    processor: str = ""
    device: str = ""
    threads: int = 0
    undust: str = ""
    torch: str = ""


class CaptionColumn(BaseModel):
    """A column of captions: the number of pictures that have one, and the lengths in characters."""

    pictures: int
    shortest: int
    longest: int


class ExamplePicture(BaseModel):
    """A training picture, as a small JPEG in base64, with a few of its captions by column."""

    jpeg: str
    captions: dict[str, str] = {}


class DataSummary(BaseModel):
    """The data of a run: numbers of pictures, and examples of those trained on.

    sizes: numbers of the training pictures that were measured, by "width x height".
    """

    folder: str
    pictures: int
    trained: int
    held_out: int
    groups: int
    splits: dict[str, int] = {}
    sizes: dict[str, int] = {}
    captions: dict[str, CaptionColumn] = {}
    examples: list[ExamplePicture] = []


class RunRecord(BaseModel):
    """The content of `run.json`.

    parameters: trained ones by module; recipe: complete, with derived values; notes: for people,
    on data and recipe.
    """

    kind: str
    sessions: list[Session]
    parameters: dict[str, int] = {}
    notes: list[str] = []
    recipe: dict[str, Any] = {}
    data: DataSummary | None = None


def read(out: Path) -> RunRecord | None:
    """The record of a run; None if it has none. Raises UndustError for a damaged one."""
    path = out / RECORD
    if not path.exists():
        return None
    try:
        return RunRecord.model_validate(read_json(path, LIMIT))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UndustError(f"{path} is damaged: {where}: {first['msg']}") from error


def begin(out: Path, config: TrainingConfig, task: Task, notes: Sequence[str], step: int) -> None:
    """Writes the record of a run that continues from `step`; that of earlier starts is kept."""
    device = config.run.place
    sessions: list[Session] = []
    with suppress(UndustError):
        before = read(out)
        sessions = before.sessions if before and step else []
    session = Session(
        started=time.time(),
        step=step,
        processor=processor(device),
        device=str(device),
        threads=torch.get_num_threads(),
        undust=__version__,
        torch=torch.__version__,
    )
    recipe = config.model_dump(mode="json")
    fields = (recipe.get("captions") or {}).get("fields") or ("text",)
    record = RunRecord(
        kind=str(recipe["kind"]),
        sessions=[*sessions, session],
        parameters={
            name: sum(parameter.numel() for parameter in module.parameters())
            for name, module in task.modules.items()
        },
        notes=list(notes),
        recipe=recipe,
        data=summary(task.data, str(config.data.folder), fields),
    )
    _write(out, record)


@contextmanager
def ending(out: Path) -> Generator[None]:
    """Within it a run trains in `out`; at its end the time is recorded, and the error if any."""
    error = ""
    try:
        yield
    except Exception as fault:
        error = str(fault) if isinstance(fault, UndustError) else f"{type(fault).__name__}: {fault}"
        raise
    finally:
        with suppress(UndustError, OSError):  # the run's own error is the one to show
            record = read(out)
            if record and record.sessions:
                last = record.sessions[-1]
                last.ended, last.error = time.time(), error
                _write(out, record)


def summary(data: TrainingData, folder: str, fields: Sequence[str]) -> DataSummary:
    """The numbers of a run's data, and sizes and a few pictures evenly from those trained on.

    fields: columns of the captions that are trained on.
    """
    lengths: dict[str, list[int]] = {}
    for sample in data.samples:
        for column, caption in sample.captions.items():
            lengths.setdefault(column, []).append(len(caption))
    sizes = Counter[str]()
    for index in data.train[:: -(-len(data.train) // MEASURED)]:
        with suppress(UndustError):
            sizes["{}x{}".format(*data.samples[index].size())] += 1
    chosen = data.train[:: max(1, len(data.train) // EXAMPLES)][:EXAMPLES]
    examples: list[ExamplePicture] = []
    for index in chosen:
        sample = data.samples[index]
        shown = [name for name in fields if name in sample.captions] or [*sample.captions][:1]
        captions = {name: sample.captions[name][:MAX_CAPTION] for name in shown[:SHOWN_COLUMNS]}
        with suppress(UndustError):  # read again at its step, where the error is told
            examples.append(ExamplePicture(jpeg=_small(sample.image()), captions=captions))
    return DataSummary(
        folder=folder,
        pictures=len(data.samples),
        trained=len(data.train),
        held_out=len(data.held_out),
        groups=len({sample.group for sample in data.samples}),
        splits=Counter(sample.split for sample in data.samples),
        sizes=dict(sizes.most_common(MAX_SIZES)),
        captions={
            name: CaptionColumn(pictures=len(found), shortest=min(found), longest=max(found))
            for name, found in [*lengths.items()][:MAX_COLUMNS]
        },
        examples=examples,
    )


def _small(image: Image.Image) -> str:
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    flat = from_image(image, image.size).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(flat).save(file, "JPEG", quality=85, subsampling=0)
    return base64.b64encode(file.getvalue()).decode()


def _write(out: Path, record: RunRecord) -> None:
    text = json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False)
    atomic_write(out / RECORD, text.encode("utf-8", "replace"))
