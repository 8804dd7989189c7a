"""Every process, prediction, weighting and distribution of times of a recipe, in training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from undust.diffusion.denoiser import NetworkDenoiser
from undust.diffusion.noise import normal, uniform
from undust.diffusion.prediction import prediction_on
from undust.diffusion.time_sampling import TIME_SAMPLINGS
from undust.diffusion.weighting import WEIGHTINGS
from undust.errors import UndustError
from undust.formats.scheduler import read_scheduler, scheduler_config
from undust.training.noise_levels import AnyNoiseConfig, NoiseConfig

READ = TypeAdapter[NoiseConfig](AnyNoiseConfig)
CONFIGS: tuple[type[NoiseConfig], ...] = get_args(get_args(AnyNoiseConfig)[0])


def choices(config: type[NoiseConfig], field: str) -> tuple[str, ...]:
    return get_args(config.model_fields[field].annotation)


def recipes() -> Iterator[dict[str, str]]:
    for config in CONFIGS:
        for process in choices(config, "process"):
            for prediction in choices(config, "prediction"):
                yield {"process": process, "prediction": prediction}


class Line(nn.Module):
    """A linear network of the picture, told the noise level by the time step."""

    def __init__(self) -> None:
        super().__init__()
        self.of = nn.Linear(6, 4)

    def forward(self, x: Tensor, timestep: Tensor, _cond: object) -> Tensor:
        told = torch.stack([timestep / 1000, (1 + timestep.abs()).log()], 1)
        return self.of(torch.cat([x, told], 1))


@pytest.mark.parametrize(
    "fields", [*recipes()], ids=lambda each: f"{each['process']}-{each['prediction']}"
)
def test_every_process_and_prediction_learns_and_is_read_back(fields: dict[str, str]):
    """On constant pictures, with every weighting and every distribution of times in turn."""
    config = READ.validate_python(fields)
    process = config.process_of()
    prediction = prediction_on(process, fields["prediction"])
    assert type(read_scheduler(scheduler_config(process, fields["prediction"]), "here")[0]) is type(
        process
    )
    weights = [name for name in WEIGHTINGS if name != "vlb" or hasattr(process, "betas")]
    x0 = torch.full((256, 4), 0.5)
    for number, (weighting, times) in enumerate(
        zip(weights, [None, *TIME_SAMPLINGS] * 2, strict=False)
    ):
        own = READ.validate_python({**fields, "weighting": weighting, "times": times})
        _, levels, weight = own.build()
        torch.manual_seed(0)
        network = Line()
        denoise = NetworkDenoiser(network, process, prediction)
        sigma = levels(uniform(number, (0, 0, 0), (256,)))
        noise = normal(number, (1, 0, 0), (256, 4))

        def loss(denoise=denoise, noise=noise, sigma=sigma, weight=weight) -> Tensor:
            each = denoise.loss(x0, noise, sigma, None, weight)
            assert each.isfinite().all()
            return each.mean()

        before = loss()
        before.backward()
        gradients = [each.grad for each in network.parameters()]
        assert all(grad is not None and grad.isfinite().all() for grad in gradients)
        assert any(grad.abs().max() > 0 for grad in gradients if grad is not None)
        norm = torch.stack([grad.norm() for grad in gradients if grad is not None]).norm()
        with torch.no_grad():
            for each in network.parameters():
                assert each.grad is not None
                each -= 1e-4 / norm * each.grad
        assert loss() <= before


def test_old_recipes_draw_and_weigh_as_they_did():
    """The formulas of the keys `shift`, `p_mean` and `p_std`, and of names without settings."""
    drawn = uniform(0, (0, 0, 0), (1000,))
    process, levels, _ = READ.validate_python({"shift": 3.0}).build()
    shifted = 3 * drawn / (1 + 2 * drawn)
    assert torch.equal(levels(drawn), process.sigma((shifted * 1000).floor()))
    flow, levels, _ = READ.validate_python({"process": "flow", "shift": 2.0}).build()
    first, last = flow.time_range
    assert torch.equal(levels(drawn), flow.sigma(first + (last - first) * drawn))
    _, levels, _ = READ.validate_python({"process": "edm", "p_mean": -0.5, "p_std": 1.0}).build()
    assert torch.equal(levels(drawn), (-0.5 + torch.special.ndtri(drawn)).exp())
    _, levels, _ = READ.validate_python(
        {"process": "edm", "times": "lognormal:mean=-0.5,deviation=1"}
    ).build()
    assert torch.equal(levels(drawn), (-0.5 + torch.special.ndtri(drawn)).exp())


def test_names_that_do_not_exist_are_refused():
    for fields, said in (
        ({"weighting": "min-snrr"}, "did you mean 'min-snr'"),
        ({"times": "logitnormal"}, "did you mean 'logit-normal'"),
        ({"process": "edm", "weighting": "vlb"}, "needs a discrete process"),
    ):
        with pytest.raises(UndustError, match=said):
            READ.validate_python(fields).build()
