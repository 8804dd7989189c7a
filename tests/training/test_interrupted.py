"""What a kill, a signal or a full disk does to a run: nothing that shows in the end."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from undust.errors import UndustError
from undust.training import kinds
from undust.training.loop import TrainingProgress
from undust.training.run import prepare, train

KINDS = ["vq", "diffusion"]
KILLS = "UNDUST_KILLS"  # environment: kills of every case; scripts/killed
CASES: dict[str, tuple[str, list[str]]] = {
    "first stage": ("first-stage", []),
    "codes and a discriminator": ("vq", []),
    "diffusion": ("diffusion", []),
    "Muon in bfloat16": ("diffusion", ["optimizer.kind=muon", "run.precision=bf16"]),
    "float16 in parts": ("diffusion", ["run.precision=fp16", "run.accumulate=3"]),
    "patience": ("diffusion", ["run.validate_every=2", "run.patience=99"]),
    "snapshots": ("first-stage", ["run.snapshot_every=3", "run.checkpoint_activations=true"]),
    "labels": ("diffusion", ['labels.column="text"']),
    "inpainting": ("diffusion", ["inpainting={}", "unet.in_channels=9"]),
    "pixels": (
        "diffusion",
        ["first_stage=pixels", "unet.sample_size=16", "unet.in_channels=3", "unet.out_channels=3"],
    ),
}
FEW = ("codes and a discriminator", "diffusion")  # without it
SOURCE = Path(__file__).parents[2] / "src"

Contents = Callable[[Path], dict[str, bytes]]
Write = Callable[[str], Path]
Trained = Callable[[str, kinds.AnyTrainingConfig], Path]


def results(out: Path, contents: Contents) -> dict[str, bytes]:
    """A run's last checkpoint, its model, pictures and log, without times and memory."""
    last = max((out / "checkpoints").glob("step-*"))
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
    for row in rows:
        for name in ("seconds", "time", "memory"):
            row.pop(name, None)
    return {
        **contents(last),
        **contents(out / "model"),
        **{path.name: path.read_bytes() for path in (out / "samples").glob("*.png")},
        "log": json.dumps(rows).encode(),
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The folder of a kind's whole run, trained once; it is not to be changed."""
    root = tmp_path_factory.mktemp("whole")

    def folder(kind: str, recipe: kinds.AnyTrainingConfig) -> Path:
        if not (root / kind).exists():
            assert train(recipe, root / kind)
        return root / kind

    return folder


@pytest.fixture(scope="module")
def killer() -> Iterator[subprocess.Popen[str]]:
    """A process of interrupted.py."""
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("interrupted.py")],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


@pytest.mark.parametrize("name", CASES if KILLS in os.environ else FEW)
def test_killed_at_random_moments(
    name: str,
    killer: subprocess.Popen[str],
    write_recipe: Write,
    tmp_path: Path,
    contents: Contents,
):
    kind, changes = CASES[name]
    kills, steps = int(os.environ.get(KILLS, 6)), 24 if KILLS in os.environ else 12
    recipe, out = write_recipe(kind), tmp_path / "out"
    assert killer.stdin and killer.stdout
    changes = [f"run.steps={steps}", *changes]
    killer.stdin.write(json.dumps([str(recipe), str(out), kills, changes]) + "\n")
    killer.stdin.flush()
    runs: list[list[tuple[int, bool]]] = json.loads(killer.stdout.readline())
    moments = [moment for run in runs for moment in run]
    writing = sum(writes for _, writes in moments)
    sys.stdout.write(f"{kills} kills of {len(runs)} runs, {writing} while files were written\n")
    assert len(moments) == kills
    assert len({step for step, _ in moments}) > min(8, kills // 4)  # places of the run
    assert writing >= kills // 10
    whole = results(out / "whole", contents)
    assert {"weights.safetensors", "average.safetensors", "optimizer.safetensors"} <= set(whole)
    samples = samples_of(out / "whole.samples")
    for number in range(len(runs)):
        assert results(out / f"killed-{number}", contents) == whole
        assert samples_of(out / f"killed-{number}.samples") == samples
    task = kinds.read(recipe, changes).complete().task(out / "whole", None, lambda _d, _a: None)
    groups = task.order.groups
    assert samples.keys() == {divmod(place, len(groups)) for place in range(steps * 4)}
    for epoch in range(steps * 4 // len(groups)):
        drawn = [samples[epoch, index] for index in range(len(groups))]
        assert all(sum(sample in group for sample in drawn) == 1 for group in groups)


def samples_of(path: Path) -> dict[tuple[int, int], int]:
    """The sample at each epoch and place that was trained on; the same each time it was."""
    found: dict[tuple[int, int], int] = {}
    for line in path.read_text().splitlines():
        epoch, index, sample = map(int, line.split())
        assert found.setdefault((epoch, index), sample) == sample
    return found


@pytest.mark.parametrize(("kind", "number"), [("vq", signal.SIGINT), ("diffusion", signal.SIGTERM)])
def test_asked_to_stop_it_saves_and_goes_on(
    kind: str,
    number: signal.Signals,
    trained: Trained,
    write_recipe: Write,
    tmp_path: Path,
    contents: Contents,
):
    """At step 3, which is no step for a checkpoint."""
    recipe = kinds.read(write_recipe(kind))
    whole = trained(kind, recipe)
    seen: list[int] = []

    def stop_at_three(progress: TrainingProgress) -> None:
        seen.append(progress.step)
        if progress.step == 3:
            signal.raise_signal(number)

    handler = signal.getsignal(number)
    assert not train(recipe, tmp_path / "stopped", observe=stop_at_three)
    assert seen == [1, 2, 3]
    assert signal.getsignal(number) == handler
    assert (tmp_path / "stopped/checkpoints/step-00000003").is_dir()
    assert train(recipe, tmp_path / "stopped", resume=True, observe=stop_at_three)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert results(tmp_path / "stopped", contents) == results(whole, contents)


def test_a_second_ctrl_c_stops_at_once(write_recipe: Write, tmp_path: Path):
    def insist(progress: TrainingProgress) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(kinds.read(write_recipe("first-stage")), tmp_path / "out", observe=insist)
    assert not list((tmp_path / "out/checkpoints").glob("step-*"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_costs_nothing_that_was_saved(
    kind: str, trained: Trained, write_recipe: Write, tmp_path: Path, contents: Contents
):
    """The first checkpoint is there; then no file can be as large as a checkpoint's."""
    recipe, out = kinds.read(write_recipe(kind)), tmp_path / "out"
    whole = trained(kind, recipe)
    trainer, _ = prepare(recipe, out)
    trainer.train(lambda progress: progress.step == 2 and signal.raise_signal(signal.SIGINT))
    saved = contents(out / "checkpoints")
    room = (out / "checkpoints/step-00000002/weights.safetensors").stat().st_size - 1
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(UndustError) as error:
            train(recipe, out, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.fullmatch(rf"cannot write {out}/\S+: File too large", str(error.value))
    assert contents(out / "checkpoints") == saved
    assert train(recipe, out, resume=True)
    assert results(out, contents) == results(whole, contents)


@pytest.mark.parametrize("kind", KINDS)
def test_where_the_last_checkpoint_is_the_model_is_too(
    kind: str, trained: Trained, write_recipe: Write, tmp_path: Path, contents: Contents
):
    """Killed just before the last checkpoint is there, or just after it: the end is the same."""
    recipe, out = kinds.read(write_recipe(kind)), tmp_path / "out"
    shutil.copytree(trained(kind, recipe), out)
    whole = results(out, contents)
    assert train(recipe, out, resume=True)
    assert results(out, contents) == whole
    shutil.rmtree(out / "checkpoints/step-00000006")
    assert train(recipe, out, resume=True)
    assert results(out, contents) == whole
