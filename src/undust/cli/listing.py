"""`undust models`, `samplers`, `guidances` and `engines`: lists of names."""

from __future__ import annotations

from undust.cli import console


def models() -> None:
    """List the models that come with undust."""
    from undust.cli.inspect import describe
    from undust.formats.locate import BUILT_IN, built_in

    rows: list[list[object]] = []
    for name in built_in():
        facts = describe(BUILT_IN / name)
        rows.append(
            [
                name,
                facts["pixels"],
                console.amount(facts["parameters"]),
                facts["precision"],
                facts["hash"],
            ]
        )
    if not rows:
        console.note("no models come with this copy; --model takes a diffusers folder")
        return
    console.table(["name", "pictures", "parameters>", "precision", "hash"], rows)


def samplers() -> None:
    """List the samplers."""
    from undust.diffusion.samplers import SAMPLERS

    console.table(
        ["name", "order>", "fresh noise", "what it is"],
        [
            [name, sampler.order, "yes" if sampler.stochastic else "no", sampler.summary]
            for name, sampler in sorted(SAMPLERS.items())
        ],
    )


def guidances() -> None:
    """List the guidance methods that `--guide` adds, with their settings."""
    from undust.diffusion.guidance import GUIDANCES
    from undust.recipe.guidance import settings_of

    console.table(
        ["name", "settings", "what it does"],
        [
            [name, settings_of(method).summary(), method.summary]
            for name, method in sorted(GUIDANCES.items())
        ],
    )


def engines() -> None:
    """List the engines, which compute networks."""
    from undust.engines.registry import ENGINES

    console.table(
        ["name", "what it is", "here"],
        [[name, each.summary, each.missing() or "yes"] for name, each in ENGINES.items()],
    )
