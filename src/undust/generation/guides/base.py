"""What a guide is, and how one is read."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from undust.diffusion.guidance import Scale
from undust.diffusion.registry import Registry
from undust.errors import UndustError, quoted, unknown
from undust.recipe.plain import reason

if TYPE_CHECKING:
    from undust.diffusion.samplers.registry import Denoise
    from undust.generation.scene import Ask, Scene
    from undust.latent.model import LatentModel

Role = Literal["prompt", "scale", "mix", "around"]


class Guide(BaseModel):
    """A guide and its settings. Its role says which of the methods it has its own of.

    prompt (`asked`): what is asked for; scale (`scaled`): how strongly; mix (`mixed`): how the
    prompt and the negative prompt are put together; around (`guided`): what is done with the
    result. A recipe has one guide of the roles scale and mix at most; others follow one another.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    name: ClassVar[str]
    role: ClassVar[Role] = "around"

    @model_serializer(mode="wrap")
    def _named(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"name": self.name, **fields(self)}

    @classmethod
    def summary(cls) -> str:
        """What it does, in one line."""
        return (inspect.getdoc(cls) or "").partition("\n")[0]

    @classmethod
    def settings(cls) -> str:
        """Its settings with their defaults, as they are written."""
        return ", ".join(
            f"{name}=…"
            if field.is_required() or field.default in (None, "")
            else f"{name}={field.default}"
            for name, field in cls.model_fields.items()
        )

    def check(self, sampler: str) -> None:
        """Raises UndustError for a sampler that it cannot guide."""
        del sampler

    def resolve(self, model: LatentModel, size: tuple[int, int]) -> Self:
        """The same for pictures of (width, height), and with all that it needs of files in it."""
        del model, size
        return self

    def asked(self, scene: Scene, denoise: Denoise, ask: Ask) -> Denoise:
        """What is asked for, made of what was asked for without it."""
        del scene, ask
        return denoise

    def scaled(self, scene: Scene) -> Scale:
        """The guidance scale."""
        raise NotImplementedError

    def mixed(self, scene: Scene, scale: Scale) -> Denoise:
        """The prompt and the negative prompt as one denoiser."""
        raise NotImplementedError

    def guided(self, scene: Scene, denoise: Denoise) -> Denoise:
        """The denoiser with this guide, made of the one without it."""
        del scene
        return denoise


GUIDANCES: Registry[type[Guide]] = Registry("guide")
"""name -> the settings of a guide."""

G = TypeVar("G", bound=type[Guide])


def guide(name: str, role: Role) -> Callable[[G], G]:
    """Registers a guide; its fields are its settings, its docstring's first line its help."""

    def register(kind: G) -> G:
        kind.name, kind.role = name, role
        GUIDANCES[name] = kind
        return kind

    return register


def read_guide(given: object) -> Guide:
    """A guide from words, plain values or itself. Raises UndustError for what is none."""
    if isinstance(given, Guide):
        return given
    if isinstance(given, str):
        name, _, rest = given.replace("\ufeff", "").partition(":")  # no byte order marks
        # A comma that no key follows is part of the value before it: prompts have commas.
        pairs = [pair.partition("=") for pair in re.split(r",(?=\s*\w+=)", rest)] if rest else []
        fields: dict[str, Any] = {key.strip(): value for key, _, value in pairs}
    elif isinstance(given, Mapping):
        fields = dict(cast("Mapping[str, Any]", given))
        name = str(fields.pop("name", ""))
    else:
        raise UndustError(f"guides: {quoted(given)} is none; NAME or NAME:key=value,… is one")
    kind = GUIDANCES[name.strip()]
    for key in fields.keys() - kind.model_fields.keys():
        raise unknown(f"setting of guide {kind.name}", str(key), kind.model_fields)
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise UndustError(f"guide {kind.name}: {reason(error)}") from None


def checked(guides: Sequence[Guide], sampler: str) -> None:
    """Raises UndustError for guides that get into each other's way, or the sampler's."""
    for role in ("scale", "mix"):
        names = [each.name for each in guides if each.role == role]
        if len(names) > 1:
            raise UndustError(f"guides: {' and '.join(names)} exclude one another; one of them")
    for each in guides:
        each.check(sampler)
