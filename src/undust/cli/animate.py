"""`undust animate`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undust.cli import console
from undust.cli.first_frame import Prompted, picture_again
from undust.cli.loading import use_free_cores
from undust.cli.options import BUILT_IN, Device, Engine, LowMemory, Precision
from undust.cli.output import (
    FOLDER,
    free_place,
    note_replaced,
    slug,
    try_writing,
    try_writing_file,
)
from undust.errors import UndustError, quoted
from undust.formats.files import check_new_folder, make_folder

if TYPE_CHECKING:
    from undust.recipe.film import FilmRecipe
    from undust.video import VideoDiffusion


FirstPicture = Annotated[Path, typer.Argument(metavar="PICTURE", help="The first frame.")]
FilmModel = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="PATH",
        help="A model of films: a diffusers folder, a single file, or org/name on the hub.",
    ),
]
FilmOut = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH|DIR",
        help="A .mp4, .webp or .gif file, or a folder for frames.  [default: a .webp in "
        "undust-out]",
    ),
]
Frames = Annotated[
    int | None, typer.Option(metavar="N", help="Number of frames.  [default: the model's]")
]
Fps = Annotated[
    int | None,
    typer.Option(metavar="N", help="Frames a second, which the model is told.  [default: 7]"),
]
Motion = Annotated[
    int | None, typer.Option(metavar="N", help="More for more motion, 0–255.  [default: 127]")
]
Scales = Annotated[
    str | None,
    typer.Option(
        metavar="LOW:HIGH", help="Guidance scale of the first and the last frame.  [default: 1:3]"
    ),
]
Augmentation = Annotated[
    float | None,
    typer.Option(
        metavar="X", help="Noise on the first frame; more for more change.  [default: 0.02]"
    ),
]
Steps = Annotated[
    int | None, typer.Option(metavar="N", help="Number of sampling steps.  [default: 25]")
]
Sampler = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Sampler; see `undust samplers`.  [default: euler]"),
]
Schedule = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|σ,…",
        help="Noise schedule, or a list of σ; see `undust schedules`.  [default: karras]",
    ),
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Random seed.  [default: random]")]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="WxH", help="Width and height in pixels, such as 1024x576.  [default: the model's]"
    ),
]
DecodedFrames = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Frames decoded together: more flow better and take more memory.  [default: by size]",
    ),
]


def animate(
    model: FilmModel,
    picture: Annotated[
        Path | None,
        typer.Argument(metavar="PICTURE", help="The first frame; or --prompt.", show_default=False),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="In place of PICTURE: the prompt that the first frame is made from.",
        ),
    ] = None,
    picture_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            help=f"The model of pictures that makes it.  [default: {BUILT_IN}]",
        ),
    ] = None,
    frames: Frames = None,
    fps: Fps = None,
    motion: Motion = None,
    guidance: Scales = None,
    noise_augmentation: Augmentation = None,
    steps: Steps = None,
    sampler: Sampler = None,
    schedule: Schedule = None,
    seed: Seed = None,
    size: Size = None,
    decoded_frames: DecodedFrames = None,
    dtype: Precision = None,
    device: Device = None,
    engine: Engine = "auto",
    low_memory: LowMemory = None,
    out: FilmOut = None,
) -> None:
    """Set a picture in motion, by a model of films.

    The picture is a file, or is made from --prompt, with the film's seed.
    """
    if (picture is None) == (prompt is None):
        raise UndustError("either a PICTURE or --prompt TEXT is needed")
    if picture_model is not None and prompt is None:
        raise UndustError("--picture-model is for a first frame that is made from --prompt")
    options = {
        "frames": frames,
        "fps": fps,
        "motion": motion,
        "steps": steps,
        "sampler": sampler,
        "schedule": schedule,
        "seed": seed,
        "size": size,
        "decoded_frames": decoded_frames,
        "noise_augmentation": noise_augmentation,
        "guidance": guidance,
    }
    loading = {"dtype": dtype, "device": device, "engine": engine, "low_memory": low_memory}
    begun = picture if prompt is None else Prompted(prompt, picture_model or BUILT_IN)
    assert begun is not None
    make_film(begun, model, out, options, loading)


def make_film(
    picture: Path | Prompted,
    model: str,
    out: Path | None,
    options: Mapping[str, Any],
    loading: Mapping[str, Any],
) -> None:
    """Loads a model of films and writes the film of a picture, or of a prompt's picture.

    options: of `VideoDiffusion.recipe` in the command line's form, None where they are not given;
    loading: of `undust.load_video`.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if "guidance" in given:
        given["guidance"] = _scales(given["guidance"])
    _check_output(out, given.get("fps"))
    from undust import video
    from undust.generation.film_options import film_fields

    if isinstance(picture, Path):
        fields = film_fields(picture, given)
        use_free_cores()
        loaded = video.load_video(model, **loading)
        write_animation(loaded, loaded.recipe(fields.pop("picture"), **fields), out)
        return
    fields = film_fields(None, given)
    first = picture.opened(**loading)
    loaded = video.load_video(model, **loading)
    width, height = loaded.size
    size = fields.get("width", width), fields.get("height", height)
    loaded.latent_shape(*size)
    begun = first(fields["seed"], size)
    del first  # its model is not needed any more
    write_animation(loaded, loaded.recipe(begun, **fields), out)


def rerun_film(
    fields: Mapping[str, Any], film: Path, model: str | None, device: str | None, out: Path | None
) -> None:
    """`undust rerun` for a film with the recipe `fields`; model: in place of the recipe's path."""
    from undust.recipe.files import beside
    from undust.recipe.film import FilmRecipe

    try:
        original = FilmRecipe.read(fields)
        recipe = FilmRecipe.read(beside(fields, film.parent))
    except UndustError as error:
        raise UndustError(f"{film}: its recipe: {error}") from error
    _check_output(out, recipe.fps)
    from undust import video
    from undust.generation.film_options import with_first_frame

    if recipe.picture_recipe is not None:
        begun = picture_again(recipe.picture_recipe, film, device)
        recipe = with_first_frame(recipe, begun)
    use_free_cores()
    loaded = video.load_video(
        model or recipe.model_path,
        dtype=recipe.precision,
        device=device,
        engine=recipe.engine,
        low_memory=recipe.low_memory,
    )
    write_animation(loaded, recipe, out, again=original)


def write_animation(
    model: VideoDiffusion, recipe: FilmRecipe, out: Path | None, again: FilmRecipe | None = None
) -> None:
    """Generates the film of a recipe and writes it, with a progress bar.

    again: the recipe to write, where it is another.
    """
    from undust.formats.film import check_rate, write_film
    from undust.generation.animation import decode_film

    place = out or _free_name(recipe)
    check_rate(place, recipe.fps)
    note_replaced(place)
    began, last = time.monotonic(), None
    with console.Progress(recipe.steps, "steps") as progress:
        for last in model.steps(recipe):
            progress.update(last.index + 1, f"{recipe.frames} frames")
    assert last is not None
    film = decode_film(recipe, last)
    make_folder(place.parent)
    write_film(place, film.frames, recipe.fps, (again or recipe).model_dump(mode="json"))
    console.line(str(place))
    console.summary(
        f"seed {recipe.seed}, {console.seconds(time.monotonic() - began)}: {recipe.frames} frames "
        f"of {recipe.width}x{recipe.height}, {recipe.fps} a second, {recipe.steps} steps of "
        f"{recipe.sampler}"
    )


def _check_output(out: Path | None, fps: int | None) -> None:
    """Raises UndustError for an output that cannot be written, before the work is done."""
    from undust.formats.film import check_film_name, check_rate

    if out is None:
        try_writing(FOLDER)
        return
    check_film_name(out)
    if fps is not None:
        check_rate(out, fps)
    if out.suffix and not out.is_dir():
        try_writing_file(out)
    else:
        try_writing(out)
        check_new_folder(out)


def _free_name(recipe: FilmRecipe) -> Path:
    made = recipe.picture_recipe
    name = Path(recipe.picture.path).stem if made is None else made.prompt
    return free_place(FOLDER, f"{slug(name)}-{recipe.seed}", ".webp")


def _scales(text: str) -> tuple[float, float]:
    """The scales of the first and the last frame in "1:3" or "2"."""
    try:
        low, _, high = text.partition(":")
        return float(low), float(high or low)
    except ValueError:
        raise UndustError(
            f"--guidance: {quoted(text)} is not LOW:HIGH, such as 1:3, or one number"
        ) from None
