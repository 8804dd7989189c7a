"""The interface between the loop and a task: optimizers, buffers, diagnoses, the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from undust.formats.files import atomic_folder
from undust.training import checkpoints
from undust.training.configs import OptimizerConfig
from undust.training.data import Batch, RandomStream, SampleOrder
from undust.training.first_stage import FirstStageConfig
from undust.training.loop import Trainer, TrainingProgress

FirstStage = Callable[..., FirstStageConfig]
DISCRIMINATOR = OptimizerConfig(learning_rate=0.01, betas=(0.5, 0.9), clip=0.1)


class Adversarial:
    """A line as the generator, and a discriminator with batch normalisation."""

    tokenizer = None
    captions = ()
    validation = None
    inputs: Mapping[str, str] = {}
    optimizers: Mapping[str, OptimizerConfig] = {"discriminator": DISCRIMINATOR}

    def __init__(self) -> None:
        torch.manual_seed(0)
        discriminator = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.modules = nn.ModuleDict({"generator": nn.Linear(3, 3), "discriminator": discriminator})
        self.networks = self.modules
        self.order = SampleOrder([[k] for k in range(5)], seed=0)
        self.notes: list[str] = []
        self.steps: list[int] = []

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The discriminator sees a detached output; the generator, a frozen discriminator."""
        self.steps.append(batch.step)
        x = batch.normal(RandomStream.NOISE, (3,))
        y = self.modules["generator"](x)
        judge = self.modules["discriminator"]
        state = {name: value.detach() for name, value in judge.state_dict().items()}
        judge.eval()
        deceived = -torch.func.functional_call(judge, state, (y,)).mean()
        judge.train()
        seen = judge(y.detach()).relu().mean() - judge(x).mean()
        return {"loss": deceived + seen, "deceived": deceived}

    def diagnoses(self, step: int, means: Mapping[str, float]) -> dict[str, str]:
        return {"always": f"at step {step}", **({"late": "late"} if step > 4 else {})}

    def preview(self, *, brief: bool = False) -> Image.Image:
        return Image.new("RGB", (1, 1))

    def publish(self, folder: Path, *, brief: bool = False) -> None:
        with atomic_folder(folder, replace=True) as building:
            (building / "empty").touch()

    def next_steps(self, model: Path, data: Path) -> str:
        return ""


def trained(config: FirstStageConfig, out: Path, *, resume: bool = False) -> Trainer:
    out.mkdir(exist_ok=True)
    trainer = Trainer(Adversarial(), config, out)
    found, _ = checkpoints.newest(out / "checkpoints")
    if resume and found:
        trainer.resume(found)
    trainer.rehearse()
    assert trainer.train(lambda _: None)
    return trainer


@pytest.fixture
def config(first_stage_recipe: FirstStage) -> FirstStageConfig:
    return first_stage_recipe("run.steps=6")


def test_a_module_with_an_optimizer_of_its_own(config: FirstStageConfig, tmp_path: Path):
    """Against torch's AdamW and clipping, each module by itself."""
    trainer = trained(config, tmp_path)
    peer = Adversarial()
    optimizers = {
        name: torch.optim.AdamW(peer.modules[name].parameters(), betas=betas, weight_decay=0)
        for name, betas in (("generator", (0.9, 0.99)), ("discriminator", (0.5, 0.9)))
    }
    for step in range(6):
        peer.modules.zero_grad()
        peer.losses(peer.order.batch(step, 4))["loss"].backward()
        rates = {"generator": config.optimizer.rate(step, 6), "discriminator": 0.01}
        for name, clip in (("generator", config.optimizer.clip), ("discriminator", 0.1)):
            nn.utils.clip_grad_norm_(peer.modules[name].parameters(), clip)
            optimizers[name].param_groups[0]["lr"] = rates[name]
            optimizers[name].step()
    ours = trainer.task.modules.state_dict()
    for name, value in peer.modules.state_dict().items():
        torch.testing.assert_close(ours[name], value, msg=name)
    row = (tmp_path / "log.jsonl").read_text().splitlines()[-1]
    for name in ("gradient_norm", "learning_rate"):
        assert f'"{name}": ' in row and f'"{name}_discriminator": ' in row


def test_buffers_are_resumed_and_a_rehearsal_leaves_them(
    config: FirstStageConfig, first_stage_recipe: FirstStage, tmp_path: Path
):
    whole = trained(config, tmp_path / "whole").task.modules.state_dict()
    trained(first_stage_recipe("run.steps=4"), tmp_path / "parts")
    parts = trained(config, tmp_path / "parts", resume=True).task.modules.state_dict()
    assert whole["discriminator.1.num_batches_tracked"] == 2 * 6
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(parts[name], value), name


def test_a_fault_is_told_once_and_the_step_is_known(config: FirstStageConfig, tmp_path: Path):
    task = Adversarial()
    told: list[tuple[int, tuple[str, ...]]] = []

    def observe(progress: TrainingProgress) -> None:
        told.append((progress.step, tuple(progress.notes)))

    Trainer(task, config, tmp_path).train(observe)
    assert [row for row in told if row[1]] == [(1, ("at step 1",)), (5, ("late",))]
    assert task.steps == list(range(6))
