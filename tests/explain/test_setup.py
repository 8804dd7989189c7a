"""What a setup refuses, and what it shows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from part_setups import setup, tiny
from undust.errors import UndustError
from undust.explain.setup import ROW
from variants import build


def test_a_model_that_needs_a_picture_is_refused():
    plain = setup(tiny())
    plain.check_inputs()
    other = replace(plain, model=build("sd1-inpainting"))
    with pytest.raises(UndustError, match="this model also needs a picture"):
        other.estimate(plain.latents, 1.0)


def test_rows_are_short():
    few = setup(tiny())
    assert few.shown == 2
    many = replace(
        few, seeds=range(20), prompts=["a"] * 20, pictures=few.pictures.repeat(9, 1, 1, 1)
    )
    assert many.shown == ROW
