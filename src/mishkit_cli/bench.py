"""`mishkit bench`: time the kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._options import Function
from .app import app


@app.command(epilog="For example: mishkit bench -f mish --quick")
def bench(
    function: Function = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            "--dtype",
            help="float32, bfloat16, float16 or float64; repeat the option for more.",
            show_default="float32, bfloat16; timed on a GPU float16 too",
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            help="Elements of the tensors.", show_default="64Ki,1Mi,16Mi; on a GPU 1Mi,16Mi,128Mi"
        ),
    ] = None,
    threads: Annotated[
        str,
        typer.Option(
            help="How many threads PyTorch uses: 1, or several numbers separated by commas."
        ),
    ] = "1,2",
    device: Annotated[
        str, typer.Option(help="cpu, or cuda: the current GPU, by NVIDIA or AMD.")
    ] = "cpu",
    quick: Annotated[
        bool, typer.Option("--quick", help="Take fewer samples, in a fifth of the time.")
    ] = False,
    csv: Annotated[Path | None, typer.Option(help="Write every timing to this file.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="Add every timing to this folder's file of this CPU.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with status 1 if a bar is missed.")
    ] = False,
    neuron: Annotated[
        bool, typer.Option("--neuron", help="Time the APTx layer instead, and measure its memory.")
    ] = False,
    gate: Annotated[
        bool, typer.Option("--gate", help="Time gates instead, f(g)·u, of silu or --function.")
    ] = False,
    paper: Annotated[
        bool,
        typer.Option(
            "--paper",
            help="With --device cuda: need no GPU, but compile the GPU kernels and compare their "
            "arithmetic with their memory traffic. Goes with --csv and --check.",
        ),
    ] = False,
    like: Annotated[
        str | None,
        typer.Option(
            help="Print a published table instead, in its own layout: mish-cuda, or hmish (of "
            "h_mish or --function). Goes with --dtype, --threads, --quick.",
        ),
    ] = None,
) -> None:
    """Time every function, alternating with torch's ReLU and torch's own version of the function.

    Prints nanoseconds per element (minimum/median), the ratios, and whether one thread, or a GPU,
    reaches the promised speed. As timings are noisy, a missed bar is an error only with --check.
    """
    from mishkit.lab import LabError
    from mishkit.lab.bench import command
    from mishkit.lab.bench import settings as lab
    from mishkit.lab.common.files import check_writable

    check_writable(csv)
    on_gpu = device == "cuda" and not paper
    dtypes = lab.GPU_DTYPES if on_gpu else lab.Settings.dtypes
    of_device = lab.GPU_SIZES if on_gpu else lab.Settings.sizes
    settings = lab.Settings(
        functions=tuple(function or (("silu",) if gate else lab.Settings.functions)),
        dtypes=tuple(dtype or dtypes),
        sizes=lab.parse_numbers(sizes) if sizes else of_device,
        threads=lab.parse_numbers(threads),
        device=device,
        quick=quick,
        paper=paper,
    )
    if like is not None and (neuron or gate or csv or results):
        raise LabError("--like goes with none of --neuron, --gate, --csv and --results")
    if (neuron and gate) or (results and (neuron or gate)):
        raise LabError("--neuron, --gate and --results exclude each other")
    if like is not None:
        status = command.main_of_published(like, settings, tuple(function or ("h_mish",)))
    elif neuron or gate:
        status = (command.main_of_layer if neuron else command.main_of_gates)(settings, csv)
    else:
        status = command.main(settings, csv, results)
    raise typer.Exit(status if check else 0)
