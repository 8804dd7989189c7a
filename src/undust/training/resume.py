"""Comparison of a resumed run with its checkpoint: recipe, data and first stage.

A change that would spoil the weights, or repeat or skip samples, is refused; every other one is
noted. All keys of a recipe are refused but those in `MAY_CHANGE`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from undust.errors import UndustError, quoted
from undust.training.checkpoints import TrainingCheckpoint
from undust.training.config_keys import renamed
from undust.training.task import TrainingConfig

MAY_CHANGE = {
    "optimizer.learning_rate": "of the steps to come",
    "optimizer.betas": "of the steps to come",
    "optimizer.weight_decay": "of the steps to come",
    "optimizer.warm_up": "of the steps to come",
    "optimizer.cool_down": "of the steps to come",
    "optimizer.clip": "of the steps to come",
    "optimizer.schedule": "of the steps to come",
    "run.steps": "more or fewer of the same steps",
    "run.ema": "of the steps to come",
    "run.device": "other rounding",
    "run.precision": "other rounding",
    "run.accumulate": "other rounding",
    "run.checkpoint_activations": "the same numbers",
    "run.compile": "other rounding",
    "run.convolutions": "other rounding",
    "run.muon_precision": "other rounding",
    "run.log_every": "output",
    "run.sample_every": "output",
    "run.validate_every": "output",
    "run.patience": "the end of the run",
    "run.checkpoint_every": "output",
    "run.keep": "output",
    "figures": "output",
    "loss": "weights of terms, of the steps to come",
    "discriminator.weight": "of the steps to come",
    "discriminator.start": "of the steps to come",
    "discriminator.adaptive": "of the steps to come",
    "discriminator.learning_rate": "of the steps to come",
    "codebook.decay": "of the steps to come",
    "codebook.revive_after": "of the steps to come",
    "previews": "output",
    "data.folder": "its content is compared by digest",
    "data.on_error": "the samples are compared by digest",
    "first_stage": "its content is compared by digest",
    "model": "its content is compared by digest",
    "prior.folder": "its content is compared by digest",
    "prior.weight": "of the steps to come",
    "init": "its content is compared by digest",
    "teacher": "its content is compared by digest",
    "unet.sample_size": "a default of sampling",
}
"""Keys and tables of a recipe that may have another value when a run is resumed -> the reason."""
MAX_LISTED = 4  # changes that a refusal names
INPUTS = {
    "data": "the data",
    "validation": "the held-out pictures",
    "first_stage": "the first stage's weights",
    "conditions": "the labels and maps",
    "motion": "the films' frame rates and motion",
    "model": "the model that it starts from",
    "prior": "the class pictures",
    "init": "the weights that it starts from",
    "teacher": "the teacher's weights",
}
NOT_TRAINED_ON = ("validation",)
HOW = {
    "data": " (a picture or a caption was added, removed, edited or moved)",
    "motion": " (in the columns fps and motion, or in a film's file)",
}


def compare_configs(checkpoint: TrainingCheckpoint, config: TrainingConfig, out: Path) -> list[str]:
    """A line for the changes of the configuration since the checkpoint, or none.

    Raises UndustError, with both values, for a change that the run cannot be resumed with.
    """
    before, now = _before(checkpoint.config, config), _entries(config.model_dump(mode="json"))
    changed = [key for key in (*now, *(before.keys() - now)) if before.get(key) != now.get(key)]
    wrong = [key for key in changed if not may_change(key)]
    wrong = ["kind"] if "kind" in wrong else wrong  # it has other keys
    if wrong:
        raise _refusal(
            out,
            checkpoint.step,
            [f"{key} was {_value(before.get(key))}, is {_value(now.get(key))}" for key in wrong],
        )
    if not changed:
        return []
    lines = (f"{key} {_value(before.get(key))} → {_value(now.get(key))}" for key in changed)
    return [f"changed since step {checkpoint.step}: {', '.join(lines)}"]


def compare_inputs(
    checkpoint: TrainingCheckpoint, inputs: Mapping[str, str], out: Path
) -> list[str]:
    """A note on inputs whose digest an older checkpoint does not have, or none.

    inputs: digests by name, those of `INPUTS`. Raises UndustError if one differs.
    """
    before = checkpoint.inputs
    changed = [name for name in inputs if name in before and before[name] != inputs[name]]
    wrong = [name for name in changed if name not in NOT_TRAINED_ON]
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
    notes = [
        f"{INPUTS[name]} are others than at step {checkpoint.step}: validation losses before and "
        "after it cannot be compared"
        for name in changed
    ]
    trained_on = (name for name in inputs if name not in NOT_TRAINED_ON)
    unknown = " and ".join(INPUTS[name] for name in trained_on if name not in before)
    if not unknown:
        return notes
    return [
        *notes,
        f"the checkpoint of step {checkpoint.step} is of an earlier version, without a digest of "
        f"{unknown}: later changes of them cannot be detected",
    ]


def may_change(key: str) -> bool:
    """Whether a recipe's dotted key may have another value when a run is resumed."""
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in MAY_CHANGE)


def same_run(recipe: Mapping[str, Any], config: TrainingConfig) -> bool:
    """Whether a checkpoint's recipe differs from this configuration in its table `run` alone."""
    before, now = _before(recipe, config), _entries(config.model_dump(mode="json"))
    changed = {key for key in {*before, *now} if before.get(key) != now.get(key)}
    return all(key.startswith("run.") and may_change(key) for key in changed)


def _refusal(out: Path, step: int, changes: Sequence[str]) -> UndustError:
    more = f" and {len(changes) - MAX_LISTED} more" if len(changes) > MAX_LISTED else ""
    return UndustError(
        f"{out} cannot be resumed from step {step}: that would spoil its weights or repeat "
        f"samples: {'; '.join(changes[:MAX_LISTED])}{more}; set it back, or choose another --out"
    )


def _before(recipe: Mapping[str, Any], now: TrainingConfig) -> dict[str, Any]:
    """The entries of an older recipe, with defaults for keys that did not exist then."""
    former = renamed(dict(recipe))
    try:
        return _entries(type(now).model_validate(former).model_dump(mode="json"))
    except ValidationError:  # of another kind, or of a version that allowed more
        return _entries(now.model_dump(mode="json")) | _entries(former)


def _entries(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Dotted keys and their values."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _entries(cast("Mapping[str, Any]", value), f"{above}{key}.")
        else:
            found[above + key] = value
    return found


def _value(value: object) -> str:
    """A value for a message: text without quotation marks, None as "nothing"."""
    if value is None:
        return "nothing"
    return value if isinstance(value, str) and value else quoted(value)
