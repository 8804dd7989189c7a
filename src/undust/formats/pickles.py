"""Weights out of a pickle (.ckpt, .pt, .bin), in a process that can do no harm.

A pickle is a program. torch's reader with `weights_only` runs the few instructions that make
tensors and refuses all others; what is left to fear is a fault in it, and a file made to use up the
machine. So it is read in a process of its own with little memory, time, disk and environment, which
writes a safetensors file; and only that is read here.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from undust.errors import UndustError, printable
from undust.formats import safetensors_file
from undust.regular import open_regular, read_text

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
NEST = "state_dict"  # under which a training's checkpoint keeps the weights
DEEPEST = 3  # how many of these may lie in each other
LEARNT = "string_to_param"  # under which a textual inversion keeps its vectors
VECTORS = "emb_params"  # what they are called in a safetensors file
LEFT_OUT = "left_out"  # the key of the metadata that names what was not taken over
# What trainings left beside the weights: an inert object stands for it.
INERT = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.utilities.enums.AMPType",
    *("numpy.dtype", "numpy.ndarray"),
    *("numpy.core.multiarray.scalar", "numpy.core.multiarray._reconstruct"),
    *("numpy._core.multiarray.scalar", "numpy._core.multiarray._reconstruct"),
)
PARAMETERS = "torch.nn.modules.container.ParameterDict"
# What the process may use: seconds, also a second for so many bytes; times the file's size; bytes.
PATIENCE, SPEED = 120, 4e6
TIMES, ROOM = 2, 2**29
ENVIRONMENT = {"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from undust.formats import pickles; sys.exit(pickles.main())"
)
REFUSED = 3  # exit code of the process when the last line of its stderr says why
LINE = 1000  # bytes, the longest that such a line can be
ZIP = b"PK\x03\x04"


def is_pickle(path: Path) -> bool:
    """Whether a file is to be read by `unpack`, by its name or by how it begins."""
    if path.suffix in SUFFIXES:
        return True
    try:
        with open_regular(path) as file:
            start = file.read(4)
    except OSError:
        return False
    return start == ZIP or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05")


def unpack(path: Path, target: Path, *, seconds: float | None = None) -> None:
    """Writes the tensors in a pickle to `target`, a safetensors file.

    seconds: until the reading is given up; None for as many as a file of its size can need. Tensors
    are taken from below `state_dict` where there is one; AUTOMATIC1111's textual inversion becomes
    its one tensor, `VECTORS`; what else there is, the metadata names under `LEFT_OUT`. Raises
    UndustError for what is not a checkpoint, asks for more than tensors or uses more memory, time
    or disk than such a file may; `target` is then not there.
    """
    if sys.platform == "win32":
        raise UndustError(f"{path} is a pickle, and on Windows there is no safe way to read one")
    try:
        open_regular(path).close()
    except OSError as error:
        raise UndustError(f"{path} cannot be read: {error.strerror}") from error
    patience = seconds or PATIENCE + path.stat().st_size / SPEED
    with tempfile.TemporaryDirectory(prefix=".undust-", dir=target.parent) as scratch:
        written = Path(scratch, "weights").resolve()
        _run([str(path.resolve()), str(written), str(int(patience) + 1)], path, patience)
        try:
            safetensors_file.header(written)
        except UndustError as error:
            reason = str(error).removeprefix(f"{written}: ").replace(str(written), "it")
            raise _refusal(path, reason) from error
        written.replace(target)


def read(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors in a pickle, read in this process, and the names of what else it holds.

    Raises UndustError, in a line without the path, for what is not a checkpoint, and for one that
    asks for more than tensors.
    """
    try:
        content = _loaded(path)
    except Exception as error:
        raise UndustError(_told(error)) from error
    left: list[str] = []
    for _ in range(DEEPEST):
        match content:
            case {"state_dict": dict(inner)}:
                left += [str(key) for key in cast("dict[Any, Any]", content) if key != NEST]
                content = cast(object, inner)
            case _:
                break
    match content:
        case {"string_to_param": held}:
            left += [str(key) for key in cast("dict[Any, Any]", content) if key != LEARNT]
            content = _learnt(cast(object, held))
        case _:
            pass
    if not isinstance(content, dict):
        raise UndustError(f"it holds a {type(content).__name__}, not tensors with names")
    found = cast("dict[Any, Any]", content)
    tensors = {
        name: tensor
        for name, tensor in found.items()
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }
    left += [str(name) for name in found if name not in tensors]
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise UndustError(f"its {printable(name)} is sparse, quantized or without numbers")
    if not tensors:
        raise UndustError(f"it holds no tensors; found {printable(', '.join(left) or 'nothing')}")
    return tensors, left


def _learnt(held: object) -> dict[object, object]:
    """The vectors of a textual inversion: of one word under the name that they have elsewhere."""
    words = held.held if isinstance(held, _Parameters) else held
    if not isinstance(words, dict):
        raise UndustError(f"its {LEARNT} is a {type(words).__name__}, not vectors with names")
    found = cast("dict[object, object]", words)
    return {VECTORS: next(iter(found.values()))} if len(found) == 1 else found


def _run(arguments: list[str], path: Path, patience: float) -> None:
    """Has `main` run in a process of its own; UndustError unless it succeeds in time."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", START, json.dumps(_places()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env=ENVIRONMENT,
            cwd=Path(arguments[1]).parent,
            start_new_session=True,
        )
        try:
            code = process.wait(patience)
        except subprocess.TimeoutExpired:
            raise _refusal(path, f"reading it took more than {patience:.0f} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code:
            raise _refusal(path, _reason(code, said))


def _places() -> list[str]:
    """Where this process finds its packages; -I would leave out what PYTHONPATH names."""
    return [place for place in sys.path if Path(place).is_absolute()]


def _refusal(path: Path, reason: str) -> UndustError:
    return UndustError(f"{path} is not read: {reason}")


def _reason(code: int, said: BinaryIO) -> str:
    """What to tell of a process that failed."""
    if code == REFUSED:
        return _last_line(said)
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return "reading it took more time or memory than a checkpoint of its size needs"
    how = signal.Signals(-code).name if code < 0 else code
    last = _last_line(said)
    return f"the process that read it ended with {how}{f' ({last})' if last else ''}"


def _last_line(said: BinaryIO) -> str:
    said.seek(-min(LINE, said.seek(0, os.SEEK_END)), os.SEEK_END)
    return (said.read().decode(errors="replace").splitlines() or [""])[-1]


class _Inert:
    """Takes whatever it is given and keeps nothing of it."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class _Parameters(_Inert):
    """In the place of a ParameterDict: keeps its parameters and nothing else."""

    held: object = None

    def __setstate__(self, state: object) -> None:
        match state:
            case {"_parameters": held}:
                self.held = cast(object, held)
            case _:
                pass


def _limit(size: int, seconds: int) -> None:
    """Bounds what this process may use from now on, to read a file of `size` bytes."""
    import resource

    pages = Path("/proc/self/statm")
    used = int(read_text(pages).split()[0]) * resource.getpagesize() if pages.exists() else 0
    for limit, value in (
        (resource.RLIMIT_AS, used + TIMES * size + ROOM),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, TIMES * size + ROOM),
        (resource.RLIMIT_CORE, 0),
    ):
        _, highest = resource.getrlimit(limit)
        value = value if highest == resource.RLIM_INFINITY else min(value, highest)
        resource.setrlimit(limit, (value, value))


def _loaded(path: Path) -> object:
    with open_regular(path) as file:
        mapped = file.read(len(ZIP)) == ZIP  # what older versions of torch wrote cannot be
    stand_ins = [(_Parameters, PARAMETERS), *((_Inert, name) for name in INERT)]
    with torch.serialization.safe_globals(cast("list[Any]", stand_ins)):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _told(error: Exception) -> str:
    """One line about what torch's reader raised."""
    text = str(error)
    if forbidden := re.search(r"GLOBAL (\S+)", text) or re.search(r"class (\w\S+)", text):
        return f"it asks for {printable(forbidden[1])}, which no weights need and which was not run"
    if isinstance(error, MemoryError) or "allocate memory" in text:
        return "it wants more memory than a checkpoint of its size needs"
    cause = re.search(r"Unpickler error:\s*(.+)", text) or re.match(r"\s*(.+?)(\. |\n|$)", text)
    return (
        f"it is damaged or no checkpoint ({printable(cause[1] if cause else type(error).__name__)})"
    )


def _write(path: Path, target: Path, seconds: int) -> None:
    """What the process does."""
    torch.set_num_threads(1)
    size = path.stat().st_size
    _limit(size, seconds)
    tensors, left = read(path)
    if sum(tensor.nbytes for tensor in tensors.values()) > TIMES * size + ROOM:
        raise UndustError("it wants more memory than a checkpoint of its size needs")
    note = {LEFT_OUT: printable(", ".join(sorted(left)))} if left else None
    safetensors_file.save(target, tensors, note)


def main() -> int:
    """What the process runs."""
    source, target, seconds = sys.argv[1:]
    try:
        _write(Path(source), Path(target), int(seconds))
    except Exception as error:
        sys.stderr.write(f"\n{error if isinstance(error, UndustError) else _told(error)}")
        return REFUSED
    return 0
