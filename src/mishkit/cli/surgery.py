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
        help="The shape of an input, once for each: 2,3,224,224. Random token numbers for a "
        "model that reads text, else N(0, 1).",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        help="key=value for what builds the model, once for each: act_layer=mish.",
    ),
]
Autocast = Annotated[str | None, typer.Option(help="bfloat16 or float16: as in mixed precision.")]
Evaluation = Annotated[bool, typer.Option("--eval", help="Evaluation instead of training mode.")]


@app.command(epilog="For example: mishkit audit timm:resnet18 -i 2,3,224,224")
def audit(
    model: Model,
    input_: Shapes = None,
    option: Options = None,
    autocast: Autocast = None,
    evaluation: Evaluation = False,
    csv: Annotated[Path | None, typer.Option(help="Write the sites to this file.")] = None,
) -> None:
    """Show every activation in a model and the memory that training keeps because of it.

    Says for each whether keeping its output and one bit an element instead of its input pays,
    and what the whole model keeps now, then, and with torch.utils.checkpoint.
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
    inplace: Annotated[bool, typer.Option(help="Write over inputs that nobody can miss.")] = False,
) -> None:
    """Follow the audit's advice, and show one training step before and after.

    Bytes kept, as promised and as counted; the loss and the gradient; and by how much a step
    raises the resident memory, each in a process of its own (Linux).
    """
    from mishkit.lab import surgery as lab

    shapes, options = tuple(input_ or ()), tuple(option or ())
    settings = lab.Settings(model, shapes, options, autocast, evaluation)
    lab.show_effects([lab.effect(settings, inplace=inplace)])
