"""Batches of pictures that several processes of this machine sample."""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import cast

import torch

from undust.errors import UndustError
from undust.evaluation.sampling import Observe, sampled_batch
from undust.pipeline import LatentDiffusion
from undust.recipe.recipe import Recipe

Batch = tuple[Sequence[Recipe], Sequence[Path]]
"""The recipes of a batch, and the files of their pictures."""


@dataclass(frozen=True)
class Processes:
    """Processes for sampling.

    load: loads the model in each of them; it has to be picklable, and a script that uses it has to
    begin its work under `if __name__ == "__main__"`, as for multiprocessing.
    """

    count: int
    load: Callable[[], LatentDiffusion]

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UndustError(f"processes: has to be at least 1, not {self.count}")

    def sample(self, batches: Sequence[Batch], observe: Observe) -> None:
        """Samples batches into their files; a process that is free takes the next one.

        observe: called with the number of steps that are done, and of all. The threads of this
        process are divided among them. They end when this call ends, by an error or Ctrl-C too.
        Raises UndustError for the first error in any of them.
        """
        waiting, done = iter(batches), 0
        total = sum(map(_steps, batches))
        busy: dict[Connection, tuple[Batch, int]] = {}  # the batch of a process, and its steps
        with self._started(min(self.count, len(batches))) as workers:
            free = list(workers)
            while True:
                for pipe, batch in zip(free, waiting, strict=False):
                    pipe.send(batch)
                    busy[pipe] = batch, 0
                if not busy:
                    return
                free.clear()
                for pipe in cast("list[Connection]", wait(list(busy))):
                    batch, _ = busy[pipe]
                    steps = _received(pipe, workers[pipe])
                    if steps is None:
                        done += _steps(batch)
                        del busy[pipe]
                        free.append(pipe)
                    else:
                        busy[pipe] = batch, steps
                observe(done + sum(steps for _, steps in busy.values()), total)

    @contextmanager
    def _started(self, count: int) -> Generator[dict[Connection, SpawnProcess]]:
        """Processes by the pipes to them."""
        context = multiprocessing.get_context("spawn")
        threads = max(1, torch.get_num_threads() // self.count)
        workers: dict[Connection, SpawnProcess] = {}
        try:
            with _without_interrupts():
                for _ in range(count):
                    ours, theirs = context.Pipe()
                    process = context.Process(
                        target=_work, args=(self.load, threads, theirs), daemon=True
                    )
                    workers[ours] = process
                    process.start()
                    theirs.close()
            yield workers
        finally:
            for pipe, process in workers.items():
                if process.pid is not None:  # before its pipe ends, of which it would speak
                    process.kill()
                    process.join()
                pipe.close()


def _work(load: Callable[[], LatentDiffusion], threads: int, pipe: Connection) -> None:
    """The work of a process: sends its steps of a batch, None at its end, an error as text."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
    warnings.simplefilter("ignore")  # the first process shows them
    torch.set_num_threads(threads)
    try:
        model = load()
        while True:
            recipes, paths = cast("Batch", pipe.recv())
            sampled_batch(model, recipes, paths, pipe.send)
            pipe.send(None)
    except (EOFError, ConnectionError):
        return  # the first process has ended
    except Exception as error:
        known = isinstance(error, UndustError)
        with suppress(ConnectionError):
            pipe.send(str(error) if known else f"{type(error).__name__}: {error}")


def _steps(batch: Batch) -> int:
    return sum(recipe.total_steps for recipe in batch[0])


def _received(pipe: Connection, process: SpawnProcess) -> int | None:
    """A message of a process. Raises UndustError for an error in it, and if it has ended."""
    try:
        received = cast("int | str | None", pipe.recv())
    except (EOFError, ConnectionResetError) as error:
        process.join()
        raise UndustError(
            f"processes: one of them ended ({_ending(process.exitcode)}); fewer need less memory"
        ) from error
    if isinstance(received, str):
        raise UndustError(received)
    return received


def _ending(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


@contextmanager
def _without_interrupts() -> Generator[None]:
    """A context in which Ctrl-C waits; processes that are started in it do not receive it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
