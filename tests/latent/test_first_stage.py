from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator

import pytest
import torch

from undust.errors import UndustError
from undust.latent.first_stage import FirstStage
from undust.networks.autoencoder import Autoencoder
from undust.networks.config import AutoencoderConfig

WIDTHS = {"block_out_channels": (8, 16), "norm_num_groups": 4, "scaling_factor": 1.0}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        yield


@pytest.fixture
def half() -> Autoencoder:
    return Autoencoder(AutoencoderConfig(**WIDTHS)).requires_grad_(False).half()


@pytest.fixture
def overflowing(half: Autoencoder) -> Autoencoder:
    """In float16 its first layers leave the range for inputs of about 1, not for those near 0."""
    half.decoder.conv_in.weight.mul_(1e5)
    half.encoder.conv_in.weight.mul_(1e5)
    return half


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("quiet")
def test_what_stays_in_range_is_left_alone(half) -> None:
    z, x = torch.randn(2, 4, 8, 8), torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(FirstStage(half).decode(z), half.decode(z.half()).float())
    assert torch.equal(FirstStage(half).encode(x).mean, half.encode(x.half()).mode().float())


def test_overflow_is_decoded_again_in_float32(overflowing) -> None:
    z = torch.randn(2, 4, 8, 8)
    assert overflowing.decode(z.half()).isnan().any()
    weights = {name: w.clone() for name, w in overflowing.state_dict().items()}
    with pytest.warns(RuntimeWarning, match="range of float16.* computed again in float32") as told:
        picture = FirstStage(overflowing).decode(z)
    assert len(told) == 1
    # Latents that came in float32 are not rounded first.
    assert torch.equal(picture, copy.deepcopy(overflowing).float().decode(z))
    for name, w in overflowing.state_dict().items():
        assert w.dtype == torch.float16
        assert torch.equal(w, weights[name])


def test_overflow_is_encoded_again_in_float32(overflowing) -> None:
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    with pytest.warns(RuntimeWarning, match="float16"):
        mean = FirstStage(overflowing).encode(x).mean
    assert torch.equal(mean, copy.deepcopy(overflowing).float().encode(x).mode())


def test_float32_is_worth_it(overflowing) -> None:
    # bfloat16 would have the range; what it would cost is seen in levels of 255.
    z = torch.randn(1, 4, 8, 8)
    expected = copy.deepcopy(overflowing).double().decode(z.double())
    with pytest.warns(RuntimeWarning):
        ours = FirstStage(overflowing).decode(z)
    short = overflowing.bfloat16().decode(z.bfloat16())
    levels = 127.5 / expected.abs().max()
    assert (ours - expected).abs().max() * levels < 0.01
    assert (short - expected).abs().max() * levels > 0.5


def test_only_the_picture_that_overflows_is_decoded_again(overflowing) -> None:
    z = torch.randn(3, 4, 8, 8) * torch.tensor([1e-2, 1.0, 1e-2])[:, None, None, None]
    in_half = overflowing.decode(z.half()).float()
    with pytest.warns(RuntimeWarning):
        pictures = FirstStage(overflowing).decode(z)
    assert torch.equal(pictures[[0, 2]], in_half[[0, 2]])
    wide = copy.deepcopy(overflowing).float()
    assert torch.equal(pictures[1:2], wide.decode(z[1:2]))


def test_large_pictures_too() -> None:
    fields = {**WIDTHS, "block_out_channels": (2,), "norm_num_groups": 2}
    fields |= {"mid_block_add_attention": False}
    ours = Autoencoder(AutoencoderConfig(**fields)).requires_grad_(False).half()
    ours.decoder.conv_in.weight.mul_(1e5)
    z = torch.randn(1, 4, 1025, 1024)
    with pytest.warns(RuntimeWarning):
        picture = FirstStage(ours).decode(z)
    assert torch.equal(picture, copy.deepcopy(ours).float().decode(z))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_input_that_is_not_finite_is_an_error(half, value, dtype) -> None:
    z = torch.zeros(2, 4, 8, 8)
    z[1, 2, 3, 4] = value
    with pytest.raises(UndustError, match=r"latents .* NaN or infinity"):
        FirstStage(half.to(dtype)).decode(z)
    with pytest.raises(UndustError, match=r"pictures .* NaN or infinity"):
        FirstStage(half.to(dtype)).encode(torch.full((1, 3, 16, 16), value))


@pytest.mark.usefixtures("quiet")
def test_damaged_weights_are_named(half) -> None:
    half.encoder.conv_in.bias[0] = torch.inf
    with pytest.raises(UndustError, match=r"damaged: encoder\.conv_in\.bias holds NaN"):
        FirstStage(half).encode(torch.zeros(1, 3, 16, 16))
    half.float().encoder.conv_in.bias[0] = 0
    half.decoder.conv_out.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(UndustError, match=r"damaged: decoder\.conv_out\.weight holds NaN"):
        FirstStage(half).decode(torch.zeros(1, 4, 8, 8))


@pytest.mark.usefixtures("quiet")
def test_latents_that_are_too_large_even_for_float32_are_an_error(half) -> None:
    with pytest.raises(UndustError, match=r"in float32 for latents of magnitudes up to 3e\+38"):
        FirstStage(half.float()).decode(torch.full((1, 4, 8, 8), 3e38))


def test_latents_are_scaled() -> None:
    """(z − shift) · scale, per channel too, and back; the deviation scales along."""
    fields = {"latents_mean": [1.0, -2.0, 0.5, 0.0], "latents_std": [2.0, 0.5, 1.0, 4.0]}
    network = Autoencoder(AutoencoderConfig(**{**WIDTHS, "scaling_factor": 0.5}, **fields))
    network.requires_grad_(False)
    stage, x = FirstStage(network), torch.rand(2, 3, 16, 16) * 2 - 1
    plain, found = network.encode(x), stage.encode(x)
    mean, deviation = (torch.tensor(each).reshape(4, 1, 1) for each in fields.values())
    torch.testing.assert_close(found.mean, 0.5 * (plain.mean - mean) / deviation)
    torch.testing.assert_close(found.deviation, 0.5 * (0.5 * plain.logvar).exp() / deviation)
    torch.testing.assert_close(stage.decode(found.mean), network.decode(plain.mean))
    noise = torch.randn(found.mean.shape)
    assert torch.equal(found.sample(noise), found.mean + found.deviation * noise)
