"""The base class of network configurations and common types of fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from undust.errors import UndustError, demand, limit_entries, printable, quoted

LARGEST = 2**20  # of any size in a configuration, against damaged files
FIRST = 4  # errors of a configuration that are listed
Length = Annotated[int, Field(gt=0, le=LARGEST)]
LengthOr0 = Annotated[int, Field(ge=0, le=LARGEST)]
Token = Annotated[int, Field(ge=-1, le=LARGEST)]
PerLevel = Length | tuple[Length, ...]
PerLevelField = Literal["layers_per_block", "cross_attention_dim", "attention_head_dim"]
Depths = tuple[LengthOr0 | tuple[LengthOr0, ...], ...]


class NetworkConfig(BaseModel):
    """A `config.json`, frozen: unknown fields and unsupported values are errors that name them.

    Options that are not implemented have types that allow only their neutral value, so that a model
    that needs one is refused and not computed wrongly.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)
    housekeeping: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _drop_housekeeping(cls, fields: Any) -> Any:
        """Drops keys such as `_class_name`, which describe the file and not the network."""
        if not isinstance(fields, Mapping):
            return fields
        known = cast("Mapping[str, Any]", fields)
        limit_entries(cls.__name__, known)
        for name, value in known.items():
            if isinstance(value, list):
                limit_entries(f"{cls.__name__}: {printable(name)}", cast("list[Any]", value))
        return {
            key: value
            for key, value in known.items()
            if not key.startswith("_") and key not in cls.housekeeping
        }

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Self:
        """The configuration in a parsed `config.json`; UndustError names each invalid field."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            faults: dict[str, str] = {}
            for details in error.errors():
                # One error a field: a union reports one for each of its members.
                faults.setdefault(str(details["loc"][:1]), _fault(details))
            listed = list(filter(None, faults.values()))
            more = f" and {len(listed) - FIRST} more" if len(listed) > FIRST else ""
            summary = "; ".join(listed[:FIRST]) + more
            raise UndustError(f"unsupported {cls.__name__}: {summary}") from None


class DenoiserConfig(NetworkConfig):
    """The fields of all denoiser networks.

    text_field, label_field: the names of the fields for the width of text tokens and the number of
    classes, "" for a network that does not take them; null_class: whether the network has an
    embedding of no class beyond that number, else it is the last of them; needs_text: whether it
    cannot do without text.
    """

    text_field: ClassVar[str] = ""
    needs_text: ClassVar[bool] = False
    label_field: ClassVar[str] = ""
    null_class: ClassVar[bool] = False

    sample_size: int | tuple[int, int] | None = Field(
        None,
        description="training size of the latents: one number, or height and width",
    )
    in_channels: Length = Field(4, description="input channels: the latent's and extra ones")
    out_channels: Length = Field(4, description="output channels: the latent's")

    @property
    def latent_channels(self) -> int:
        """The channels of the latents that it denoises."""
        return self.out_channels

    @property
    def side_multiple(self) -> int:
        """Of which the sides of latents have to be multiples, to be halved or divided exactly."""
        return 1

    @property
    def text_widths(self) -> frozenset[int]:
        """The widths of text tokens in its layers; empty without text."""
        return frozenset()

    @property
    def takes_pooled_text(self) -> bool:
        """Whether it is conditioned on pooled text and size ids (Podell et al. 2023)."""
        return False

    def num_size_ids(self, pooled_width: int) -> int:  # noqa: ARG002
        """The number of size ids for pooled text of that width."""
        return 0


class PatchConfig(DenoiserConfig):
    """The fields of transformers over patches."""

    patch_size: Length = Field(2, description="side of a patch, latent pixels")

    @model_validator(mode="after")
    def _check_patches(self) -> Self:
        if not isinstance(self.sample_size, int) or self.sample_size % self.patch_size:
            raise ValueError("sample_size has to be one number that patch_size divides")
        return self

    @property
    def side_multiple(self) -> int:
        """The side of a patch."""
        return self.patch_size

    @property
    def patches(self) -> int:
        """Patches along a side in training; at other sizes their places are interpolated."""
        assert isinstance(self.sample_size, int)
        return self.sample_size // self.patch_size


def _fault(details: ErrorDetails) -> str:
    if details["type"] == "default_factory_not_called":
        return ""  # always the consequence of another error
    if details["type"] == "value_error":
        return demand(details)
    field = printable(details["loc"][0]) if details["loc"] else "the name of a field"
    return f"{field} = {quoted(details['input'])}: {demand(details)}"
