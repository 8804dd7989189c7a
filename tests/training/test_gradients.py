"""Precision, accumulation, recomputation and compilation: the same samples, the same gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from undust.engines import winograd
from undust.errors import UndustError
from undust.formats import safetensors_file
from undust.training import checkpoints
from undust.training.configs import OptimizerConfig
from undust.training.diffusion import DiffusionConfig
from undust.training.first_stage import FirstStageConfig
from undust.training.gradients import LossScale
from undust.training.loop import Trainer
from undust.training.run import prepare, train

FirstStage = Callable[..., FirstStageConfig]
Diffusion = Callable[..., DiffusionConfig]
Contents = Callable[[Path], dict[str, bytes]]


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Of the first step, before clipping."""
    for parameter in trainer.parameters.values():
        parameter.grad = None
    trainer.gradients.backward(0, trainer.run.batch)
    trainer.gradients.unscale(trainer.parameters.values())
    return {k: v.grad.clone() for k, v in trainer.parameters.items() if v.grad is not None}


@pytest.fixture(params=["first-stage", "diffusion"])
def trainer(
    request: pytest.FixtureRequest,
    first_stage_recipe: FirstStage,
    diffusion_recipe: Diffusion,
    tmp_path: Path,
) -> Callable[..., Trainer]:
    """A run, with changes of its recipe, whose output layer is not zero."""
    read = first_stage_recipe if request.param == "first-stage" else diffusion_recipe

    def made(*changes: str) -> Trainer:
        out = tmp_path / f"run {len([*tmp_path.glob('run *')])}"
        trainer, _ = prepare(read(*changes), out)
        torch.manual_seed(0)
        for name, value in trainer.parameters.items():
            if name == "unet.conv_out.weight":
                torch.nn.init.normal_(value, std=0.1)
        return trainer

    return made


def test_in_parts_the_gradient_is_that_of_the_whole(trainer: Callable[..., Trainer]):
    """Of parts of unequal size too; 1 is the same to the bit."""
    whole = gradients(trainer())
    for parts in (1, 2, 3):
        found = gradients(trainer(f"run.accumulate={parts}"))
        for name, value in whole.items():
            if parts == 1:
                assert torch.equal(found[name], value)
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_winograds_convolutions_have_the_same_gradients(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(winograd, "MIN_TRAINED_CHANNELS", 1)
    direct = gradients(trainer("run.convolutions=direct"))
    found = gradients(trainer("run.convolutions=winograd"))
    assert found.keys() == direct.keys()
    assert not all(torch.equal(found[name], value) for name, value in direct.items())
    whole = torch.stack([value.norm() for value in direct.values()]).norm()
    apart = torch.stack([(found[name] - value).norm() for name, value in direct.items()]).norm()
    assert apart < 1e-5 * whole


def test_activations_computed_twice_give_the_same_bits(trainer: Callable[..., Trainer]):
    whole, twice = trainer(), trainer("run.checkpoint_activations=true")
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    assert twice.gradients._blocks
    for block in twice.gradients._blocks:
        next(block.children()).register_forward_hook(count)
    expected, found = gradients(whole), gradients(twice)
    assert calls == 2 * len(twice.gradients._blocks)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_in_float16_gradients_are_scaled_and_back(trainer: Callable[..., Trainer]):
    whole, half = gradients(trainer()), gradients(trainer("run.precision=fp16"))
    norm = math.sqrt(sum(float(value.square().sum()) for value in whole.values()))
    apart = math.sqrt(sum(float((half[k] - v).square().sum()) for k, v in whole.items()))
    assert apart < 0.02 * norm


def test_float16_goes_on_to_the_bit_with_its_scale(
    first_stage_recipe: FirstStage, tmp_path: Path, contents: Contents
):
    """From a scale so large that the first steps overflow and are left out."""

    def run(steps: int, out: Path) -> None:
        recipe = first_stage_recipe(
            "run.precision=fp16", f"run.steps={steps}", "run.checkpoint_every=9"
        )
        trainer, _ = prepare(recipe, out, resume=True)
        assert trainer.gradients.scale
        if trainer.step == 0:
            trainer.gradients.scale.value = 2.0**24
        trainer.train(lambda _: None)

    run(24, tmp_path / "whole")
    for steps in (9, 24):
        run(steps, tmp_path / "parts")
    name = "checkpoints/step-00000024"
    assert contents(tmp_path / "parts" / name) == contents(tmp_path / "whole" / name)
    found = checkpoints.load(tmp_path / "whole" / name)
    assert 0 < found.loss_scale["skipped"] < 24
    assert found.loss_scale["value"] == 2.0 ** (24 - found.loss_scale["skipped"])
    whole = safetensors_file.load(tmp_path / "whole" / name / "weights.safetensors")
    assert all(value.isfinite().all() for value in whole.values())


def test_the_loss_scale_is_that_of_torch():
    ours, theirs = LossScale(), torch.amp.GradScaler("cpu", growth_interval=LossScale.INTERVAL)
    value = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([value], lr=0.0)
    chance = torch.Generator().manual_seed(0)
    theirs.scale(value.sum())
    for step in range(5000):
        bad = step < 1000 and float(torch.rand(1, generator=chance)) < 0.01
        value.grad = torch.full((1,), math.inf if bad else 1.0)
        theirs.step(optimizer)
        theirs.update()
        assert ours.update([math.inf if bad else 1.0]) is not bad
        assert ours.value == theirs.get_scale()


def test_accumulation_and_recomputation_train_and_resume(
    diffusion_recipe: Diffusion, tmp_path: Path
):
    """A run can go on with them, since they change rounding alone."""
    train(diffusion_recipe("run.steps=2"), tmp_path)
    assert train(
        diffusion_recipe("run.accumulate=2", "run.checkpoint_activations=true"),
        tmp_path,
        resume=True,
    )


def test_compiled_the_gradients_are_the_same(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
):
    """With the graphs that torch.compile traces, and without any for a rehearsal and a preview."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    made = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: made(module, backend=backend))
    whole, compiled = trainer(), trainer("run.compile=true")
    compiled.rehearse()
    with compiled._averaged():
        compiled.task.preview()
    assert not graphs
    expected, found = gradients(whole), gradients(compiled)
    assert graphs
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_a_failed_compilation_is_an_error_in_one_line(
    first_stage_recipe: FirstStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(_graph: torch.fx.GraphModule, _inputs: object) -> Callable[..., object]:
        raise FileNotFoundError("no g++")

    made = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: made(module, backend=broken))
    trainer, _ = prepare(first_stage_recipe("run.compile=true"), tmp_path)
    message = (
        "torch.compile failed: .*FileNotFoundError: no g.+; run.compile=false trains without it$"
    )
    with pytest.raises(UndustError, match=message):
        trainer.advance()


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "trapezoid"])
def test_schedules_against_torchs(schedule: str):
    """After a warm-up of 10 of 100 steps."""
    cool_down = 20 if schedule == "trapezoid" else 0
    settings = OptimizerConfig.model_validate(
        {"learning_rate": 2.0, "warm_up": 10, "schedule": schedule, "cool_down": cool_down}
    )
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    lr = torch.optim.lr_scheduler
    after = {
        "constant": lambda: lr.ConstantLR(optimizer, 1.0),
        "trapezoid": lambda: lr.ConstantLR(optimizer, 1.0),
        "cosine": lambda: lr.CosineAnnealingLR(optimizer, 90),
        "linear": lambda: lr.LinearLR(optimizer, 1.0, 0.0, 90),
    }[schedule]()
    for step in range(100):
        expected = 2 * (step + 1) / 11 if step < 10 else optimizer.param_groups[0]["lr"]
        if schedule == "trapezoid":
            expected *= min(1.0, (100 - step) / 21)
        assert settings.rate(step, 100) == pytest.approx(expected), step
        if step >= 10:
            optimizer.step()
            after.step()


def test_a_cool_down_is_part_of_a_trapezoid(diffusion_recipe: Diffusion):
    with pytest.raises(UndustError, match="cool_down is part of schedule trapezoid, not of cosine"):
        diffusion_recipe("optimizer.schedule=cosine", "optimizer.cool_down=2")


def test_a_device_that_is_not_there_is_named(diffusion_recipe: Diffusion, tmp_path: Path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UndustError, match="device: cuda cannot be used here"):
        prepare(diffusion_recipe("run.device=cuda"), tmp_path)
    trainer, _ = prepare(diffusion_recipe("run.device=auto"), tmp_path)
    assert trainer.device == torch.device("cpu")
