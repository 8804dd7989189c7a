"""The request for pictures: every option once, with its type, limits and help text.

The keyword arguments of the library, the options of the command line and the JSON schema all come
from `Request`. Importing this module is light: the command line's help needs it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, TypeVar, get_args, get_type_hints

from undust.errors import UndustError, quoted

if TYPE_CHECKING:
    from PIL.Image import Image

    from undust.recipe.guidance import GuidanceSettings
    from undust.recipe.inputs import Control, Embedding, LoRA, Refiner, SizeConditioning, Upscale
else:  # as JSON and the command line have them
    Image = GuidanceSettings = Control = Embedding = LoRA = Refiner = SizeConditioning = str
    Upscale = str

T = TypeVar("T")
File = str | PathLike[str]
Fields = Mapping[str, Any]
Several = Sequence[T] | T
SEEDS = 2**63
# Groups in the help.
INIT, ADAPTERS = "Image to image", "LoRAs, ControlNets and other models"
APPROXIMATE = "Approximations: faster, another picture"


@dataclass(frozen=True)
class Option:
    """The description of one option.

    metavar: its value on the command line; repeatable: whether it may be given several times; flag:
    its name on the command line, where that is another; group: its place in the help; ge, gt, le,
    lt: limits of a number; max_length: of a text or list.
    """

    help: str
    metavar: str
    repeatable: bool = False
    flag: str = ""
    group: str | None = None
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    max_length: int | None = None

    @property
    def limits(self) -> dict[str, Any]:
        """Those that are set, by the names that pydantic has for them."""
        names = ("ge", "gt", "le", "lt", "max_length")
        given = {name: getattr(self, name) for name in names}
        return {name: limit for name, limit in given.items() if limit is not None}


class Request(TypedDict, total=False):
    """The options of a request beside the prompts. None, or an option left out, is the default.

    Options that are written as text may also be given as a mapping of their fields, and pictures
    as PIL images. An option that is repeatable may be one value or a list.
    """

    negative: Annotated[
        str | None,
        Option("Negative prompt: what the picture should not show.", "TEXT", max_length=10_000),
    ]
    steps: Annotated[
        int | None,
        Option("Number of sampling steps.  [default: 20]", "N", ge=1, le=1000),
    ]
    guidance: Annotated[
        float | None,
        Option(
            "Guidance scale: how closely to follow the prompt.  [default: the model's: 4; 7.5 or "
            "5 for SD, XL]",
            "S",
            ge=0,
            le=1000,
        ),
    ]
    guides: Annotated[
        Several[str | Fields | GuidanceSettings] | None,
        Option(
            "Additional guidance; see `undust guidances`. Repeatable.",
            "NAME[:KEY=VALUE,…]",
            repeatable=True,
            flag="guide",
            max_length=64,
        ),
    ]
    sampler: Annotated[
        str | None, Option("Sampler; see `undust samplers`.  [default: deis]", "NAME")
    ]
    schedule: Annotated[
        str | None,
        Option(
            "Noise schedule, or a list of σ; see `undust schedules`.  [default: karras; trailing "
            "if the model's process ends in pure noise]",
            "NAME|σ,…",
            max_length=20_000,
        ),
    ]
    speed: Annotated[
        str | None,
        Option(
            "Preset of steps and schedule: exact, balanced (half the time) or fast (a quarter).  "
            "[default: exact]",
            "NAME",
        ),
    ]
    deep_cache: Annotated[
        int | None,
        Option(
            "Compute the deep layers of a U-Net at every N-th step only and reuse their features "
            "in between.  [default: 1]",
            "N",
            group=APPROXIMATE,
            ge=1,
            le=1000,
        ),
    ]
    token_merging: Annotated[
        float | None,
        Option(
            "Share of tokens to merge in the self-attention of a U-Net's highest resolution, up to "
            "0.75; for large pictures.  [default: 0]",
            "RATIO",
            group=APPROXIMATE,
            ge=0,
            le=0.75,
        ),
    ]
    seed: Annotated[int | None, Option("Random seed.  [default: random]", "N", ge=0, lt=SEEDS)]
    size: Annotated[
        tuple[int, int] | int | str | None,
        Option(
            "Width and height in pixels, such as 64x64.  [default: the size of --init, else the "
            "model's training size]",
            "WxH",
        ),
    ]
    count: Annotated[
        int | None,
        Option("Pictures per prompt, with consecutive seeds.  [default: 1]", "N", ge=1),
    ]
    init: Annotated[
        Image | File | None,
        Option("Picture to start from.", "PICTURE", group=INIT),
    ]
    strength: Annotated[
        float | None,
        Option(
            "Share of the steps that change --init, above 0 to 1; at 1 nothing of it remains.  "
            "[default: 0.75; 1 with a mask]",
            "F",
            group=INIT,
            gt=0,
            le=1,
        ),
    ]
    mask: Annotated[
        Image | File | None,
        Option(
            "Mask of --init, of the same size: white or transparent parts are repainted, black "
            "parts kept.  [default: the transparent parts of --init]",
            "PICTURE",
            group=INIT,
        ),
    ]
    extend: Annotated[
        Sequence[int] | str | None,
        Option("Pixels to add to --init: left, top, right, bottom.", "L,T,R,B", group=INIT),
    ]
    upscale: Annotated[
        float | str | Fields | Upscale | None,
        Option(
            "Second pass at F times the size.  [default strength: 0.3]",
            "F[@STRENGTH]",
            group=INIT,
        ),
    ]
    label: Annotated[
        str | None,
        Option("Class, by name or number, for a model of classes.", "NAME", max_length=1000),
    ]
    maps: Annotated[
        Several[Image | File] | None,
        Option(
            "Map for a model of maps: segmentation, depth or a picture. Repeatable, in the model's "
            "order.",
            "PICTURE",
            repeatable=True,
            flag="map",
            max_length=16,
        ),
    ]
    noise_level: Annotated[
        int | None,
        Option(
            "Noise on the input of an upscaling model, in time steps.  [default: 20]",
            "N",
            group=INIT,
            ge=0,
            le=999,
        ),
    ]
    loras: Annotated[
        Several[File | Fields | LoRA] | None,
        Option(
            "LoRA and its weight. Repeatable.",
            "FILE[:WEIGHT]",
            repeatable=True,
            flag="lora",
            max_length=64,
            group=ADAPTERS,
        ),
    ]
    controls: Annotated[
        Several[str | Fields | Control] | None,
        Option(
            "ControlNet and its input picture, its weight and the share of the steps; "
            "canny:PICTURE uses the edges of the picture. Repeatable.",
            "PATH=PICTURE[@WEIGHT][:START-END]",
            repeatable=True,
            flag="control",
            max_length=16,
            group=ADAPTERS,
        ),
    ]
    embeddings: Annotated[
        Several[File | Fields | Embedding] | None,
        Option(
            "Textual inversion embedding and its word. Repeatable.",
            "FILE[=WORD]",
            repeatable=True,
            flag="embedding",
            max_length=256,
            group=ADAPTERS,
        ),
    ]
    clip_skip: Annotated[
        int | None,
        Option(
            "Last layers of the text encoder to leave out; AUTOMATIC1111 counts one more.",
            "N",
            group=ADAPTERS,
            ge=1,
            le=64,
        ),
    ]
    refiner: Annotated[
        File | Fields | Refiner | None,
        Option(
            "Refiner model for the steps after that share.  [default share: 0.8]",
            "PATH[@SHARE]",
            group=ADAPTERS,
        ),
    ]
    framing: Annotated[
        str | Fields | SizeConditioning | None,
        Option(
            "Size conditioning of Stable Diffusion XL.  [default: the picture's size]",
            "original=WxH,crop=LxT,target=WxH",
            group=ADAPTERS,
        ),
    ]


_HINTS = get_type_hints(Request, include_extras=True)  # name -> Annotated[type, Option]
OPTIONS: Mapping[str, Option] = {name: get_args(hint)[1] for name, hint in _HINTS.items()}
"""Every option of a request by name."""


def value_type(name: str) -> type:
    """The type of an option's value on the command line: int, float or str."""
    kinds = {*get_args(get_args(_HINTS[name])[0])} - {type(None)}
    return kinds.pop() if kinds in ({int}, {float}) else str


def read_size(given: object) -> tuple[int, int]:
    """Width and height in (width, height), one number, or "64x48"; UndustError for others."""
    match given:
        case int(side):
            return side, side
        case (int(width), int(height)):
            return width, height
        case str(text) if found := re.fullmatch(r"(\d{1,6})[xX×](\d{1,6})", text.strip()):
            return int(found[1]), int(found[2])
        case _:
            raise UndustError(
                f"size: {quoted(given)} is neither (width, height) nor WIDTHxHEIGHT in pixels, "
                "such as 64x64"
            )


def json_schema() -> dict[str, Any]:
    """The JSON schema of a request."""
    from pydantic import Field, create_model

    hints = get_type_hints(Request)
    fields: dict[str, Any] = {
        name: (hints[name], Field(None, description=option.help, **option.limits))
        for name, option in OPTIONS.items()
    }
    return create_model("Request", **fields).model_json_schema()
