"""The learning rate of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from undust.errors import UndustError
from undust.training import kinds
from undust.training.configs import OptimizerConfig

PUBLISHED = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("steps", [1, 2, 10, 100, 1000, 8000])
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_recipes_reach_their_rate_whatever_their_length(path: Path, steps: int):
    recipe = kinds.read(path, [f"run.steps={steps}"])
    rates = [recipe.optimizer.rate(step, steps) for step in range(steps)]
    # A single step belongs to the cool-down if that is more than half of the run.
    share = 0.5 if steps == 1 and recipe.optimizer.cool_down > 0.5 else 1
    assert max(rates) == share * recipe.optimizer.learning_rate


def test_shares_of_the_run_are_the_steps_that_they_were_in_the_built_in_model():
    [diffusion] = [path for path in PUBLISHED if path.stem == "emoji-diffusion"]
    recipe = kinds.read(diffusion)
    assert recipe.optimizer.ramps(recipe.run.steps) == (50, 3600)
    whole = kinds.read(diffusion, ["optimizer.warm_up=50", "optimizer.cool_down=3600"])
    assert whole.optimizer.ramps(8000) == (50, 3600)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["optimizer.cool_down=3600"], "cool_down (3,600 steps) .*run.steps = 1,000"),
        (["optimizer.cool_down=3600"], "optimizer.cool_down = 950 would fit"),
        (["optimizer.warm_up=1000"], "optimizer.warm_up = 550 would fit"),
        (["optimizer.warm_up=0.7"], "optimizer.warm_up (700 steps) and optimizer.cool_down (450 s"),
        (["optimizer.warm_up=2000", "optimizer.cool_down=2000"], "reached; shares of the run do"),
    ],
)
def test_ramps_longer_than_the_run_are_refused(changes: list[str], said: str):
    [diffusion] = [path for path in PUBLISHED if path.stem == "emoji-diffusion"]
    with pytest.raises(UndustError) as error:
        kinds.read(diffusion, ["run.steps=1000", "optimizer.warm_up=50", *changes])
    assert all(part in str(error.value) for part in said.split(" .*"))


def test_the_learning_rate_rises_stays_and_falls():
    """Linear over four steps up (2/5 … 1) and three down, of a run of 20."""
    optimizer = OptimizerConfig(learning_rate=2.0, warm_up=4, cool_down=3)
    rates = [optimizer.rate(step, 20) for step in range(20)]
    expected = [0.4, 0.8, 1.2, 1.6, *[2.0] * 13, 1.5, 1.0, 0.5]
    assert rates == pytest.approx(expected)


def test_without_warm_up_the_rate_is_constant():
    optimizer = OptimizerConfig(learning_rate=1e-3)
    assert {optimizer.rate(step, 9) for step in range(9)} == {1e-3}
