"""Commented recipes to start from: one TOML template for each kind, with values filled in."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from undust.errors import unknown
from undust.formats import toml_text
from undust.regular import read_text

FOLDER = Path(__file__).parent / "templates"
COMMENTS = 32  # column
PART = "_"  # the first letter of templates that others include

VALUES: dict[str, Any] = {
    "folder": "pictures",
    "size": 64,
    "limit": 0,
    "held_out": 0.05,
    "on_error": "skip",
    "captions": False,
    "fields": ["text"],
    "drop": 0.1,
    "first_stage": "emoji",
    "channels": [128, 224],
    "down_blocks": ["DownBlock2D", "AttnDownBlock2D"],
    "up_blocks": ["AttnUpBlock2D", "UpBlock2D"],
    "layers": 2,
    "optimizer": "muon",
    "learning_rate": 1.5e-3,
    "cool_down": 0.4,
    "steps": 5000,
    "batch": 64,
    "ema": 0.998,
    "sample_every": 250,
    "log_every": 20,
}
"""Of the recipes of diffusion models; the sizes suit pictures of 64 pixels on a processor."""

OWN: dict[str, dict[str, Any]] = {
    "first-stage": {"optimizer": "adamw", "learning_rate": 2e-3, "steps": 2000, "batch": 32},
    "decoder": {"optimizer": "adamw", "learning_rate": 5e-4, "steps": 1000, "batch": 32},
    "text": {"captions": True},
    "finetune": {
        "captions": True,
        "model": "emoji",
        "first_stage": "",
        "prompt": "",
        "previews": [],
        "learning_rate": 5e-4,
        "steps": 1000,
        "batch": 32,
        "ema": 0.99,
    },
    "lora": {
        "captions": True,
        "model": "emoji",
        "prompt": "",
        "previews": [],
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "steps": 500,
        "batch": 16,
        "ema": 0.99,
        "sample_every": 100,
        "held_out": 0,
    },
    "textual-inversion": {
        "model": "emoji",
        "optimizer": "adamw",
        "learning_rate": 1e-2,
        "steps": 500,
        "batch": 16,
        "ema": 0.99,
        "sample_every": 100,
        "held_out": 0,
    },
    "consistency": {
        "captions": True,
        "drop": 0.0,
        "model": "emoji",
        "prompt": "",
        "previews": [],
        "learning_rate": 5e-4,
        "steps": 1000,
        "batch": 32,
        "ema": 0.98,
    },
    "controlnet": {
        "captions": True,
        "drop": 0.5,
        "model": "emoji",
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "steps": 2000,
        "batch": 16,
        "ema": 0.99,
    },
    "film": {"frames": 8, "learning_rate": 2e-3, "batch": 16, "ema": 0.995},
    "depth": {"column": "depth"},
    "segmentation": {"column": "segmentation"},
    "pixels": {
        "size": 32,
        "channels": [64, 128, 128],
        "down_blocks": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
        "up_blocks": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
        "batch": 32,
    },
}
"""Other values, by template."""


def names() -> list[str]:
    """The names of all templates, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml") if not path.name.startswith(PART))


def summary(name: str) -> str:
    """The meaning of a template, one sentence."""
    return read_text(FOLDER / f"{name}.toml").partition("\n")[0].removeprefix("# ")


def defaults(name: str) -> dict[str, Any]:
    """The values of a template. Raises UndustError for an unknown name."""
    if name not in names():
        raise unknown("kind of recipe", name, names())
    return {**VALUES, **OWN.get(name, {})}


def recipe(name: str, **values: object) -> str:
    """The text of a recipe, TOML.

    values: in place of the template's own. Raises UndustError for an unknown name.
    """
    usual = defaults(name)
    template = _environment().get_template(f"{name}.toml")
    text = template.render({**usual, **values})
    lines = [_aligned(line) for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines).strip("\n") + "\n")


def _aligned(line: str) -> str:
    """A line of TOML with its comment in the column of the others."""
    value, space, comment = line.partition("  # ")
    return (
        f"{value.rstrip():<{COMMENTS}} # {comment}" if space and not line.startswith("#") else line
    )


def _toml(value: object) -> str:
    """A value as TOML, without the sign of comments."""
    return toml_text.value(value).replace("#", "\\u0023")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER, encoding="utf-8"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["toml"] = _toml
    return environment
