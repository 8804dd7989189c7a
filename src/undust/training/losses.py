"""Loss terms of the first stage, as functions of tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ADAPTIVE_EPS = 1e-4
ADAPTIVE_LARGEST = 1e4
ADAPTIVE_SCALE = 2.0**10  # of losses, so that their gradients are in the range of float16


def gradient_difference(x: Tensor, y: Tensor, scales: int) -> Tensor:
    """Mean absolute difference of the image gradients of x and y [B, 3, H, W], summed over scales.

    A blurred edge costs little in L1 but has the wrong gradient along its whole length, and the
    halved sizes make a misplaced shape cost as well: after the gradient difference loss
    (Mathieu, Couprie & LeCun 2016, who use one size). Needs no pretrained network.
    A scale smaller than 2 pixels is left out.
    """
    error = x - y
    total = error.new_zeros(())
    for _ in range(scales):
        if min(error.shape[-2:]) < 2:
            break
        total = total + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        error = F.avg_pool2d(error, 2)
    return total


def negative_log_likelihood(reconstruction: Tensor, log_variance: Tensor) -> Tensor:
    """Rec / exp(v) + v with one learned log-variance v for all numbers of all pictures.

    (Dai & Wipf 2019; Esser et al. 2021.) At its minimum v is the logarithm of the error.
    """
    return reconstruction / log_variance.exp() + log_variance


def straight_through(z: Tensor, codes: Tensor) -> Tensor:
    """The codes, with the gradient of z (van den Oord et al. 2017, section 3.2)."""
    return z + (codes - z).detach()


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss on the logits of pictures and of reconstructions.

    Half of E[max(0, 1 − real)] + E[max(0, 1 + fake)] (Lim & Ye 2017): 1 if it cannot tell them
    apart, 0 if it has separated them by a margin.
    """
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def adaptive_weight(likelihood: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """clamp(‖∇nll‖ / (‖∇g‖ + 1e-4), 0, 1e4), gradients to the decoder's last layer.

    (Esser et al. 2021, eq. 7.) With it both losses pull equally hard at that layer. Constant: no
    gradient goes through it. Both graphs are kept.
    """
    norms = [
        torch.autograd.grad(ADAPTIVE_SCALE * loss, last_layer, retain_graph=True)[0].float().norm()
        for loss in (likelihood, adversarial)
    ]
    return (norms[0] / (norms[1] + ADAPTIVE_SCALE * ADAPTIVE_EPS)).clamp(0, ADAPTIVE_LARGEST)
