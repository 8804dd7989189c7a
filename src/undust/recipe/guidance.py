"""The guidance of a recipe beside its guidance scale: names and settings, as plain data.

As text it is NAME or NAME:key=value,key=value, as in "apg:eta=0,norm=10"; in a recipe's JSON it is
an object with a name. The formulas, and the list of settings of each, are in
`undust.diffusion.guidance`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from inspect import Parameter
from typing import Annotated, Any, ClassVar, Self, cast, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    create_model,
    model_serializer,
    model_validator,
)

from undust.diffusion.guidance import GUIDANCES, GuidanceMethod
from undust.diffusion.guidance.registry import Limits, Mask
from undust.errors import UndustError, quoted, unknown
from undust.recipe.plain import reason


class GuidanceSettings(BaseModel):
    """The settings of one guidance method; each method has a subclass with its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    method: ClassVar[GuidanceMethod]

    @property
    def name(self) -> str:
        """The method's name."""
        return self.method.name

    @property
    def settings(self) -> dict[str, Any]:
        """The settings by name."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    @model_serializer(mode="wrap")
    def _named(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"name": self.method.name, **fields(self)}

    @model_validator(mode="after")
    def _checked(self) -> Self:
        self.method.check(self.settings)
        return self

    @classmethod
    def summary(cls) -> str:
        """The settings with their defaults, as they are written."""
        return ", ".join(
            f"{name}=…"
            if field.is_required() or field.default in (None, "")
            else f"{name}={field.default}"
            for name, field in cls.model_fields.items()
        )


@cache
def settings_of(method: GuidanceMethod) -> type[GuidanceSettings]:
    """The model of a method's settings, derived from the signature of its `build`."""
    fields = {name: _field(parameter) for name, parameter in method.settings.items()}
    model = create_model(f"{method.kind.__name__}Settings", __base__=GuidanceSettings, **fields)
    model.method = method
    return model


def _field(setting: Parameter) -> Any:
    """The pydantic field of a setting."""
    kind: Any = str if setting.annotation == Mask else setting.annotation
    extra: list[object] = []
    if get_origin(kind) is Annotated:
        kind, *extra = get_args(kind)
    if get_origin(kind) is tuple:
        kind = Annotated[kind, BeforeValidator(_split)]
    limits: dict[str, Any] = next((vars(each) for each in extra if isinstance(each, Limits)), {})
    default = ... if setting.default is Parameter.empty else setting.default
    return kind, Field(default, **limits)


def _split(given: object) -> object:
    """A list as people write it, with spaces or commas."""
    return given.replace(",", " ").split() if isinstance(given, str) else given


def read_guidance(given: object) -> GuidanceSettings:
    """The settings in a text, in plain values or as they are; UndustError for others."""
    if isinstance(given, GuidanceSettings):
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
        raise UndustError(
            f"guides: {quoted(given)} is not valid; expected NAME or NAME:key=value,…"
        )
    method = GUIDANCES[name.strip()]
    model = settings_of(method)
    for key in fields.keys() - model.model_fields.keys():
        raise unknown(f"setting of guide {method.name}", str(key), model.model_fields)
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise UndustError(f"guide {method.name}: {reason(error)}") from None


def check_together(guides: Sequence[GuidanceSettings], sampler: str) -> None:
    """Raises UndustError for methods that exclude one another, or the sampler."""
    for role in ("scale", "mix"):
        names = [each.name for each in guides if each.method.role == role]
        if len(names) > 1:
            raise UndustError(f"guides: {' and '.join(names)} exclude one another; one of them")
    for method in (each.method for each in guides):
        if method.samplers and sampler not in method.samplers:
            raise UndustError(
                f"guide {method.name}: it is for the samplers {' and '.join(method.samplers)}, "
                f"not {sampler}"
            )
