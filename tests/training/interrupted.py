"""Trains in children of its own and kills them; `test_interrupted.py` runs it.

A line of the input is JSON: the recipe's path, a folder, the number of kills, and changes of the
recipe. Torch is imported here once, and computes in the children only: a process in which it has
computed does not fork well, and one of its own for each child would take seconds to start.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import torch._dynamo  # the first optimizer would import it, in every child again
import torch.utils.tensorboard.writer  # pyright: ignore[reportUnusedImport]

from undust.training import denoising, kinds, validation
from undust.training.data import Batch
from undust.training.loop import Trainer
from undust.training.run import prepare

Recipe = kinds.AnyTrainingConfig


def start(recipe: Recipe, out: Path) -> tuple[int, int]:
    """A child that trains, from the newest checkpoint in `out` if there is one.

    Its number, and a pipe from which a byte can be read for every step.
    """
    steps, told = os.pipe()
    child = os.fork()
    if child:
        os.close(told)
        return child, steps
    code = 1
    try:
        trainer, _ = prepare(recipe, out, resume=True)
        record_samples(trainer, out.with_name(f"{out.name}.samples"))
        trainer.train(lambda _: os.write(told, b"."))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def record_samples(trainer: Trainer, path: Path) -> None:
    """Appends the epoch, place and index of each sample that is trained on, a line for each."""
    losses = trainer.task.losses
    record = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def recorded(batch: Batch) -> dict[str, torch.Tensor]:
        if torch.is_grad_enabled():
            rows = zip(batch.epoch, batch.index, batch.sample, strict=True)
            os.write(record, "".join(f"{e} {i} {s}\n" for e, i, s in rows).encode())
        return losses(batch)

    trainer.task.losses = recorded  # pyright: ignore[reportAttributeAccessIssue]


def end(child: int) -> int:
    """How the child ended: its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def newest(out: Path) -> int:
    """The step of the newest checkpoint."""
    steps = [int(path.name[5:]) for path in out.glob("checkpoints/step-*")]
    return max(steps, default=0)


def killed(recipe: Recipe, out: Path, kills: int) -> None:
    """Trains whole in out/whole, and in out/killed-0, … until there were enough kills.

    One kill in four while the child gets ready, the others after one to four of its steps and a
    random part of the time of two. Prints for each of these folders, at each kill, the step of the
    newest checkpoint, and whether files were being written after the first step.
    """
    child, pipe = start(recipe, out / "whole")
    began = time.monotonic()
    os.read(pipe, 1)
    ready = time.monotonic()
    assert end(child) == 0
    two_steps = 2 * (time.monotonic() - ready) / recipe.run.steps
    chance = random.Random(0)
    moments: list[list[tuple[int, bool]]] = []
    while sum(map(len, moments)) < kills:
        folder = out / f"killed-{len(moments)}"
        moments.append([])
        ended = None
        while ended != 0:
            before, trains = workspaces(folder), False
            child, pipe = start(recipe, folder)
            if sum(map(len, moments)) < kills:
                if chance.random() < 1 / 4:
                    time.sleep(chance.uniform(0, ready - began))
                else:
                    for _ in range(chance.randint(1, 4)):
                        trains = os.read(pipe, 1) != b""
                    time.sleep(chance.uniform(0, two_steps))
                os.kill(child, signal.SIGKILL)
            ended = end(child)
            os.close(pipe)
            assert ended in (0, -signal.SIGKILL), ended
            if ended:
                writes = trains and not workspaces(folder) <= before
                moments[-1].append((newest(folder), writes))
    sys.stdout.write(json.dumps(moments) + "\n")
    sys.stdout.flush()


def workspaces(out: Path) -> set[Path]:
    """Folders and files below `out` that are being written, or were by a killed child."""
    return set(out.rglob(".undust-*.tmp"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    denoising.PREVIEW_STEPS, validation.MIN_DRAWS = 3, 8  # as in conftest.py
    for line in sys.stdin:
        path, folder, kills, changes = json.loads(line)
        killed(kinds.read(Path(path), changes), Path(folder), kills)
