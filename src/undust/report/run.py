"""A run's folder, read for its report: finished, running, stopped or damaged."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from undust.errors import UndustError
from undust.formats import toml_text
from undust.formats.locks import locked
from undust.formats.run_folder import LOCK, LOG, RECORD
from undust.report import log_table, previews
from undust.report.charts import MAX_POINTS, Chart, charts, title_of
from undust.report.log_table import LogTable
from undust.report.previews import Preview
from undust.training import checkpoints, kinds, record
from undust.training.record import DataSummary, ExamplePicture, RunRecord

PARTS = (LOG, RECORD, "checkpoints", "samples")  # of a run's folder; any is enough
RECENT = 100  # logged steps of the speed
AVERAGED = 10  # logged steps of the loss
MAX_RECIPE = 200_000  # characters
MAX_NOTES, MAX_NOTE = 200, 1000  # and characters of each
SIZES = 6  # that are named
MAX_EXAMPLE = 512  # pixels, each side
MAX_BYTES = 100_000  # of an example, in base64
KINDS = {
    "first-stage": "First stage",
    "diffusion": "Diffusion model",
    "finetune": "Fine-tuned model",
    "lora": "LoRA",
    "controlnet": "ControlNet",
    "textual-inversion": "Textual inversion",
    "consistency": "Consistency distillation",
}


@dataclass
class RunReport:
    """The content of a run's part of the page.

    state: one word; about: the same in a sentence. facts, data_facts: names and values.
    results: names, values and remarks of the last figures.
    settings: the recipe's keys that differ from the defaults; recipe: all of them; both TOML.
    """

    name: str
    kind: str = ""
    state: str = ""
    about: str = ""
    facts: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    results: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    charts: list[Chart] = field(default_factory=list[Chart])
    previews: list[Preview] = field(default_factory=list[Preview])
    settings: str = ""
    recipe: str = ""
    notes: list[str] = field(default_factory=list[str])
    data: DataSummary | None = None
    data_facts: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    remarks: list[str] = field(default_factory=list[str])


def find(folder: Path) -> list[Path]:
    """The folder if it is of a run, else the runs in it, in the order in which they began.

    Raises UndustError if there is none.
    """
    if not folder.is_dir():
        raise UndustError(f"{folder} is not a folder; expected that of a training run")
    if _is_run(folder):
        return [folder]
    try:
        found = [path for path in folder.iterdir() if path.is_dir() and _is_run(path)]
    except OSError as error:
        raise UndustError(f"{folder} cannot be read: {error.strerror}") from error
    if not found:
        raise UndustError(f"{folder} has no training run: none of {', '.join(PARTS)} is there")
    return sorted(found, key=lambda path: (_began(path), path.name))


def read(folder: Path, budget: int, points: int = MAX_POINTS) -> RunReport:
    """Reads a run. What is damaged or absent is left out, with a remark.

    budget: bytes for its previews; points: of a line.
    """
    made = RunReport(folder.resolve().name)
    log, about = LogTable(), None
    try:
        log = log_table.read(folder / LOG)
    except UndustError as error:
        made.remarks.append(str(error))
    made.remarks += log.notes
    try:
        about = record.read(folder)
    except UndustError as error:
        made.remarks.append(str(error))
    newest = checkpoints.newest_config(folder / "checkpoints")
    recipe = about.recipe if about else newest[1] if newest else {}
    made.kind = str(recipe.get("kind", ""))[:40]
    made.kind = KINDS.get(made.kind, made.kind.capitalize()) or "Training run"
    step = max(log.step, newest[0] if newest else 0)
    made.state, made.about = _state(folder, about, log, step, recipe)
    made.facts = list(_facts(about, log, step, recipe, running=made.state == "running"))
    made.results = list(_results(log))
    made.charts = charts(log.columns, points)
    made.previews, notes = previews.read(folder / "samples", budget)
    made.remarks += notes
    made.settings, made.recipe = _recipe(recipe)
    if about:
        made.notes = [note[:MAX_NOTE] for note in about.notes[:MAX_NOTES]]
        made.data = about.data
        if made.data:
            examples = made.data.examples[: record.EXAMPLES]
            made.data.examples = [each for each in examples if _is_small_jpeg(each)]
            made.data_facts = list(_data_facts(made.data))
    else:
        made.remarks.append(
            f"{RECORD} is absent: the run began with an earlier version, which did not record "
            "its machine, times and data"
        )
    return made


def _is_run(folder: Path) -> bool:
    return any((folder / part).exists() for part in PARTS)


def _began(folder: Path) -> float:
    """A time by which the stages of one training are in their order."""
    with suppress(UndustError):
        if (about := record.read(folder)) and about.sessions:
            return about.sessions[0].started
    with suppress(OSError):
        return (folder / LOG).stat().st_mtime
    return 0.0


def _state(
    folder: Path, about: RunRecord | None, log: LogTable, step: int, recipe: Mapping[str, Any]
) -> tuple[str, str]:
    steps, patience = _whole(recipe, "run", "steps"), _whole(recipe, "run", "patience")
    of = f"{step:,} of {steps:,}" if steps else f"{step:,}"
    last = about.sessions[-1] if about and about.sessions else None
    if locked(folder / LOCK):
        return "running", f"It was at step {of} when this page was written"
    if steps and step >= steps:
        return "finished", f"All {steps:,} steps are done"
    validation = log.columns.get("validation_loss")
    if patience and validation is not None:
        since = len(validation.values) - 1 - int(validation.values.argmin())
        if since >= patience:
            return "finished", f"At step {of} the validation loss had stopped falling"
    if last and last.error:
        return "failed", last.error[:1000]
    if last and last.ended is None:
        return "stopped", f"It ended at step {of} without an error, as a killed process does"
    return "stopped", f"It was stopped at step {of}"


def _facts(
    about: RunRecord | None,
    log: LogTable,
    step: int,
    recipe: Mapping[str, Any],
    *,
    running: bool,
) -> Iterator[tuple[str, str]]:
    steps, batch = _whole(recipe, "run", "steps"), _whole(recipe, "run", "batch")
    yield "Steps", f"{step:,} of {steps:,}" if steps else f"{step:,}"
    if batch:
        yield "Pictures seen", f"{step * batch:,} in batches of {batch:,}"
    if about and about.sessions:
        first, last = about.sessions[0], about.sessions[-1]
        yield "Started", moment(first.started)
        if last.ended:
            yield "Ended", moment(last.ended)
        if (spent := _spent(about, log)) > 0:
            again = len(about.sessions) - 1
            times = "once" if again == 1 else f"{again} times"
            yield "Time", duration(spent) + (f", resumed {times}" if again else "")
    elif seconds := log.columns.get("seconds"):
        between = np.diff(seconds.steps, prepend=0)
        spent = float((seconds.values * between).sum())
        yield "Time", f"about {duration(spent)} in steps"
    if batch and (seconds := log.columns.get("seconds")):
        middle = float(np.median(seconds.values[-RECENT:]))
        if middle > 0:
            yield "Speed", f"{batch / middle:,.3g} pictures a second"
            if running and steps > step:
                yield "Time left", f"about {duration((steps - step) * middle)}"
    if memory := log.columns.get("memory"):
        gpu = log.columns.get("memory_cuda")
        yield "Peak memory", f"{memory.last:.2f} GiB" + (f", GPU {gpu.last:.2f} GiB" if gpu else "")
    if not about:
        return
    if about.sessions:
        last = about.sessions[-1]
        precision = str(_entry(recipe, "run", "precision") or "")[:20]
        on = ", ".join(
            filter(
                None,
                [
                    last.device,
                    precision,
                    f"{last.threads} thread{'s' if last.threads != 1 else ''}",
                ],
            )
        )
        yield "Processor", f"{last.processor} ({on})"
        yield "Versions", f"undust {last.undust}, torch {last.torch}"
    if about.parameters:
        each = ", ".join(f"{name} {count:,}" for name, count in about.parameters.items())
        total = sum(about.parameters.values())
        yield "Parameters", f"{total:,}" + (f" ({each})" if len(about.parameters) > 1 else "")


def _results(log: LogTable) -> Iterator[tuple[str, str, str]]:
    if loss := log.columns.get("loss"):
        recent = loss.values[-AVERAGED:]
        yield "Loss", f"{recent.mean():.4g}", f"mean of the last {len(recent)} logged steps"
    if validation := log.columns.get("validation_loss"):
        best = int(validation.values.argmin())
        lowest = f"lowest {validation.values[best]:.4g} at step {int(validation.steps[best]):,}"
        yield "Validation loss", f"{validation.last:.4g}", lowest
    for name, column in log.columns.items():
        title, basis = title_of(name)
        if basis:
            yield title, f"{column.last:.4g}", f"{basis}; at step {int(column.steps[-1]):,}"


def _data_facts(data: DataSummary) -> Iterator[tuple[str, str]]:
    yield "Folder", data.folder
    splits = ", ".join(f"{name} {count:,}" for name, count in data.splits.items())
    yield "Pictures", f"{data.pictures:,}" + (f" ({splits})" if len(data.splits) > 1 else "")
    yield "Trained on", f"{data.trained:,}"
    yield "Held out", f"{data.held_out:,}"
    if data.groups != data.pictures:
        yield "Concepts", f"{data.groups:,}"
    if data.sizes:
        shown = ", ".join(f"{size} ({count:,})" for size, count in [*data.sizes.items()][:SIZES])
        measured = sum(data.sizes.values())
        of = f" of {measured:,} that were measured" if measured < data.trained else ""
        yield "Sizes", shown + (", …" if len(data.sizes) > SIZES else "") + of


def _spent(about: RunRecord, log: LogTable) -> float:
    """Seconds of all sessions; of one that was killed until its last logged step."""
    time, total = log.columns.get("time"), 0.0
    for place, session in enumerate(about.sessions):
        end = session.ended
        if end is None and time is not None:
            later = about.sessions[place + 1].started if place + 1 < len(about.sessions) else np.inf
            within = time.values[(time.values >= session.started) & (time.values < later)]
            end = float(within.max()) if len(within) else None
        total += max(0.0, end - session.started) if end else 0.0
    return total


def _recipe(recipe: Mapping[str, Any]) -> tuple[str, str]:
    """The settings that differ from the defaults, and all of the recipe, as TOML."""
    settings = ""
    with suppress(UndustError, RecursionError):
        config = kinds.parse(recipe, "recipe")
        settings = toml_text.dumps(config.model_dump(mode="json", exclude_defaults=True))
    try:
        return settings, toml_text.dumps(recipe)[:MAX_RECIPE]
    except RecursionError:
        return settings, ""


def _is_small_jpeg(example: ExamplePicture) -> bool:
    if len(example.jpeg) > MAX_BYTES:
        return False
    try:
        content = base64.b64decode(example.jpeg, validate=True)
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            if max(image.size) > MAX_EXAMPLE:
                return False
            image.load()
    except Exception:  # any, depending on the decoder
        return False
    return True


def _entry(recipe: Mapping[str, Any], table: str, key: str) -> object:
    found = recipe.get(table)
    return cast("dict[str, Any]", found).get(key) if isinstance(found, dict) else None


def _whole(recipe: Mapping[str, Any], table: str, key: str) -> int:
    value = _entry(recipe, table, key)
    return value if isinstance(value, int) and 0 < value < 2**53 else 0


def moment(time: float) -> str:
    """A Unix time as a date and time of day, UTC; "" for one outside the calendar."""
    try:
        return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return ""


def duration(seconds: float) -> str:
    """A time span: 42 s, 4 min 5 s, 2 h 10 min."""
    if not seconds < 1e9:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
