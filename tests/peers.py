"""Peers that need a hand to be loaded."""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any
from unittest.mock import patch


@cache
def k_diffusion_sampling() -> Any:
    """k-diffusion's samplers, without the rest of the package.

    The package imports torchvision, of which no build fits the pinned torch. Its samplers need one
    module of it, whose only use of torchvision is in functions that they do not call: an empty
    module of that name stands in for it while they are read.
    """
    spec = find_spec("k_diffusion")
    assert spec is not None, "k-diffusion is not installed; scripts/setup test installs it"
    package = ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations or ())
    absent = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    empty = {name: ModuleType(name) for name in absent}
    empty["torchvision.transforms"].functional = empty[absent[-1]]  # pyright: ignore
    with patch.dict(sys.modules, {"k_diffusion": package, **empty}):
        return import_module("k_diffusion.sampling")
