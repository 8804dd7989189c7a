#!/usr/bin/env python
"""Damaged and hostile files and texts, for everything that reads such: one clear line, or it works.

    .venv/bin/python scripts/fuzz.py [--count 100000] [--seed 0] [--only KIND] [--keep DIR]
    .venv/bin/python scripts/fuzz.py --case headers:17          (one case again, with its traceback)

A case is a small valid original, changed at random; the seed, the kind and the number make it, so
that it can be made again. It is read in a process of its own, and a fault is: anything but success
or an UndustError of one line, more than 2 s of a processor, or more memory than 4 times the case's
size and 48 MiB. The size is that of its files, or of the picture in them where it was read; the
memory is the highest that the process held while it read (VmHWM, reset before each case) above what
it held before; the 48 MiB are what the interpreter makes of the longest JSON that is read at all.
Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from fuzzing import KINDS, Asks

from undust.cli import console
from undust.errors import UndustError

SECONDS, WAIT = 2.0, 60.0  # of a processor for one reading; of the clock until it is ended
TIMES, ALLOWANCE = 4, 48 * 2**20
LONGEST = 1000  # characters of an error
ROOM = 8 * 2**30  # bytes of address space: what asks for more fails, and does not take the machine
UNCLEAR = {"Cc", "Cs", "Zl", "Zp"}  # control characters, half characters, ends of lines


@dataclass
class Outcome:
    """What came of a case, or of all of a kind: how often it was read, and how often refused.

    seconds, memory: the most that a reading took; faults: what was wrong, each in one line.
    """

    number: int = 0
    read: int = 0
    refused: int = 0
    seconds: float = 0.0
    memory: int = 0
    faults: list[str] = field(default_factory=list[str])

    def add(self, other: Outcome) -> None:
        self.number += 1
        self.read += bool(other.read) and not other.faults
        self.refused += not other.read and not other.faults
        self.seconds = max(self.seconds, other.seconds)
        self.memory = max(self.memory, other.memory)
        self.faults += other.faults


def made(kind: str, number: int, seed: int, folder: Path) -> Asks:
    """The case, its files in a folder that is emptied for it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    chance = random.Random(f"{seed}:{kind}:{number}")
    return KINDS[kind].make(chance, folder)


def tried(kind: str, number: int, seed: int, folder: Path, *, debug: bool = False) -> Outcome:
    """Makes a case and has it read."""
    asks = made(kind, number, seed, folder)
    outcome = Outcome(number)
    for ask in asks.asks:
        before, began = _reset(), time.process_time()
        try:
            ask()
            outcome.read += 1
            size = max(asks.size, asks.unpacked)
        except UndustError as error:
            outcome.refused += 1
            outcome.faults += unclear(str(error))
            size = asks.size
            if debug:
                print(f"refused: {error}")
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            at = f"{Path(where.filename).name}:{where.lineno}"
            outcome.faults.append(f"{type(error).__name__} in {at}: {error!s:.200}")
            size = asks.size
            if debug:
                traceback.print_exc()
        took, memory = time.process_time() - began, _memory("VmHWM") - before
        if took > SECONDS:
            outcome.faults.append(f"{took:.1f} s")
        if memory > TIMES * size + ALLOWANCE:
            outcome.faults.append(f"{memory / 2**20:.0f} MiB for {size:,} bytes")
        outcome.seconds, outcome.memory = max(outcome.seconds, took), max(outcome.memory, memory)
    return outcome


def unclear(text: str) -> Iterator[str]:
    """What keeps an error from being one clear line."""
    if not text.strip() or len(text) > LONGEST:
        yield f"an error of {len(text)} characters: {text[:200]!r}"
    if strange := {letter for letter in text if unicodedata.category(letter) in UNCLEAR}:
        yield f"an error with {sorted(strange)[:5]!r}: {text[:200]!r}"


def work(todo: list[tuple[str, int]], seed: int, folder: Path, pipe: Connection) -> None:
    """What the process does that reads: one case after the other, each one's outcome sent."""
    import resource

    ctypes.CDLL(None).mallopt(-3, 2**17)  # M_MMAP_THRESHOLD: what is freed is given back at once
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads are not in this process
    held = _memory("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (held + ROOM, held + ROOM))
    tried(*todo[0], seed, folder)  # what is only done the first time takes memory of its own
    for kind, number in todo:
        pipe.send(tried(kind, number, seed, folder))


def outcomes(todo: list[tuple[str, int]], seed: int, folder: Path) -> Iterator[Outcome]:
    """The outcome of each case in turn; a process that dies or hangs is replaced."""
    done = 0
    while done < len(todo):
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(
            target=work, args=(todo[done:], seed, folder, theirs), daemon=True
        )
        process.start()
        theirs.close()
        try:
            while done < len(todo):
                if not ours.poll(WAIT):
                    raise TimeoutError
                outcome = ours.recv()
                done += 1
                yield outcome
        except (EOFError, TimeoutError) as end:
            process.kill()
            process.join()
            code = process.exitcode or 0
            died = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            hung = isinstance(end, TimeoutError)
            fault = f"no answer within {WAIT:.0f} s" if hung else f"the process died: {died}"
            yield Outcome(todo[done][1], faults=[fault])
            done += 1
        finally:
            process.kill()
            process.join()


def run(count: int, seed: int, kinds: list[str], keep: Path | None) -> int:
    """All cases; how many were at fault."""
    total = sum(KINDS[kind].share for kind in kinds)
    amounts = {kind: round(count * KINDS[kind].share / total) for kind in kinds}
    sums: defaultdict[str, Outcome] = defaultdict(Outcome)
    began, wrong = time.monotonic(), 0
    with (
        tempfile.TemporaryDirectory(prefix="undust-fuzz-") as room,
        console.Progress(sum(amounts.values()), "cases") as progress,
    ):
        for kind, amount in amounts.items():
            KINDS[kind].prepare(Path(room, "originals"))
            todo = [(kind, number) for number in range(amount)]
            for done, outcome in enumerate(outcomes(todo, seed, Path(room, "case")), 1):
                sums[kind].add(outcome)
                progress.update(sum(each.number for each in sums.values()), f"{kind} {done}")
                for fault in outcome.faults:
                    progress.line(f"{kind}:{outcome.number}: {console.clean(fault)}")
                if outcome.faults:
                    wrong += 1
                    if keep:
                        place = Path(room, "kept")
                        made(kind, outcome.number, seed, place)
                        shutil.copytree(
                            place, keep / f"{kind}-{outcome.number}", dirs_exist_ok=True
                        )
    console.table(
        ["kind", "cases>", "read>", "refused>", "faults>", "longest, s>", "most memory, MiB>"],
        [
            (
                *(kind, each.number, each.read, each.refused, len(each.faults)),
                *(f"{each.seconds:.2f}", f"{each.memory / 2**20:.1f}"),
            )
            for kind, each in sums.items()
        ],
    )
    cases = sum(each.number for each in sums.values())
    print(f"{cases:,} cases, seed {seed}, {wrong} at fault, {time.monotonic() - began:,.0f} s")
    return wrong


def _memory(what: str) -> int:
    """Bytes that this process holds: VmRSS now, VmHWM at most since the last reset, VmSize."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) * 1024


def _reset() -> int:
    """Begins to note the most memory anew; the bytes that are held now.

    Memory that was freed but is kept by the allocator goes back first: what is taken from it would
    not be seen.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # of glibc
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def cli() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS, help="cases of this kind alone")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where files at fault are kept")
    parser.add_argument("--case", metavar="KIND:N", help="one case again, left in --keep")
    options = parser.parse_args()
    if options.case:
        kind, _, number = options.case.partition(":")
        with tempfile.TemporaryDirectory(prefix="undust-fuzz-") as room:
            KINDS[kind].prepare(Path(room, "originals"))
            folder = Path(options.keep or room, options.case.replace(":", "-"))
            outcome = tried(kind, int(number), options.seed, folder, debug=True)
        print(outcome)
        return bool(outcome.faults)
    kinds = [options.only] if options.only else list(KINDS)
    return bool(run(options.count, options.seed, kinds, options.keep))


if __name__ == "__main__":
    sys.exit(cli())
