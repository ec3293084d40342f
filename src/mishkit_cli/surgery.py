"""`mishkit audit`, `mishkit lean` and `mishkit swap`: whole models."""

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
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead, sizes in bytes.")]


@app.command(epilog="For example: mishkit audit timm:resnet18 -i 2,3,224,224")
def audit(
    model: Model,
    input_: Shapes = None,
    option: Options = None,
    autocast: Autocast = None,
    evaluation: Evaluation = False,
    csv: Annotated[Path | None, typer.Option(help="Write the sites to this file.")] = None,
    top: Annotated[
        int | None,
        typer.Option(min=0, help="Show only this many rows, those that save most first."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show every activation of a model and the memory that training keeps because of it.

    The largest savings come first, and repeated blocks share a row. Says for each activation
    whether it saves memory to keep the output and one bit per element instead of the input. Then
    prints what the whole model keeps now, what it would keep, and what it keeps with
    torch.utils.checkpoint.
    """
    from mishkit.lab import surgery as lab
    from mishkit.lab.common.files import check_writable

    check_writable(csv)
    shapes, options = tuple(input_ or ()), tuple(option or ())
    report = lab.audit(lab.Settings(model, shapes, options, autocast, evaluation))
    if as_json:
        typer.echo(report.to_json(top=top))
    else:
        lab.show(report, top)
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
    top: Annotated[
        int,
        typer.Option(
            min=0, help="Also show this many operators, those that can be recomputed first."
        ),
    ] = 0,
    as_json: AsJson = False,
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
    keywords = {"recompute": recompute and not inplace, "inplace": inplace, "budget": budget}
    effect = lab.effect(settings, keywords, keepers=top > 0)
    if as_json:
        typer.echo(lab.effect_as_json(effect, top))
    else:
        lab.show_effects([effect], top)


@app.command(epilog="For example: mishkit swap yolo.onnx mish=mish --form fast -o fast.onnx")
def swap(
    model: Annotated[
        str,
        typer.Argument(
            help="An ONNX file; or a model as audit takes it, which is exported to ONNX: "
            "timm:NAME, hf:NAME, path/to/file.py:FUNCTION, package.module:FUNCTION."
        ),
    ],
    rules: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="OLD=NEW",
            help="silu=mish, gelu=hard_mish:k=3, 'blocks.*=relu': a function or a pattern of "
            "names, and what takes its place.",
            show_default="with --form, every function as itself",
        ),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", "-r", help="A rule, OLD=NEW; repeat the option for more."),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            help="How to write the functions: standard; fast, for ONNX Runtime; fast:openvino and "
            "so on; opset:17, in operators that this opset has too.",
            show_default="standard",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The ONNX file to write.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Write nothing: list what would be done or, without rules, the sites."
        ),
    ] = False,
    input_: Shapes = None,
    option: Options = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Replace activations in an ONNX file, or write the same ones in a faster form.

    Prints a table of what was replaced, and what was nearly a site with the reason why not. Only
    the sites are rewritten; the rest of the file stays as it is. Exits with status 1, and writes
    nothing, if no rule matches.
    """
    from mishkit.lab import LabError
    from mishkit.lab import swap as lab

    if dry_run == (output is not None):
        raise LabError("where does the result go? -o FILE.onnx, or --dry-run to write nothing")
    every = (*(rules or ()), *(rule or ()))
    shapes, options = tuple(input_ or ()), tuple(option or ())
    settings = lab.Settings(model, every, form, output, shapes, options)
    raise typer.Exit(lab.main(settings, as_json=as_json))
