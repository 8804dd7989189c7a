"""The guidance methods that a recipe can name, and the settings of each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, Protocol, TypeVar

from torch import Tensor

from undust.diffusion.guidance.base import Scale
from undust.diffusion.registry import Registry
from undust.diffusion.samplers.registry import Denoise

Role = Literal["prompt", "scale", "mix", "around"]
"""prompt: changes the estimate for the prompt; scale: is the guidance scale; mix: combines the
estimates for the prompt and the negative prompt; around: modifies the result of that."""


@dataclass(frozen=True)
class Limits:
    """What a setting may be: numbers between bounds, texts and lists of a length."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    min_length: int | None = None
    max_length: int | None = None


Prompt = Annotated[str, Limits(max_length=10_000)]
Mask = Annotated[Tensor, "mask"]
"""[h, w] of the latent, 0 … 1; in a recipe the path of a picture, or its bytes in a data URL."""


class GuidanceContext(Protocol):
    """The denoisers of one batch that a guidance is built from."""

    @property
    def denoise(self) -> Denoise:
        """The estimate so far, with the guidance that was named before this one."""
        ...

    @property
    def positive(self) -> Denoise:
        """The estimate for the prompt."""
        ...

    @property
    def negative(self) -> Denoise:
        """The estimate for the negative prompt."""
        ...

    @property
    def empty(self) -> Denoise:
        """The estimate for no prompt."""
        ...

    @property
    def scale(self) -> Scale:
        """The guidance scale."""
        ...

    @property
    def sigmas(self) -> Tensor:
        """The noise levels of the run [steps + 1]."""
        ...

    def conditioned_on(self, prompt: str) -> Denoise:
        """The same model for another prompt, the same for all pictures."""
        ...

    def perturbed(self, perturbation: Callable[..., Tensor]) -> Denoise:
        """As `positive`, with the middle block's self-attention replaced.

        perturbation: (q, k, v [B, H·W, C], *, attend, shape) -> [B, H·W, C], where attend(q, k, v)
        is what is replaced and shape is (H, W).
        """
        ...

    def other_model(self, name_or_path: str, model_hash: str) -> Denoise:
        """As `positive`, by another model; UndustError if its hash is another one."""
        ...

    def sigma_after(self, share: float) -> float:
        """The noise level at which that share of the steps, 0 … 1, is done."""
        ...


@dataclass(frozen=True)
class GuidanceMethod:
    """A registered guidance.

    kind: its class; `kind.build(context, *, …settings)` makes one for a batch, a denoiser or, in
    the role "scale", a scale; samplers: those it is for, any if empty.
    """

    name: str
    role: Role
    kind: Any
    samplers: tuple[str, ...] = ()

    @cached_property
    def summary(self) -> str:
        """What it does, in one line."""
        return (inspect.getdoc(self.kind) or "").partition("\n")[0]

    @cached_property
    def settings(self) -> Mapping[str, inspect.Parameter]:
        """The keyword-only parameters of its `build`, annotated with types and `Limits`."""
        parameters = inspect.signature(self.kind.build, eval_str=True).parameters
        return {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}

    @cached_property
    def masks(self) -> tuple[str, ...]:
        """The settings that are masks."""
        return tuple(name for name, p in self.settings.items() if p.annotation == Mask)

    def build(self, context: GuidanceContext, settings: Mapping[str, Any]) -> Any:
        """The guidance for one batch."""
        return self.kind.build(context, **settings)

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raises UndustError for settings that exclude one another; `kind.check` says so."""
        check = getattr(self.kind, "check", None)
        if check is not None:
            check(**settings)


GUIDANCES: Registry[GuidanceMethod] = Registry("guide")

K = TypeVar("K", bound=type)


def guidance(name: str, role: Role, *, samplers: tuple[str, ...] = ()) -> Callable[[K], K]:
    """Registers a class with a classmethod `build(context, *, …)`.

    The keyword-only parameters are its settings in a recipe; those called `model` and `model_hash`
    name another model. The first line of the class's docstring is its help. samplers: the only ones
    that it works with.
    """

    def register(kind: K) -> K:
        GUIDANCES[name] = GuidanceMethod(name, role, kind, samplers)
        return kind

    return register
