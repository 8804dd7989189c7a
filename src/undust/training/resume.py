"""The rule for a run that goes on with another recipe, other data or another first stage.

A change that would spoil the weights, or repeat or skip samples, is refused; every other one is
told. All keys of a recipe are refused but those in `MAY_CHANGE`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from undust.errors import UndustError, quoted
from undust.training import configs
from undust.training.checkpoints import Checkpoint

# Keys and tables of a recipe that a run can go on with at another value.
MAY_CHANGE = (
    "optimizer.learning_rate",
    "optimizer.betas",
    "optimizer.weight_decay",
    "optimizer.warm_up",
    "optimizer.cool_down",
    "optimizer.clip",
    "run.steps",
    "run.ema",
    "run.precision",
    "run.muon_precision",
    "run.log_every",
    "run.sample_every",
    "run.checkpoint_every",
    "run.keep",
    "loss",
    "previews",
    "data.folder",  # the place; its content is compared by digest, as that of the first stage is
    "data.on_error",
    "first_stage",
    "unet.sample_size",  # a default of sampling
)
FIRST = 4  # refusals that are named
INPUTS = {"data": "the data", "first_stage": "the first stage's weights"}
HOW = {"data": " (a picture or a caption was added, removed, edited or moved)"}


def compare_recipes(checkpoint: Checkpoint, recipe: Mapping[str, Any], out: Path) -> list[str]:
    """A line for the changes of the recipe since the checkpoint, or none.

    recipe: as `model_dump(mode="json")` gives it. Raises UndustError, with both values, for a
    change that the run cannot go on with.
    """
    before, now = _before(checkpoint.recipe, recipe), _entries(recipe)
    changed = [key for key in (*now, *(before.keys() - now)) if before.get(key) != now.get(key)]
    wrong = [key for key in changed if not may_change(key)]
    wrong = ["kind"] if "kind" in wrong else wrong  # it has other keys
    if wrong:
        raise _refusal(
            out,
            checkpoint.step,
            [f"{key} was {_said(before.get(key))}, is {_said(now.get(key))}" for key in wrong],
        )
    if not changed:
        return []
    told = (f"{key} {_said(before.get(key))} → {_said(now.get(key))}" for key in changed)
    return [f"changed since step {checkpoint.step}: {', '.join(told)}"]


def compare_inputs(checkpoint: Checkpoint, inputs: Mapping[str, str], out: Path) -> list[str]:
    """A line that names the inputs whose digest an older checkpoint does not have, or none.

    inputs: digests by name, those of `INPUTS`. Raises UndustError if one differs.
    """
    before = checkpoint.inputs
    wrong = [name for name in inputs if name in before and before[name] != inputs[name]]
    if wrong:
        raise _refusal(
            out,
            checkpoint.step,
            [
                f"the digest of {INPUTS[name]} was {before[name][:10]}, is {inputs[name][:10]}"
                + HOW.get(name, "")
                for name in wrong
            ],
        )
    unknown = " and ".join(INPUTS[name] for name in inputs if name not in before)
    if not unknown:
        return []
    return [
        f"the checkpoint of step {checkpoint.step} is of an earlier version, without a digest of "
        f"{unknown}: changes of them since cannot be seen"
    ]


def may_change(key: str) -> bool:
    """Whether a run can go on with another value of a recipe's dotted key."""
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in MAY_CHANGE)


def same_run(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two recipes, as `model_dump` gives them, differ in nothing but their table `run`."""
    before, now = _before(one, other), _entries(other)
    changed = {key for key in {*before, *now} if before.get(key) != now.get(key)}
    return all(key.startswith("run.") and may_change(key) for key in changed)


def _refusal(out: Path, step: int, changes: Sequence[str]) -> UndustError:
    more = f" and {len(changes) - FIRST} more" if len(changes) > FIRST else ""
    return UndustError(
        f"{out} cannot go on from step {step}, since this would spoil its weights or repeat "
        f"samples: {'; '.join(changes[:FIRST])}{more}; set it back, or choose another --out"
    )


def _before(recipe: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of an older recipe, also those that it had no keys for when it was written."""
    try:
        return _entries(configs.parse(dict(recipe), "").model_dump(mode="json"))
    except UndustError:  # of a version that allowed more: a key that it lacks is as it is now
        return _entries(now) | _entries(recipe)


def _entries(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Dotted keys and their values."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _entries(cast("Mapping[str, Any]", value), f"{above}{key}.")
        else:
            found[above + key] = value
    return found


def _said(value: object) -> str:
    """A value for a line: text without quotation marks, nothing as "nothing"."""
    if value is None:
        return "nothing"
    return value if isinstance(value, str) and value else quoted(value)
