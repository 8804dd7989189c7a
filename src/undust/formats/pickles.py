"""Weights from a pickle (.ckpt, .pt, .bin), read in a separate, limited process.

A pickle is a program. torch's reader with `weights_only` runs the few instructions that make
tensors and refuses all others; a bug in it, or a file that exhausts the machine, remain possible.
So it runs in a separate process with limited memory, time, disk and environment, which writes a
safetensors file; only that is read here.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from undust.errors import UndustError, printable
from undust.formats import hdf5, safetensors_file
from undust.regular import open_regular, read_text

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
WEIGHTS_KEY = "state_dict"  # of the weights in a training checkpoint
MAX_NESTING = 3  # of these
EMBEDDING_KEY = "string_to_param"  # of the vectors in a textual inversion
VECTORS = "emb_params"  # their key in a safetensors file
LEFT_OUT = "left_out"  # the metadata key of a list of other contents
# Classes that trainers leave beside the weights; inert objects replace them.
INERT = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.utilities.enums.AMPType",
    *("numpy.dtype", "numpy.ndarray"),
    *("numpy.core.multiarray.scalar", "numpy.core.multiarray._reconstruct"),
    *("numpy._core.multiarray.scalar", "numpy._core.multiarray._reconstruct"),
)
PARAMETERS = "torch.nn.modules.container.ParameterDict"
# Limits of the process: seconds plus one for so many bytes; memory in file sizes plus bytes.
MIN_SECONDS, BYTES_PER_SECOND = 120, 4e6
MEMORY_FACTOR, MIN_MEMORY = 2, 2**29
ENVIRONMENT = {"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
START = (
    "import json, os, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from undust.formats import pickles; code = pickles.main(); "
    "sys.stderr.flush(); os._exit(code)"  # as undust.__main__
)
REFUSED = 3  # exit code of the process; the last line of its stderr has the reason
LINE = 1000  # bytes, the limit of that line
ZIP = b"PK\x03\x04"


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, by its suffix or its first bytes."""
    if path.suffix in SUFFIXES:
        return True
    try:
        with open_regular(path) as file:
            start = file.read(4)
    except OSError:
        return False
    return start == ZIP or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05")


def unpack(path: Path, target: Path, *, seconds: float | None = None) -> None:
    """Writes the tensors in a pickle, or in a Keras HDF5 file, to `target`, a safetensors file.

    seconds: the time limit; None for one by the size of the file. Tensors are taken from
    `state_dict` if there is one; AUTOMATIC1111's textual inversion becomes one tensor, `VECTORS`;
    the metadata lists other contents under `LEFT_OUT`. Raises UndustError, without a `target`, for
    a file that is not a checkpoint, that has objects other than tensors, or that exceeds the limits
    of memory, time or disk.
    """
    if sys.platform == "win32":
        raise UndustError(f"{path} is a pickle, and there is no safe way to read it on Windows")
    try:
        open_regular(path).close()
    except OSError as error:
        raise UndustError(f"{path} cannot be read: {error.strerror}") from error
    patience = seconds or MIN_SECONDS + path.stat().st_size / BYTES_PER_SECOND
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
    """The tensors in a pickle, read in this process, and the names of its other contents.

    Raises UndustError, without the path, for a file that is not a checkpoint, and for one with
    objects other than tensors.
    """
    try:
        content = _loaded(path)
    except Exception as error:
        raise UndustError(_told(error)) from error
    left: list[str] = []
    for _ in range(MAX_NESTING):
        match content:
            case {"state_dict": dict(inner)}:
                left += [str(key) for key in cast("dict[Any, Any]", content) if key != WEIGHTS_KEY]
                content = cast(object, inner)
            case _:
                break
    match content:
        case {"string_to_param": held}:
            left += [str(key) for key in cast("dict[Any, Any]", content) if key != EMBEDDING_KEY]
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
            raise UndustError(f"its {printable(name)} is sparse, quantized or has no values")
    if not tensors:
        raise UndustError(f"it holds no tensors; found {printable(', '.join(left) or 'nothing')}")
    if entries := _entries(path):
        _check_storages(tensors.values(), entries)
    return tensors, left


def _check_storages(tensors: Iterable[Tensor], entries: Iterable[zipfile.ZipInfo]) -> None:
    """Raises UndustError for tensors that are longer or shorter than what a zip file stores.

    torch does not check this in mapped files: it reads on into what follows.
    """
    storages = [tensor.untyped_storage() for tensor in tensors]
    needed = Counter({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    del needed[0]
    if wrong := needed - Counter(entry.file_size for entry in entries):
        raise UndustError(f"it is damaged: a tensor of {min(wrong):,} bytes is not whole in it")


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    """The entries of a zip file; none of another one."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except zipfile.BadZipFile:
        return []


def _learnt(held: object) -> dict[object, object]:
    """The vectors of a textual inversion; those of a single word under the key `VECTORS`."""
    words = held.held if isinstance(held, _Parameters) else held
    if not isinstance(words, dict):
        raise UndustError(
            f"its {EMBEDDING_KEY} is a {type(words).__name__}, not vectors with names"
        )
    found = cast("dict[object, object]", words)
    return {VECTORS: next(iter(found.values()))} if len(found) == 1 else found


def _run(arguments: list[str], path: Path, patience: float) -> None:
    """Runs `main` in a separate process; UndustError unless it succeeds in time."""
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
    """The package paths of this process; -I would omit those of PYTHONPATH."""
    return [place for place in sys.path if Path(place).is_absolute()]


def _refusal(path: Path, reason: str) -> UndustError:
    return UndustError(f"{path} cannot be read: {reason}")


def _reason(code: int, said: BinaryIO) -> str:
    """The reason for the failure of the process."""
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
    """An object that accepts any state and keeps none of it."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class _Parameters(_Inert):
    """A replacement of ParameterDict that only keeps the parameters."""

    held: object = None

    def __setstate__(self, state: object) -> None:
        match state:
            case {"_parameters": held}:
                self.held = cast(object, held)
            case _:
                pass


def _limit(size: int, seconds: int) -> None:
    """Limits the resources of this process for reading a file of `size` bytes."""
    import resource

    pages = Path("/proc/self/statm")
    used = int(read_text(pages).split()[0]) * resource.getpagesize() if pages.exists() else 0
    for limit, value in (
        (resource.RLIMIT_AS, used + MEMORY_FACTOR * size + MIN_MEMORY),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, MEMORY_FACTOR * size + MIN_MEMORY),
        (resource.RLIMIT_CORE, 0),
    ):
        _, highest = resource.getrlimit(limit)
        value = value if highest == resource.RLIM_INFINITY else min(value, highest)
        resource.setrlimit(limit, (value, value))


def _loaded(path: Path) -> object:
    # Files of older versions of torch cannot be mapped, nor can those packed again by others.
    kinds = {entry.compress_type for entry in _entries(path)}
    mapped = kinds == {zipfile.ZIP_STORED}
    stand_ins = [(_Parameters, PARAMETERS), *((_Inert, name) for name in INERT)]
    with torch.serialization.safe_globals(cast("list[Any]", stand_ins)):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _told(error: Exception) -> str:
    """One line about an error of torch's reader."""
    text = str(error)
    if forbidden := re.search(r"GLOBAL (\S+)", text) or re.search(r"class (\w\S+)", text):
        return f"it uses {printable(forbidden[1])}, which weights do not need; it was not run"
    if isinstance(error, MemoryError) or "allocate memory" in text:
        return "it needs more memory than a checkpoint of its size should"
    cause = re.search(r"Unpickler error:\s*(.+)", text) or re.match(r"\s*(.+?)(\. |\n|$)", text)
    return (
        f"it is damaged or no checkpoint ({printable(cause[1] if cause else type(error).__name__)})"
    )


def _write(path: Path, target: Path, seconds: int) -> None:
    """Reads a pickle or an HDF5 file and writes a safetensors file, within limits."""
    torch.set_num_threads(1)
    size = path.stat().st_size
    _limit(size, seconds)
    tensors, left = (hdf5.read(path), []) if hdf5.is_hdf5(path) else read(path)
    if sum(tensor.nbytes for tensor in tensors.values()) > MEMORY_FACTOR * size + MIN_MEMORY:
        raise UndustError("it needs more memory than a checkpoint of its size should")
    note = {LEFT_OUT: printable(", ".join(sorted(left)))} if left else None
    safetensors_file.save(target, tensors, note)


def main() -> int:
    """The entry point of the separate process."""
    source, target, seconds = sys.argv[1:]
    try:
        _write(Path(source), Path(target), int(seconds))
    except Exception as error:
        sys.stderr.write(f"\n{error if isinstance(error, UndustError) else _told(error)}")
        return REFUSED
    return 0
