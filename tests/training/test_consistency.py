"""Consistency distillation: the published loss, and models of few steps in every program."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers import scheduling_lcm
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

import undust
from training.test_lora import apart, by_diffusers, noise, painted
from undust.conditioning.prompt import escape
from undust.errors import UndustError
from undust.formats.folder import read_json
from undust.training import kinds
from undust.training.consistency import ConsistencyConfig, ConsistencyTask
from undust.training.data import RandomStream
from undust.training.lora import FILES
from undust.training.run import train

Folder = Callable[[str], Path]
Recipe = Callable[..., ConsistencyConfig]
LORA = {"rank": 2, "targets": ["attention", "conv1"]}
PROMPT = "sky over sand"


@pytest.fixture
def recipe(existing_recipe: Callable[..., Any]) -> Recipe:
    """With a solver of few steps, also in the validation loss."""

    def read(model: Path, **tables: Any) -> ConsistencyConfig:
        own = {"solver_steps": 4, **tables.pop("distillation", {})}
        run = {"batch": 8, **tables.pop("run", {})}
        return existing_recipe("consistency", model, distillation=own, run=run, **tables)

    return read


def moved(task: ConsistencyTask) -> None:
    """Gives the student other weights than the teacher's, and the target others again."""
    chance = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in task.modules.named_parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=chance)
            if task._average:
                task._average.average[name].copy_(
                    parameter + 0.05 * torch.randn(parameter.shape, generator=chance)
                )


@torch.no_grad()
@pytest.mark.parametrize(("variant", "phases"), [("sd1", 1), ("sd2-v", 2)])
def test_the_loss_by_diffusers_schedulers(
    variant: str, phases: int, variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    """A guided DDIM step of the teacher, and DDIM's steps of student and target to the end."""
    place, count = variant_folder(variant), 8
    own = {"phases": phases, "solver_steps": count, "guidance": [2.0, 5.0], "loss": "l2"}
    task = ConsistencyTask(recipe(place, distillation=own, captions={"drop": 0}), tmp_path)
    moved(task)
    task._average.get_buffer("updated").fill_(0)  # as if it were of this step
    batch = task.order.batch(0, 8)
    found = task.losses(batch)["loss"]

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(place, safety_checker=None)
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(count)
    ladder = [*scheduler.timesteps.tolist(), None]
    student, target = (
        diffusers.UNet2DConditionModel.from_pretrained(place / "unet") for _ in range(2)
    )
    student.load_state_dict(task.model.unet.state_dict())
    average = {name[5:]: value for name, value in task._average.average.items()}
    target.load_state_dict(average)

    def jumped(output: Tensor, time: int, end: int | None, x: Tensor) -> Tensor:
        """DDIM's step (Song et al. 2021a, eq. 12) between any two time steps."""
        x0 = scheduler.step(output, time, x).pred_original_sample
        if end is None:
            return x0
        alpha, last = scheduler.alphas_cumprod[[time, end]]
        direction = (x - alpha.sqrt() * x0) / (1 - alpha).sqrt()
        return last.sqrt() * x0 + (1 - last).sqrt() * direction

    z, normal = task.latents.sample(batch), batch.normal(RandomStream.NOISE, (4, 8, 8))
    losses: list[Tensor] = []
    places = (count * batch.uniform(RandomStream.TIME)[:, 0]).long().tolist()
    assert len({*places}) > 3
    scales = (2 + 3 * batch.uniform(RandomStream.GUIDANCE)[:, 0]).tolist()
    for k, caption in enumerate(task.text(batch)):
        states, nothing = pipe.encode_prompt(caption, "cpu", 1, do_classifier_free_guidance=True)
        level, part = places[k], count // phases
        time, below = ladder[level], ladder[level + 1]
        last = (level // part + 1) * part
        end = ladder[last]
        x = scheduler.add_noise(z[k : k + 1], normal[k : k + 1], torch.tensor([time]))
        with_text, without = (pipe.unet(x, time, each).sample for each in (states, nothing))
        guided = without + scales[k] * (with_text - without)
        wanted = scheduler.step(guided, time, x).prev_sample
        if level + 1 < last:
            wanted = jumped(target(wanted, below, states).sample, below, end, wanted)
        error = jumped(student(x, time, states).sample, time, end, x) - wanted
        # In the coordinates x = x0 + σ·n.
        alpha = 1.0 if end is None else scheduler.alphas_cumprod[end]
        losses.append(error.square().mean() / alpha)
    torch.testing.assert_close(found, torch.stack(losses).mean(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("phases", [1, 2])
def test_the_whole_model_is_one_of_few_steps_here_and_in_diffusers(
    phases: int,
    variant_folder: Folder,
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Without an option; with LCM's scheduler, and with DDIM's for two phases."""
    assert train(recipe(variant_folder("sd1"), distillation={"phases": phases}), tmp_path)
    model = undust.load(tmp_path / "model")
    taken = list(model.steps(PROMPT, noise=noise(), seed=1))
    [drawn] = model.generate(PROMPT, noise=noise(), seed=1)
    assert drawn.recipe.guidance == 1
    assert drawn.recipe.steps == len(taken) == (4 if phases == 1 else 2)
    drawn_noise = iter([(step.x - step.x0) / step.sigma for step in taken[:-1]])
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, **__: next(drawn_noise))
    index = read_json(tmp_path / "model/model_index.json")
    assert index["scheduler"][1] == ("LCMScheduler" if phases == 1 else "DDIMScheduler")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path / "model", safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        PROMPT,
        latents=noise(),
        height=64,
        width=64,
        num_inference_steps=len(taken),
        guidance_scale=1.0,
        output_type="latent",
    ).images
    assert apart(drawn.latent, theirs) < 1e-4


def test_a_lora_gives_the_students_picture_here_and_in_diffusers(
    variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    folder = variant_folder("sd1")
    config = recipe(folder, lora=LORA, run={"ema": 0}, optimizer={"learning_rate": 0.05})
    assert train(config, tmp_path)
    model = undust.load(folder)
    files = {keys: tmp_path / "model" / name for keys, name in FILES.items()}
    ours = painted(model, files["diffusers"])
    assert apart(ours, painted(model)) > 1e-3
    assert apart(painted(model, files["kohya"]), ours) < 1e-6
    for theirs in by_diffusers(folder, [files["diffusers"]]):
        assert apart(theirs, ours) < 1e-4
    about = json.loads(
        undust.formats.safetensors_file.header(files["diffusers"]).metadata["undust"]
    )
    assert about["recipe"]["kind"] == "consistency"


@pytest.mark.parametrize(("lora", "kept"), [(None, 0), (LORA, 16)])
def test_a_run_goes_on_as_if_it_had_not_stopped(
    lora: Any,
    kept: int,
    variant_folder: Folder,
    recipe: Recipe,
    pictures: Path,
    tmp_path: Path,
    contents: Callable[[Path], Any],
):
    """Also in parts of a step, with the target's weights of that step, or the flows of earlier."""
    for steps in (1, 2):
        run = {"steps": steps, "batch": 8, "ema": 0.9, "accumulate": 2}
        own = {"trajectories": kept, "phases": 2}
        data = {"folder": str(pictures)}
        config = recipe(variant_folder("sd1"), run=run, lora=lora, distillation=own, data=data)
        assert train(config, tmp_path / "parts", resume=steps > 1)
    assert train(config, tmp_path / "whole")
    for part in ("model", "checkpoints/step-00000002"):
        found, expected = (contents(tmp_path / run / part) for run in ("parts", "whole"))
        assert found == expected


@torch.no_grad()
def test_the_target_follows_the_student_once_a_step(
    variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    """μ·target + (1 − μ)·student (Song et al. 2023, algorithm 2)."""
    config = recipe(variant_folder("sd1"), distillation={"target_ema": 0.75}, lora=LORA)
    task = ConsistencyTask(config, tmp_path)
    assert task._average
    parameters = dict(task.modules.named_parameters())
    before = {name: value.clone() for name, value in parameters.items()}
    for value in parameters.values():
        value += 1
    for step in (0, 0, 1):
        task.losses(task.order.batch(step, 2))
    for name, average in task._average.average.items():
        torch.testing.assert_close(average, before[name] + (1 - 0.75**2))
        torch.testing.assert_close(parameters[name], before[name] + 1)


@torch.no_grad()
@pytest.mark.parametrize("lora", [None, LORA])
def test_the_teacher_stays_as_it_was(
    lora: Any, variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    model = undust.load(variant_folder("sd1"))
    task = ConsistencyTask(recipe(variant_folder("sd1"), lora=lora), tmp_path)
    moved(task)
    batch = task.order.batch(0, 2)
    cond = task.samples.conditioning(task.model, batch)
    x, sigma = noise().expand(2, -1, -1, -1), torch.tensor([5.0, 0.5])
    estimate = task._guided(task.samples, batch, cond)(x, sigma)
    negative = model.condition([None, None])
    with_text, without = (model.denoise(x, sigma, each) for each in (cond, negative))
    expected = without + undust.load(variant_folder("sd1")).guidance * (with_text - without)
    torch.testing.assert_close(estimate, expected, rtol=1e-4, atol=1e-4)
    assert apart(task.denoise(x, sigma, cond), with_text) > 1e-2


@torch.no_grad()
def test_the_flows_that_are_kept_are_the_teacher_s_pictures(
    variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    """By the library's own DDIM with guidance; they come again after all of them."""
    own = {"trajectories": 16, "phases": 2, "guidance": 3.0, "loss": "l2"}
    config = recipe(variant_folder("sd1"), distillation=own, captions={"drop": 0})
    task = ConsistencyTask(config, tmp_path)
    batch, later = (task.order.batch(step, 8) for step in (1, 3))
    losses = [task.losses(each)["loss"] for each in (batch, later)]
    assert len(task._kept) == 1
    [edges] = task._kept.values()
    model = undust.load(variant_folder("sd1"))
    noise = batch.normal(RandomStream.NOISE, (4, 8, 8))
    pictures = model.generate(
        [escape(caption or "") for caption in task.text(batch)],
        noise=noise,
        size=(32, 32),
        steps=4,
        sampler="ddim",
        schedule="trailing",
        guidance=3.0,
    )
    latents = torch.stack([each.latent for each in pictures])  # by another engine, which rounds
    torch.testing.assert_close(edges[:, -1], latents, rtol=1e-4, atol=1e-4)
    cond = model.condition([escape(caption or "") for caption in task.text(batch)])
    for found, drawn in zip(losses, (batch, later), strict=True):
        first = drawn.uniform(RandomStream.TIME)[:, 0] < 0.5
        assert 0 < first.sum() < 8
        x = torch.where(first.reshape(-1, 1, 1, 1), edges[:, 0], edges[:, 1])
        high, low, zero = task.grid.edges.float()
        sigma, end = torch.where(first, high, low), torch.where(first, low, zero)
        x0 = model.denoise(x, sigma, cond)
        share = (end / sigma).reshape(-1, 1, 1, 1)
        wanted = torch.where(first.reshape(-1, 1, 1, 1), edges[:, 1], edges[:, 2])
        error = x0 + share * (x - x0) - wanted
        torch.testing.assert_close(found, error.square().mean(), rtol=1e-4, atol=0)


def test_the_student_comes_nearer_to_the_teacher(
    variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    """The loss in evaluation is the distance of their pictures from the same noise."""
    own = {"phases": 2, "guidance": 9.0, "target_ema": 0}
    task = ConsistencyTask(recipe(variant_folder("sd2-v"), distillation=own), tmp_path)
    batch = task.order.batch(0, 4)

    def distance() -> float:
        task.modules.eval()
        with torch.no_grad():
            found = float(task.losses(batch)["loss"])
        task.modules.train()
        return found

    before, optimizer = distance(), torch.optim.Adam(task.modules.parameters(), 3e-3)
    for _ in range(10):
        optimizer.zero_grad()
        task.losses(batch)["loss"].backward()
        optimizer.step()
    assert distance() < 0.7 * before


def test_models_of_classes_and_of_nothing_are_distilled(
    recipe: Recipe, pictures: Path, tmp_path: Path, first_stage: Path
):
    """Guidance leads away from the class that is none; without a condition there is none."""
    table = {"folder": str(pictures), "size": 16}
    network = {
        "block_out_channels": [16],
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 8,
    }
    run = {"steps": 1, "batch": 2, "sample_every": 9}
    for name, labels in (("classes", {"column": "text"}), ("nothing", None)):
        tree = {"kind": "diffusion", "first_stage": str(first_stage), "data": table}
        tree |= {"unet2d": network, "optimizer": {"learning_rate": 1e-3}, "run": run}
        tree |= {"labels": labels} if labels else {}
        assert train(kinds.parse(tree, name).complete(), tmp_path / name)
        more = {"labels": labels} if labels else {}
        config = recipe(tmp_path / name / "model", data=table, **more)
        assert train(config, tmp_path / f"{name} distilled")
        model = undust.load(tmp_path / f"{name} distilled/model")
        [picture] = model.generate((), seed=1, label="red" if labels else None)
        assert (picture.recipe.sampler, picture.recipe.steps) == ("lcm", 4)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"distillation": {"phases": 3}}, "solver_steps is 4, which 3 phases do not divide"),
        ({"distillation": {"guidance": [5, 3]}}, "guidance: one scale .*, or two that rise"),
        ({"distillation": {"guidance": -1}}, "guidance: one scale from 0"),
        ({"distillation": {"steps": 4}}, "distillation.steps: is not known; did you mean"),
        ({"distillation": {"solver_steps": 2000}}, "distillation.solver_steps: "),
        ({"model": "none"}, "none"),
        ({"prior": {"prompt": "a thing"}}, "prior: the teacher is the whole objective"),
        ({"diffusion": {"weighting": "snr"}}, "diffusion: the levels are those of distillation"),
        (
            {"distillation": {"trajectories": 12}},
            "distillation.trajectories is 12, which a batch of 8 does not divide",
        ),
        ({"train": ["unet"]}, "train: is not known"),
        ({"lora": {"targets": ["to_x"]}}, "lora.targets: to_x match nothing"),
    ],
)
def test_bad_tables_are_refused(
    tables: dict[str, Any], message: str, variant_folder: Folder, recipe: Recipe, tmp_path: Path
):
    place = tables.pop("model", variant_folder("sd1"))
    with pytest.raises(UndustError, match=message) as error:
        ConsistencyTask(recipe(place, **tables), tmp_path)
    assert "\n" not in str(error.value)
