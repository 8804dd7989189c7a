from __future__ import annotations

import torch

from undust.conditioning.condition import Conditioning
from undust.networks.perturbation import BlurredQueries, IdentityMap


def test_entries_keep_what_is_asked_of_their_network():
    plain = Conditioning(torch.randn(2, 3, 4))
    weak, vague = plain.perturb(IdentityMap()), plain.perturb(BlurredQueries(2.0))
    together = plain.concat(weak).concat(vague)
    assert together.perturbed == (None, None, *[IdentityMap()] * 2, *[BlurredQueries(2.0)] * 2)
    assert torch.equal(together.text, plain.text.repeat(3, 1, 1))
    assert together[1:3].perturbed == (None, IdentityMap())
    assert len(together[1:3]) == 2
    assert plain.concat(plain).perturbed == () == plain[:1].perturbed
    assert weak.concat(plain).perturbed == (*[IdentityMap()] * 2, None, None)
