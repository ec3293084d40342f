"""`mishkit accuracy`: measure the errors of the kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._options import Function
from .app import app

Functions = Annotated[
    list[str] | None, typer.Argument(help="The functions to measure.", show_default="all")
]
Dtypes = Annotated[
    list[str] | None,
    typer.Option(
        "--dtype",
        help="float32, bfloat16 or float16; repeat the option for more.",
        show_default="all three",
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        help="Take one float32 in this many, by bit pattern; 1 takes them all.",
        min=1,
        show_default="509; 65521 in Triton's interpreter",
    ),
]
InstructionSet = Annotated[
    str | None,
    typer.Option(help="The kernels' instruction set.", show_default="the best there is"),
]
Backend = Annotated[
    str | None,
    typer.Option(
        help="cpu (the kernels), torch (the plain formulas), or triton (the GPU's kernels, "
        "in Triton's interpreter where there is no GPU).",
        show_default="cpu",
    ),
]
Exhaustive = Annotated[
    bool,
    typer.Option(
        "--exhaustive",
        help="Run every float32 through the kernels, which takes minutes for each function, and "
        "compare the bits with another instruction set. After Ctrl-C the same command goes on.",
    ),
]
OtherInstructionSet = Annotated[
    str | None,
    typer.Option(
        help="With --exhaustive: the instruction set to compare with.",
        show_default="the best of the others",
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(help="With --exhaustive: how many processes.", min=1, show_default="one a core"),
]
Progress = Annotated[
    Path | None,
    typer.Option(
        help="With --exhaustive: the file that keeps the progress. A sweep that was begun with it "
        "goes on.",
        show_default="mishkit-exhaustive.json",
    ),
]
Markdown = Annotated[
    Path | None, typer.Option(help="With --exhaustive: write the report to this file.")
]


@app.command(epilog="For example: mishkit accuracy mish --dtype float32")
def accuracy(
    functions: Functions = None,
    function: Function = None,
    dtype: Dtypes = None,
    stride: Stride = None,
    isa: InstructionSet = None,
    backend: Backend = None,
    exhaustive: Exhaustive = False,
    compare_isa: OtherInstructionSet = None,
    processes: Processes = None,
    resume: Progress = None,
    markdown: Markdown = None,
) -> None:
    """Measure the errors of functions and derivatives: all 16-bit inputs, and float32 or a part.

    Prints the largest errors, the inputs that have them, and the bars. Exits with status 1 if a
    bar is missed.
    """
    from mishkit.lab import LabError
    from mishkit.lab.accuracy import exhaustive as everything
    from mishkit.lab.accuracy import sampled as lab

    chosen = (*(functions or ()), *(function or ()))
    sampling = {"--dtype": dtype, "--stride": stride, "--backend": backend}
    sweeping = {
        "--compare-isa": compare_isa,
        "--processes": processes,
        "--resume": resume,
        "--markdown": markdown,
    }
    wrong = [o for o, v in (sampling if exhaustive else sweeping).items() if v is not None]
    if wrong:
        verb = "does not go with" if exhaustive else "needs"
        raise LabError(f"{wrong[0]} {verb} --exhaustive")
    if exhaustive:
        status = everything.main(
            everything.Settings(
                functions=chosen or everything.Settings.functions,
                isa=isa,
                versus=compare_isa,
                processes=processes,
                progress=resume or everything.PROGRESS,
                markdown=markdown,
            )
        )
    else:
        settings = lab.Settings(
            functions=chosen or lab.Settings.functions,
            dtypes=tuple(dtype or lab.Settings.dtypes),
            stride=stride or lab.default_stride(backend or lab.Settings.backend),
            isa=isa,
            backend=backend or lab.Settings.backend,
        )
        status = lab.main(settings)
    raise typer.Exit(status)
