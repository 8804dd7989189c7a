"""`undust orbit`: new views of a scene, as a film."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from undust.cli.animate import (
    Augmentation,
    DecodedFrames,
    FilmModel,
    FilmOut,
    FirstPicture,
    Fps,
    Frames,
    Motion,
    Scales,
    Schedule,
    Seed,
    Size,
    Steps,
    make_film,
)
from undust.cli.options import Device, Engine, LowMemory, Precision
from undust.errors import UndustError


def orbit(
    picture: FirstPicture,
    model: FilmModel,
    depth: Annotated[
        Path | None,
        typer.Option(
            metavar="MAP",
            help="The picture's depth map, of its size: .npy, .pfm or a grey picture.",
        ),
    ] = None,
    last: Annotated[
        Path | None,
        typer.Option(
            metavar="PICTURE",
            help="A second picture of the scene, of the same size: the film's last frame, as the "
            "last camera sees it.",
        ),
    ] = None,
    last_depth: Annotated[
        Path | None,
        typer.Option(metavar="MAP", help="Its depth map, in the unit of the first one."),
    ] = None,
    disparity: Annotated[
        bool, typer.Option("--disparity", help="MAP has disparities, 0 (far) to 255 (near).")
    ] = False,
    views: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="In place of a depth map: a folder of warped frames and masks, view-0000.png and "
            "mask-0000.png on.",
        ),
    ] = None,
    degrees: Annotated[
        float | None,
        typer.Option(metavar="N", help="Of the orbit in all; negative to the left.  [default: 24]"),
    ] = None,
    distance: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Of the point it goes around, in the unit of the depths.  [default: the depth in "
            "the middle, or 70 for disparities]",
        ),
    ] = None,
    form: Annotated[
        Literal["quantile", "blend", "posterior"],
        typer.Option(
            help="How the known views lead: as published, blended in, or by a gradient before each "
            "step, which takes half as long again."
        ),
    ] = "quantile",
    weight_clamp: Annotated[
        float | None,
        typer.Option(metavar="W", help="The least weight of the known views.  [default: 0.2]"),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A λ table, .npy or .csv with a row for each step and a column for each frame, in "
            "place of the one that is searched.",
        ),
    ] = None,
    frames: Frames = None,
    fps: Fps = None,
    motion: Motion = None,
    guidance: Scales = None,
    noise_augmentation: Augmentation = None,
    steps: Steps = None,
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
    """Move the camera around a picture's scene: a film of new views.

    The picture is warped by its depth map; the model of films is led by the warped views, as
    strongly as a λ table says (NVS-Solver, You et al. 2025), and fills what they do not show. With
    a second picture (--last) the film ends there, and each frame is warped from the nearer one.
    """
    if (depth is None) == (views is None):
        raise UndustError("either --depth MAP or --views DIR is needed")
    if views is not None and (disparity or degrees is not None or distance is not None):
        raise UndustError("--disparity, --degrees and --distance are for a depth map (--depth)")
    if views is not None and (last or last_depth):
        raise UndustError("--last and --last-depth are for a depth map (--depth)")
    if (last is None) != (last_depth is None):
        raise UndustError("--last PICTURE and --last-depth MAP are needed together")
    known: dict[str, Any] = {
        "depth": depth and {"path": depth},
        "folder": views and {"path": views},
        "last": last and {"path": last},
        "last_depth": last_depth and {"path": last_depth},
        "numbers": "disparity" if disparity else "depth",
        "degrees": degrees,
        "distance": distance,
        "form": form,
        "weight_clamp": weight_clamp,
        "table": table and {"path": table},
    }
    options = {
        "frames": frames,
        "fps": fps,
        "motion": motion,
        "steps": steps,
        "seed": seed,
        "schedule": schedule,
        "size": size,
        "decoded_frames": decoded_frames,
        "noise_augmentation": noise_augmentation,
        "guidance": guidance,
        "known": {name: value for name, value in known.items() if value is not None},
    }
    loading = {"dtype": dtype, "device": device, "engine": engine, "low_memory": low_memory}
    make_film(picture, model, out, options, loading)
