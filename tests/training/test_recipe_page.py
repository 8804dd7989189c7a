"""The page of all keys is made from the models that read recipes."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from undust.training.config_keys import tables
from undust.training.kinds import KINDS

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["recipe_page.py", "--check"])
    script = runpy.run_path(str(ROOT / "scripts/recipe_page.py"))
    assert script["main"]() == 0, "run scripts/recipe_page.py"


@pytest.mark.parametrize("recipe", KINDS.values())
def test_every_key_has_a_meaning(recipe: type[BaseModel]):
    inner = {name for name, _ in tables(recipe)}
    without = [
        f"{name}.{key}".lstrip(".")
        for name, table in tables(recipe)
        for key, info in table.model_fields.items()
        if f"{name}.{key}".lstrip(".") not in inner and not info.description
    ]
    assert not without
    rows = (ROOT / "docs/recipes.md").read_text("utf-8").splitlines()
    assert len(rows) > 150
    assert not [row for row in rows if row.endswith("|  |")]
