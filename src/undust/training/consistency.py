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
    euler_path,
    pseudo_huber,
    schedule_name,
)
from undust.diffusion.samplers.euler import euler_step
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
from undust.training.noise import training_noise
from undust.training.noise_levels import NoiseLevelsConfig

STEPS = 4  # of pictures after one phase (Luo et al. 2023)
VALIDATION_STEPS = 10  # at most, of the teacher's solver in the validation loss


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
    trajectories: int = Field(
        default=0,
        ge=0,
        le=10**6,
        description="flows of the teacher from pure noise that are solved once each and kept in "
        "memory; the student learns their phases whole. 0: it learns single steps of the solver, "
        "from noisy pictures",
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
        kept, batch = self.distillation.trajectories, self.run.batch
        if kept % batch:
            raise ValueError(
                f"distillation.trajectories is {kept}, which a batch of {batch} does not divide"
            )
        if kept and self.data.buckets:
            raise ValueError("distillation.trajectories: not for data.buckets")
        return self


class AverageOf(nn.Module):
    """An exponential moving average of parameters, which checkpoints keep with its own buffers.

    parameters: by name, which are averaged.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        super().__init__()
        self._decay, self._live = decay, dict(parameters)
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
            own, live = [*self.average.values()], [*self._live.values()]
            torch._foreach_lerp_(own, live, 1 - self._decay)  # pyright: ignore
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
        if own.trajectories:
            own = own.model_copy(update={"target_ema": 0.0})  # no target is asked
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
        self._kept: dict[tuple[tuple[int, ...], ...], Tensor] = {}
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
        if schedule != "trailing":
            schedule = ",".join(f"{level:.7g}" for level in self.grid.edges[:-1].tolist())
        return SamplingDefaults("ddim", schedule, phases)

    def loss_of(self, samples: Samples, batch: Batch) -> Tensor:
        """The loss [B] of a batch of samples.

        In evaluation it is the squared difference of the latents that the student generates in as
        many steps as phases, and those of the teacher, from the same noise.
        """
        if not self.modules.training:
            path = self.grid.thinned(VALIDATION_STEPS)
            start, teacher, student = self._start(samples, batch)
            theirs = euler_path(teacher, start, path)[-1]
            error = euler_path(student, start, self.grid.edges)[-1] - theirs
            return error.square().flatten(1).mean(1)
        settings = self.config.distillation
        if settings.trajectories:
            error = self._trajectory_error(samples, batch)
        else:
            error = self._neighbour_error(samples, batch)
        if settings.loss == "l2":
            return error.square().flatten(1).mean(1)
        return pseudo_huber(error, settings.huber_width)

    def _neighbour_error(self, samples: Samples, batch: Batch) -> Tensor:
        """The student's f at noisy pictures minus the target's, one step of the solver below."""
        z = samples.latents.sample(batch)
        _, noise = training_noise(self.config.noise, batch, z.shape[1:])
        places = self.grid.places(batch.uniform(RandomStream.TIME)[:, 0])
        x = z + self.grid.levels[places].to(z).reshape(-1, 1, 1, 1) * noise
        cond = samples.conditioning(self.model, batch)
        teacher, student = self._guided(samples, batch, cond), self._student(cond)

        def target(x: Tensor, sigma: Tensor) -> Tensor:
            with self._holding_average():
                return student(x, sigma)

        if self._average:
            self._average.update(batch.step)
        return consistency_error(student, target, teacher, x, places, self.grid)

    def _trajectory_error(self, samples: Samples, batch: Batch) -> Tensor:
        """The student's f at the beginning of a phase minus the teacher's flow at its end.

        The flows are those of the first batches of the run, again and again: a key is all samples
        of a batch, so that a resumed run computes the same bits.
        """
        count, kept = len(self.order.groups), self.config.distillation.trajectories
        places = [e * count + i for e, i in zip(batch.epoch, batch.index, strict=True)]
        own = self.order.at([place % kept for place in places], batch.step)
        start, teacher, student = self._start(samples, own)
        key = (own.epoch, own.index)
        if key not in self._kept:
            path = euler_path(teacher, start, self.grid.levels)
            self._kept[key] = torch.stack(path[:: (len(path) - 1) // self.grid.phases], 1)
        edges, levels = self._kept[key], self.grid.edges
        phase = (batch.uniform(RandomStream.TIME)[:, 0] * self.grid.phases).long()
        each = torch.arange(len(batch))
        x, sigma = edges[each, phase], levels[phase]
        return (
            euler_step(x, student(x, sigma.to(x)), sigma, levels[phase + 1])
            - edges[each, phase + 1]
        )

    def _start(self, samples: Samples, batch: Batch) -> tuple[Tensor, Estimate, Estimate]:
        """Pure noise of the shape of a batch's latents, the teacher, and the student."""
        cond = samples.conditioning(self.model, batch)
        noise = batch.normal(RandomStream.NOISE, samples.latents.sample(batch).shape[1:])
        start = self.model.process.start(noise, float(self.grid.levels[0]))
        return start, self._guided(samples, batch, cond), self._student(cond)

    def _student(self, cond: Conditioning) -> Estimate:
        return lambda x, sigma: self.denoise(x, sigma, cond).to(x)

    def _guided(self, samples: Samples, batch: Batch, cond: Conditioning) -> Estimate:
        """The teacher with guidance, of a scale for each sample (Luo et al. 2023, section 4.2)."""
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
