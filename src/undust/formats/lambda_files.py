"""Files of tables of guidance strengths and of noise levels: .npy and .csv.

A table's file has w = λ/(1 + λ), a row for each noise level and a column for each frame, and a list
of noise levels one number in each line. Comments in a .csv begin with #.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from undust.diffusion.lambda_tables import LambdaTable, noise_levels, table_of
from undust.errors import UndustError, quoted
from undust.formats.files import atomic_write
from undust.formats.npy_files import read_array
from undust.regular import read_text

LIMIT = 2**24  # bytes of a file that is read


def read_table(path: Path, sigmas: Tensor, num_frames: int) -> LambdaTable:
    """The table in a .npy or .csv file, for a sampler's σ [N + 1] or [N].

    The file has w [N, F], or all rows one after another. Raises UndustError, which names the file,
    for another shape or kind, weights outside 0 … 1 (as λ would be) and more than `LIMIT` bytes.
    """
    weights = _read(path)
    try:
        return table_of(weights, sigmas, num_frames)
    except UndustError as error:
        raise UndustError(f"{path}: {error}") from error


def read_sigmas(path: Path) -> Tensor:
    """The σ in a .npy or .csv file, float64, with its final 0 if it has one.

    Raises UndustError, which names the file, as `read_table` and `noise_levels` do.
    """
    sigmas = _read(path)
    if sigmas.ndim == 2 and 1 in sigmas.shape:
        sigmas = sigmas.flatten()
    try:
        noise_levels(sigmas)
    except UndustError as error:
        raise UndustError(f"{path}: {error}") from error
    return sigmas


def write_table(path: Path, table: LambdaTable) -> None:
    """Writes w to a .npy or .csv file; both give the same numbers back.

    Raises UndustError for another suffix and if the file cannot be written.
    """
    _WRITERS[table_suffix(path)](path, table)


def table_suffix(path: Path) -> str:
    """The suffix of a table's file in lower case. Raises UndustError if it is no such suffix."""
    suffix = path.suffix.lower()
    if suffix not in _WRITERS:
        raise UndustError(f"{path}: tables and noise levels are in .npy or .csv files")
    return suffix


def _write_npy(path: Path, table: LambdaTable) -> None:
    content = io.BytesIO()
    np.save(content, table.weights.numpy(), allow_pickle=False)
    atomic_write(path, content.getvalue())


def _write_csv(path: Path, table: LambdaTable) -> None:
    lines = ["# guidance strengths, w = λ/(1 + λ); rows: noise levels σ, columns: frames"]
    if table.triple is not None:
        found = ", ".join(f"v{k} = {v:g}" for k, v in enumerate(table.triple, 1))
        lines.append(f"# {found}: {table.count} of {table.weights.numel()} are above 0.5")
    lines.append(f"# σ: {' '.join(f'{level:.6g}' for level in table.levels.tolist())}")
    lines += [",".join(map(repr, row)) for row in table.weights.tolist()]
    atomic_write(path, ("\n".join(lines) + "\n").encode())


_WRITERS: dict[str, Callable[[Path, LambdaTable], None]] = {
    ".npy": _write_npy,
    ".csv": _write_csv,
}


def _read(path: Path) -> Tensor:
    """The numbers of a file, float64, of one dimension or more."""
    if table_suffix(path) == ".npy":
        return read_array(path, LIMIT)
    try:
        return _from_csv(read_text(path, LIMIT))
    except UnicodeDecodeError as error:
        raise UndustError(f"{path} is not text in UTF-8") from error
    except UndustError as error:
        raise UndustError(f"{path}: {error}") from error


def _from_csv(text: str) -> Tensor:
    """Numbers [lines, columns], or [lines] if there is one in each line."""
    rows: list[list[float]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not (line := line.partition("#")[0].strip()):
            continue
        rows.append(_numbers(line.split(","), number))
        if len(rows[-1]) != len(rows[0]):
            raise UndustError(
                f"line {number} has {len(rows[-1])} numbers, the ones before it {len(rows[0])}"
            )
    if not rows:
        raise UndustError("it has no numbers")
    table = torch.tensor(rows, dtype=torch.float64)
    return table.squeeze(1) if len(rows[0]) == 1 else table


def _numbers(cells: Iterable[str], line: int) -> list[float]:
    numbers: list[float] = []
    for cell in cells:
        try:
            numbers.append(float(cell))
        except ValueError as error:
            raise UndustError(
                f"line {line}: {quoted(cell.strip())} is no number; commas are between numbers, "
                "and points in them"
            ) from error
    return numbers
