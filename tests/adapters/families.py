"""Every family of LoRA files: random tensors for a weight of a given shape, and what they mean.

The meaning is the papers' formula, in float64 and with other operations than the package's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

Draw = Callable[..., Tensor]
RANK, ALPHA = 3, 1.5
OUT, IN = 8, 12


@dataclass
class Made:
    """The tensors of a module by what follows its name, and ΔW and Δb in float64."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    weight: Tensor | None = None
    bias: Tensor | None = None
    # DoRA: the weight worn whole, from the weight as it was
    whole: Callable[[Tensor], Tensor] | None = None

    def change(self, original: Tensor) -> Tensor:
        original = original.double()
        if self.whole is not None:
            return self.whole(original) - original
        return torch.zeros_like(original) if self.weight is None else self.weight


class Net(nn.Module):
    """One module of each kind that can be changed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(IN, OUT)
        self.plain = nn.Linear(IN, OUT, bias=False)
        self.conv = nn.Conv2d(IN, OUT, 3, padding=1)
        self.strided = nn.Conv2d(IN, OUT, 3, stride=2, padding=1)
        self.pixel = nn.Conv2d(IN, OUT, 1)
        self.layer_norm = nn.LayerNorm(IN)
        self.group_norm = nn.GroupNorm(4, IN)


MATRICES = ("linear", "plain", "conv", "strided", "pixel")
NORMS = ("layer_norm", "group_norm")


def net(seed: int = 0) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = Net()
        for parameter in made.parameters():
            nn.init.normal_(parameter)
    return made.requires_grad_(False)


def draw(seed: int) -> Draw:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def example(module: str, batch: int = 2) -> Tensor:
    """An input for a module of `Net`."""
    shape = (batch, 5, IN) if module in ("linear", "plain", "layer_norm") else (batch, IN, 6, 6)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def _numpy(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.double().numpy() for tensor in tensors]


def _tucker(up, core, down):
    """Σ_pq up[o,p] core[p,q,…] down[q,i], one term after the other."""
    terms = (
        up[:, p, *(None,) * (core.ndim - 1)]
        * down[None, q, :, *(None,) * (core.ndim - 2)]
        * core[p, q]
        for p in range(core.shape[0])
        for q in range(core.shape[1])
    )
    return sum(terms)


def _low(up, down):
    """Σ_r of outer products; down may have a kernel."""
    return sum(np.multiply.outer(up[:, r], down[r]) for r in range(up.shape[1]))


def _kron(left, right):
    a, c = left.shape
    b, d, *kernel = right.shape
    whole = np.zeros((a * b, c * d, *kernel))
    for row in range(a):
        for column in range(c):
            block = left[row, column] * right
            whole[row * b : (row + 1) * b, column * d : (column + 1) * d] = block
    return torch.from_numpy(whole)


def lora(shape, draw: Draw, *, alpha: float | None = ALPHA) -> Made:
    ones = (1,) * (len(shape) - 2)
    up, down = draw(shape[0], RANK, *ones), draw(RANK, *shape[1:])
    tensors = {".lora_up.weight": up, ".lora_down.weight": down}
    if alpha is not None:
        tensors[".alpha"] = torch.tensor(alpha)
    u, d = _numpy(up.flatten(1), down)
    return Made(tensors, (alpha / RANK if alpha else 1) * torch.from_numpy(_low(u, d)))


def lora_without_alpha(shape, draw: Draw) -> Made:
    return lora(shape, draw, alpha=None)


def lora_of_alpha_zero(shape, draw: Draw) -> Made:
    return lora(shape, draw, alpha=0.0)


def lora_mid(shape, draw: Draw) -> Made:
    ones = (1,) * (len(shape) - 2)
    up, down = draw(shape[0], RANK, *ones), draw(RANK, shape[1], *ones)
    mid = draw(RANK, RANK, *shape[2:])
    u, m, d = _numpy(up.flatten(1), mid, down.flatten(1))
    tensors = {
        ".lora_up.weight": up,
        ".lora_down.weight": down,
        ".lora_mid.weight": mid,
        ".alpha": torch.tensor(ALPHA),
    }
    return Made(tensors, ALPHA / RANK * torch.from_numpy(_tucker(u, m, d)))


def loha(shape, draw: Draw) -> Made:
    columns = int(np.prod(shape[1:]))
    parts = {
        f".hada_w{n}_{side}": draw(*size)
        for n in (1, 2)
        for side, size in (("a", (shape[0], RANK)), ("b", (RANK, columns)))
    }
    w1a, w1b, w2a, w2b = _numpy(*parts.values())
    whole = torch.from_numpy(_low(w1a, w1b) * _low(w2a, w2b)).reshape(shape)
    return Made({**parts, ".alpha": torch.tensor(ALPHA)}, ALPHA / RANK * whole)


def loha_tucker(shape, draw: Draw) -> Made:
    parts = {
        f".hada_{name}": draw(*size)
        for n in (1, 2)
        for name, size in (
            (f"t{n}", (RANK, RANK, *shape[2:])),
            (f"w{n}_a", (RANK, shape[0])),
            (f"w{n}_b", (RANK, shape[1])),
        )
    }
    t1, w1a, w1b, t2, w2a, w2b = _numpy(*parts.values())
    whole = torch.from_numpy(_tucker(w1a.T, t1, w1b) * _tucker(w2a.T, t2, w2b))
    return Made({**parts, ".alpha": torch.tensor(ALPHA)}, ALPHA / RANK * whole)


def lokr(shape, draw: Draw, *, left: str = "whole", right: str = "whole") -> Made:
    """Rows 2 × 4, columns 3 × 4."""
    small, large = (2, 3), (shape[0] // 2, shape[1] // 3, *shape[2:])
    tensors: dict[str, Tensor] = {".alpha": torch.tensor(ALPHA)}
    if left == "whole":
        tensors[".lokr_w1"] = draw(*small)
        (w1,) = _numpy(tensors[".lokr_w1"])
    else:
        tensors |= {".lokr_w1_a": draw(small[0], RANK), ".lokr_w1_b": draw(RANK, small[1])}
        w1 = _low(*_numpy(tensors[".lokr_w1_a"], tensors[".lokr_w1_b"]))
    if right == "whole":
        tensors[".lokr_w2"] = draw(*large)
        (w2,) = _numpy(tensors[".lokr_w2"])
    elif right == "low":
        columns = int(np.prod(large[1:]))
        tensors |= {".lokr_w2_a": draw(large[0], RANK), ".lokr_w2_b": draw(RANK, columns)}
        w2 = _low(*_numpy(tensors[".lokr_w2_a"], tensors[".lokr_w2_b"])).reshape(large)
    else:
        tensors |= {
            ".lokr_t2": draw(RANK, RANK, *large[2:]),
            ".lokr_w2_a": draw(RANK, large[0]),
            ".lokr_w2_b": draw(RANK, large[1]),
        }
        a, t, b = _numpy(*(tensors[f".lokr_{name}"] for name in ("w2_a", "t2", "w2_b")))
        w2 = _tucker(a.T, t, b)
    scale = 1 if left == right == "whole" else ALPHA / RANK
    return Made(tensors, scale * _kron(w1, w2))


def lokr_low(shape, draw: Draw) -> Made:
    return lokr(shape, draw, right="low")


def lokr_both_low(shape, draw: Draw) -> Made:
    return lokr(shape, draw, left="low", right="low")


def lokr_left_low(shape, draw: Draw) -> Made:
    return lokr(shape, draw, left="low")


def lokr_tucker(shape, draw: Draw) -> Made:
    return lokr(shape, draw, right="tucker")


def full(shape, draw: Draw) -> Made:
    whole = draw(*shape)
    return Made({".diff": whole}, whole.double())


def full_with_bias(shape, draw: Draw) -> Made:
    whole, bias = draw(*shape), draw(shape[0])
    return Made({".diff": whole, ".diff_b": bias}, whole.double(), bias.double())


def bias_alone(shape, draw: Draw) -> Made:
    bias = draw(shape[0])
    return Made({".diff_b": bias}, None, bias.double())


def lora_with_bias(shape, draw: Draw) -> Made:
    made, bias = lora(shape, draw), draw(shape[0])
    return Made({**made.tensors, ".diff_b": bias}, made.weight, bias.double())


def lora_with_up_bias(shape, draw: Draw) -> Made:
    """PEFT's lora_bias: s·(B·(A·x) + b)."""
    made, bias = lora(shape, draw), draw(shape[0])
    tensors = {**made.tensors, ".lora_B.bias": bias}
    return Made(tensors, made.weight, ALPHA / RANK * bias.double())


def norm(shape, draw: Draw) -> Made:
    weight, bias = draw(*shape), draw(*shape)
    return Made({".w_norm": weight, ".b_norm": bias}, weight.double(), bias.double())


def _directed(made: Made, magnitude: Tensor, axis: int) -> Made:
    """DoRA: each slice along the axis gets the length that its magnitude says."""
    rest = made.weight
    assert rest is not None

    def whole(original: Tensor) -> Tensor:
        moved = (original + rest).clone()
        for index, length in enumerate(magnitude.double().flatten()):
            part = moved.select(axis, index)
            part *= length / part.pow(2).sum().sqrt()
        return moved

    return Made(made.tensors, rest, made.bias, whole)


def dora(shape, draw: Draw, base: Callable[..., Made] = lora) -> Made:
    """LyCORIS with a length for each output."""
    made = base(shape, draw)
    scale = draw(shape[0], *(1,) * (len(shape) - 1)).abs() + 0.5
    made.tensors[".dora_scale"] = scale
    return _directed(made, scale, 0)


def dora_of_inputs(shape, draw: Draw) -> Made:
    """LyCORIS in its older files, a length for each input."""
    made = lora(shape, draw)
    scale = draw(1, shape[1], *(1,) * (len(shape) - 2)).abs() + 0.5
    made.tensors[".dora_scale"] = scale
    return _directed(made, scale, 1)


def dora_of_loha(shape, draw: Draw) -> Made:
    return dora(shape, draw, loha)


def dora_of_lokr(shape, draw: Draw) -> Made:
    return dora(shape, draw, lokr_low)


PLAIN = (lora, lora_without_alpha, lora_of_alpha_zero, lora_mid)
OTHERS = (
    *(loha, loha_tucker, lokr, lokr_low, lokr_both_low, lokr_left_low, lokr_tucker),
    *(full, full_with_bias, bias_alone, lora_with_bias, lora_with_up_bias),
)
DORA = (dora, dora_of_inputs, dora_of_loha, dora_of_lokr)
CASES = [
    (family, module)
    for family in (*PLAIN, *OTHERS, *DORA)
    for module in MATRICES
    if not (module == "plain" and "bias" in family.__name__)
] + [(norm, module) for module in NORMS]


def prefixed(prefix: str, made: Made) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in made.tensors.items()}
