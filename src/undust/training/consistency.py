"""Consistency distillation: a model of 20 guided steps becomes one of a few steps, unguided.

(Song et al. 2023; for latent models with guidance Luo et al. 2023; as a LoRA Luo et al. 2023b; in
several phases Heek et al. 2024, Wang et al. 2024.) `diffusion.distillation` has the mathematics.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from undust.diffusion.distillation import (
    ConsistencyGrid,
    Estimate,
    consistency_error,
    pseudo_huber,
    schedule_name,
    solved_error,
)
from undust.errors import UndustError
from undust.evaluation.figure import Figure
from undust.evaluation.networks import FigureNetworks
from undust.formats.components import SamplingDefaults
from undust.networks.conditioning import Conditioning
from undust.training.checkpoints import TrainingCheckpoint
from undust.training.configs import Config
from undust.training.data import Batch, Observe, RandomStream
from undust.training.denoising import Samples
from undust.training.ema import exchange
from undust.training.existing import ExistingModelConfig, ExistingModelTask, chosen_networks
from undust.training.figures import FiguresConfig
from undust.training.lora import (
    LowRankConfig,
    check_takes_lora,
    lora_use,
    without_changes,
    write_lora,
)
from undust.training.noise import NoiseChangesConfig, training_noise
from undust.training.noise_levels import NoiseLevelsConfig

STEPS = 4  # of pictures after one phase (Luo et al. 2023)
VALIDATION_STEPS = 8  # of the teacher's solver, in the validation loss


class DistillationConfig(Config):
    """The teacher's solver, and the student's loss."""

    guidance: float | tuple[float, float] | None = Field(
        default=None,
        description="guidance scale of the teacher, or two between which one is drawn for each "
        "sample; left out: the model's default",
    )
    phases: int = Field(
        default=1,
        gt=0,
        le=64,
        description="parts of the flow that are learnt as a step each; 1: all of it (LCM)",
    )
    solver_steps: int = Field(
        default=40, gt=1, le=1000, description="levels of noise of the teacher's solver, DDIM"
    )
    target_ema: float = Field(
        default=0.95,
        ge=0,
        lt=1,
        description="decay of the averaged weights that give the target; 0: the student's own",
    )
    loss: Literal["pseudo-huber", "l2"] = Field(
        default="pseudo-huber", description="of the difference of two clean latents"
    )
    huber_width: float = Field(
        default=0.03,
        gt=0,
        description="error below which pseudo-huber is quadratic, a latent's deviation being 1",
    )

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        scales = self.guidance if isinstance(self.guidance, tuple) else (self.guidance or 0.0,)
        if not 0 <= scales[0] <= scales[-1] <= 1000:
            raise ValueError("guidance: one scale from 0 to 1000, or two that rise")
        if self.solver_steps % self.phases:
            raise ValueError(
                f"solver_steps is {self.solver_steps}, which {self.phases} phases do not divide"
            )
        return self


class ConsistencyConfig(ExistingModelConfig):
    """Distils a model that exists to a few steps without guidance."""

    kind: Literal["consistency"] = Field(description="what is trained")
    distillation: DistillationConfig = DistillationConfig()
    lora: LowRankConfig | None = Field(
        default=None, description="train a LoRA; without this table all weights of the denoiser"
    )

    def task(
        self, out: Path, resumed: TrainingCheckpoint | None, observe: Observe
    ) -> ConsistencyTask:
        """The training of the student."""
        return ConsistencyTask(self, out, resumed, observe)

    @model_validator(mode="after")
    def _no_other_objective(self) -> Self:
        if self.prior:
            raise ValueError("prior: the teacher is the whole objective; leave it out")
        if self.diffusion != NoiseLevelsConfig():
            raise ValueError("diffusion: the levels are those of distillation; leave it out")
        return self


class AverageOf(nn.Module):
    """An exponential moving average of parameters, which checkpoints keep with its own buffers.

    parameters: by name, which are averaged.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        super().__init__()
        self._decay, self._parameters = decay, dict(parameters)
        self._names = {name: name.replace(".", "/") for name in parameters}
        for name, own in self._names.items():
            self.register_buffer(own, parameters[name].detach().clone())
        self.register_buffer("updated", torch.tensor(-1))

    @property
    def average(self) -> dict[str, Tensor]:
        """The averages by the parameters' names."""
        return {name: self.get_buffer(own) for name, own in self._names.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves towards the parameters, once in each step."""
        updated = self.get_buffer("updated")
        if step != int(updated):
            own, parameters = [*self.average.values()], [*self._parameters.values()]
            torch._foreach_lerp_(own, parameters, 1 - self._decay)  # pyright: ignore
            updated.fill_(step)


class ConsistencyTask(ExistingModelTask):
    """The student has the same end of the teacher's flow at neighbouring points.

    Its weights are the teacher's at first, or changed by a LoRA that is 0.
    """

    config: ConsistencyConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        config: ConsistencyConfig,
        out: Path,
        resumed: TrainingCheckpoint | None = None,
        observe: Observe = lambda _done, _all: None,
    ) -> None:
        """As `TrainingConfig.task`. Raises UndustError for a self-conditioned model."""
        model = config.loaded()
        if model.self_conditioned:
            raise UndustError(
                f"model: {config.model} takes its last estimate, which a single step has not"
            )
        own = config.distillation
        self.grid = ConsistencyGrid.of(model.process, own.solver_steps, own.phases)
        guidance = model.guidance if own.guidance is None else own.guidance
        scales = guidance if isinstance(guidance, tuple) else (guidance, guidance)
        self._scales = scales if model.texts or model.classes else (1.0, 1.0)
        networks = chosen_networks(model, None)
        if config.lora:
            check_takes_lora(model, config)
            modules = config.lora.changes(networks, config.seed)
            teacher: nn.Module = model.unet
        else:
            modules = networks
            teacher = copy.deepcopy(model.unet)
            for parameter in model.unet.parameters():
                parameter.data = parameter.data.clone()  # not of the file that is mapped
                parameter.requires_grad_()
        trained = dict(nn.ModuleDict(modules).named_parameters())
        self._average = AverageOf(trained, own.target_ema) if own.target_ema else None
        self._trained = trained
        super().__init__(
            config,
            out,
            resumed,
            observe,
            model=model,
            modules=modules | ({"target": self._average} if self._average else {}),
            text_is_finished=True,
        )
        self._changes = modules
        self._teacher = replace(self.denoise, network=teacher)
        if teacher is not model.unet:
            self.networks["teacher"] = teacher
        model.guidance, model.sampling = 1.0, self._sampling()

    def _sampling(self) -> SamplingDefaults:
        """The steps that the student is made for."""
        phases = self.config.distillation.phases
        schedule = schedule_name(self.model.process)
        if phases == 1:
            return SamplingDefaults("lcm", schedule, STEPS)
        part = self.config.distillation.solver_steps // phases
        if schedule != "trailing":
            schedule = ",".join(f"{level:.7g}" for level in self.grid.levels[:-1:part].tolist())
        return SamplingDefaults("ddim", schedule, phases)

    def loss_of(self, samples: Samples, batch: Batch) -> Tensor:
        """The loss [B] of a batch of samples; in evaluation that against the teacher's flow."""
        z, settings = samples.latents.sample(batch), self.config.distillation
        training = self.modules.training
        changes = self.config.noise if training else NoiseChangesConfig()
        _, noise = training_noise(changes, batch, z.shape[1:])
        places = self.grid.places(batch.uniform(RandomStream.TIME)[:, 0])
        level = self.grid.levels[places].to(z).reshape(-1, 1, 1, 1)
        x = z + level * noise
        cond = samples.conditioning(self.model, batch)
        teacher = self._guided(samples, batch, cond)

        def student(x: Tensor, sigma: Tensor) -> Tensor:
            return self.denoise(x, sigma, cond).to(x)

        def target(x: Tensor, sigma: Tensor) -> Tensor:
            with self._holding_average():
                return student(x, sigma)

        if not training:
            steps = VALIDATION_STEPS
            error = solved_error(student, teacher, x, places, self.grid, steps)
            return error.square().flatten(1).mean(1)
        if self._average:
            self._average.update(batch.step)
        error = consistency_error(student, target, teacher, x, places, self.grid)
        if settings.loss == "l2":
            return error.square().flatten(1).mean(1)
        return pseudo_huber(error, settings.huber_width)

    def _guided(self, samples: Samples, batch: Batch, cond: Conditioning) -> Estimate:
        """The teacher with guidance, of a scale for each sample (Luo et al. 2023, eq. 10)."""
        low, high = self._scales
        if low == high == 1:
            own = cond
        else:
            own = cond.concat(samples.conditioning(self.model, batch, negative=True))
        drawn = low + (high - low) * batch.uniform(RandomStream.GUIDANCE)[:, 0]

        @torch.no_grad()
        def estimate(x: Tensor, sigma: Tensor) -> Tensor:
            with self._unchanged():
                if own is cond:
                    return self._teacher(x, sigma, cond).to(x)
                both = self._teacher(torch.cat([x, x]), torch.cat([sigma, sigma]), own).to(x)
            positive, negative = both.chunk(2)
            return torch.lerp(negative, positive, drawn.to(x).reshape(-1, 1, 1, 1))

        return estimate

    def _unchanged(self) -> AbstractContextManager[None]:
        """Within it the network is the teacher's, if it is the student's with a LoRA."""
        return without_changes(self.modules) if self.config.lora else nullcontext()

    def _holding_average(self) -> AbstractContextManager[None]:
        """Within it the student has the averaged weights of the target."""
        if not self._average:
            return nullcontext()
        return _exchanged(self._trained, self._average.average)

    @property
    def preview_options(self) -> dict[str, Any]:
        """The few steps that the student is made for; sampler and guidance are the model's."""
        return {"steps": self._sampling().steps}

    def figures(
        self, config: FiguresConfig, networks: FigureNetworks
    ) -> Callable[[], list[Figure]]:
        """As `DenoisingTask.figures`, in the student's steps unless the recipe sets others."""
        if "steps" not in config.model_fields_set:
            config = config.model_copy(update=self.preview_options)
        return super().figures(config, networks)

    def publish(self, folder: Path, *, brief: bool = False) -> None:  # noqa: ARG002
        """Writes a diffusers folder for an LCM's or DDIM's steps, or the files of a LoRA."""
        if self.config.lora:
            write_lora(folder, self._changes, self.model, self.config.lora, self.config)
        else:
            self.model.save(folder)

    def next_steps(self, model: Path, data: Path) -> str:
        """A command that generates an image in a few steps."""
        if not self.config.lora:
            return super().next_steps(model, data)
        own = self._sampling()
        options = ["--sampler", own.sampler, "--schedule", own.schedule]
        options += ["--steps", str(own.steps), "--guidance", "1"]
        return lora_use(model, self.config, self.text.example if self.text else None, options)


@contextmanager
def _exchanged(live: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Generator[None]:
    """Within it tensors have the contents of others of the same names."""
    exchange(live, other)
    try:
        yield
    finally:
        exchange(live, other)
