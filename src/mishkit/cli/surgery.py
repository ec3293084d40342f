"""`mishkit audit` and `mishkit lean`: whole models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import app

Model = Annotated[
    str,
    typer.Argument(
        help="timm:NAME, hf:NAME (or a folder), path/to/file.py:FUNCTION or "
        "package.module:FUNCTION, which returns a model, or a model and its inputs."
    ),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        help="The shape of an input, 2,3,224,224; repeat the option for more. Inputs are random: "
        "token numbers for a model that reads text, otherwise N(0, 1).",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        help="KEY=VALUE, an argument of the function that builds the model: act_layer=mish. Repeat "
        "the option for more.",
    ),
]
Autocast = Annotated[
    str | None,
    typer.Option(help="Run under autocast, as mixed precision does: bfloat16 or float16."),
]
Evaluation = Annotated[
    bool, typer.Option("--eval", help="Use evaluation mode instead of training mode.")
]


@app.command(epilog="For example: mishkit audit timm:resnet18 -i 2,3,224,224")
def audit(
    model: Model,
    input_: Shapes = None,
    option: Options = None,
    autocast: Autocast = None,
    evaluation: Evaluation = False,
    csv: Annotated[Path | None, typer.Option(help="Write the sites to this file.")] = None,
) -> None:
    """Show every activation of a model and the memory that training keeps because of it.

    Says for each activation whether it saves memory to keep the output and one bit per element
    instead of the input. Then prints what the whole model keeps now, what it would keep, and what
    it keeps with torch.utils.checkpoint.
    """
    from mishkit.lab import surgery as lab
    from mishkit.lab.common.files import check_writable

    check_writable(csv)
    shapes, options = tuple(input_ or ()), tuple(option or ())
    report = lab.audit(lab.Settings(model, shapes, options, autocast, evaluation))
    lab.show(report)
    if csv is not None:
        lab.write_csv(report, csv)


@app.command(epilog="For example: mishkit lean timm:resnet18 -i 2,3,224,224")
def lean(
    model: Model,
    input_: Shapes = None,
    option: Options = None,
    autocast: Autocast = None,
    evaluation: Evaluation = False,
    recompute: Annotated[
        bool,
        typer.Option(
            help="Recompute in the backward pass what can be recomputed cheaply; otherwise let "
            "activations keep their outputs where the audit advises it.",
        ),
    ] = True,
    inplace: Annotated[
        bool,
        typer.Option(help="With --no-recompute: also write over inputs that nothing else needs."),
    ] = False,
    budget: Annotated[
        float | None,
        typer.Option(
            help="Recompute only until the model keeps this share of what it keeps now, from 0 to "
            "1, or this many bytes."
        ),
    ] = None,
) -> None:
    """Make a model keep less for the backward pass, and show a training step before and after.

    Prints the bytes kept for the backward pass, as predicted and as counted, the loss and the
    gradient. On Linux it also prints how much resident memory a step adds, measured in separate
    processes.
    """
    from mishkit.lab import surgery as lab

    shapes, options = tuple(input_ or ()), tuple(option or ())
    settings = lab.Settings(model, shapes, options, autocast, evaluation)
    if budget is not None and budget > 1:
        budget = int(budget)
    how = {"recompute": recompute and not inplace, "inplace": inplace, "budget": budget}
    lab.show_effects([lab.effect(settings, how)])
