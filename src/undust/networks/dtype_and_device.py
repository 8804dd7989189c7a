"""The dtype of weights and the device of networks, by name."""

from __future__ import annotations

import torch

from undust.errors import UndustError, quoted

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def precision(given: torch.dtype | str) -> torch.dtype:
    """The dtype of weights by its short name or torch's. Raises UndustError for any other."""
    theirs = {str(kind): kind for kind in (*PRECISIONS.values(), torch.float64)}
    short = {name.removeprefix("torch."): kind for name, kind in theirs.items()}
    found = {**PRECISIONS, **theirs, **short}.get(str(given))
    if found is None:
        raise UndustError(f"dtype: {quoted(given)} is not one of fp32, fp16 and bf16")
    return found


def device(given: torch.device | str | None) -> torch.device:
    """A device, by default the CPU. Raises UndustError for one that is not available."""
    try:
        place = torch.device(given or "cpu")
        made = torch.empty(0, device=place)
        made.cpu()  # torch's "meta" gives nothing back: it has shapes alone
        return made.device
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0].removesuffix(".")
        raise UndustError(f"device: {given} cannot be used here: {reason}") from error
