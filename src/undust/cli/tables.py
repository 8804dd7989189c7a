"""`undust models`, `samplers` and `guidances`: what there is to choose from."""

from __future__ import annotations

from undust.cli import show


def models() -> None:
    """List the models that come with undust."""
    from undust.cli.inspect import describe
    from undust.formats.named import BUILT_IN, built_in

    rows: list[list[object]] = []
    for name in built_in():
        facts = describe(BUILT_IN / name)
        rows.append(
            [
                name,
                facts["pixels"],
                show.amount(facts["parameters"]),
                facts["precision"],
                facts["hash"],
            ]
        )
    if not rows:
        show.note("no models come with this copy; --model takes a diffusers folder")
        return
    show.table(["name", "pictures", "parameters>", "precision", "hash"], rows)


def samplers() -> None:
    """List the samplers: how to step from dust to picture."""
    from undust.diffusion.samplers import SAMPLERS

    show.table(
        ["name", "order>", "fresh noise", "what it is"],
        [
            [name, sampler.order, "yes" if sampler.stochastic else "no", sampler.summary]
            for name, sampler in sorted(SAMPLERS.items())
        ],
    )


def guidances() -> None:
    """List the guides: what `--guide` can ask for beside the guidance scale."""
    from undust.generation.guides import GUIDANCES

    show.table(
        ["name", "settings", "what it does"],
        [[name, kind.settings(), kind.summary()] for name, kind in sorted(GUIDANCES.items())],
    )
