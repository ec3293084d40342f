"""`mishkit explain`, `plot` and `fit`: functions as mathematics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import app

Against = Annotated[
    str | None,
    typer.Option(help="Another function, to measure the distance to: gelu, swish:beta=2."),
]


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Parameters are options. For example: mishkit explain hard_mish --k 3",
)
def explain(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A function: mish, hard_mish, hard_mish:k=3.")],
    against: Against = None,
    cost: Annotated[
        bool, typer.Option(help="Count instructions, and time the kernels on this machine.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with 30 digits.")] = False,
) -> None:
    """Derive a function's properties from its definition, and measure what it costs.

    Prints its derivatives, range, minima, inflections, limits, joints, Lipschitz constants, gains,
    shape, and its distance to another function; also the vector instructions per element, and
    whether memory or arithmetic is the limit on this machine.
    """
    from mishkit.lab.calculus import explain as lab
    from mishkit.lab.common.named import find, options

    named = find(name, options(context.args))
    reference = find(against) if against else None
    lab.main(named, reference, cost=cost, as_json=as_json)


@app.command(epilog="For example: mishkit plot mish gelu --against silu -o curves.svg")
def plot(
    name: Annotated[
        list[str] | None,
        typer.Argument(help="Functions: mish gelu hard_mish:k=3.", show_default=False),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Another function; a panel shows the error against it."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A .png, .svg or .pdf file.", show_default="a window"),
    ] = None,
    range_: Annotated[
        str, typer.Option("--range", help="The range of x: --range=-5,4.", metavar="LOW,HIGH")
    ] = "-5,4",
    gallery: Annotated[
        Path | None,
        typer.Option(help="Draw every function into this folder, and write a page about them."),
    ] = None,
) -> None:
    """Draw functions, their first and second derivatives, and errors."""
    from mishkit.lab import LabError
    from mishkit.lab.calculus import drawing
    from mishkit.lab.calculus import gallery as all_of_them
    from mishkit.lab.common.named import find

    if gallery is not None:
        all_of_them.main(gallery)
        raise typer.Exit
    if not name:
        raise LabError("which function? mishkit plot mish gelu, for instance")
    low, high = drawing.parse_range(range_)
    drawn = [drawing.of_named(find(spec)) for spec in name]
    reference = drawing.of_named(find(against)) if against else None
    if out is None:
        drawing.window(drawn, against=reference, low=low, high=high)
    else:
        drawing.save(drawn, out, against=reference, low=low, high=high)


@app.command(epilog="For example: mishkit fit mish --family hard_mish --measure normal:1")
def fit(
    target: Annotated[str, typer.Argument(help="The function to approximate: mish.")],
    family: Annotated[
        str,
        typer.Option(
            help="A function with parameters (hard_mish, swish, aptx), clamp, which is "
            "x·clamp(x + b, 0, k)/k, or an expression: 'x*Min(k, Max(0, x + b))/k'."
        ),
    ] = "clamp",
    measure: Annotated[
        str,
        typer.Option(
            help="What to minimise: max or max:LOW,HIGH, the largest error; normal:SIGMA or "
            "uniform:LOW,HIGH, the L2 error under a distribution."
        ),
    ] = "max",
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="A constraint; repeat the option for more: place or depth (the target's minimum), "
            "smooth (f′ is continuous at the last joint)."
        ),
    ] = None,
    fix: Annotated[
        list[str] | None, typer.Option(help="A parameter to keep at a value: --fix alpha=1.")
    ] = None,
    bounds: Annotated[
        list[str] | None,
        typer.Option(help="The range to search a parameter in: --bounds k=1,10."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw both to this .png, .svg or .pdf file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find the parameters that bring a cheap family of functions closest to a target.

    Prints them, the error and where it is largest, and how the published choices rank. The result
    is deterministic.
    """
    from mishkit.lab.calculus import fit as lab
    from mishkit.lab.common.named import find, pairs

    if plot is not None:
        from mishkit.lab.calculus import drawing

        drawing.format_of(plot)
    lab.main(
        find(target),
        lab.find_family(family, lab.parse_bounds(bounds or (), pairs(fix or ()))),
        lab.parse_measure(measure),
        tuple(keep or ()),
        as_json=as_json,
        plot=plot,
    )
