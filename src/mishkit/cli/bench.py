"""`mishkit bench`: the kernels, timed."""

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
            help="float32, bfloat16, float16 or float64, once for each.",
            show_default="float32, bfloat16; timed on a GPU float16 too",
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(help="Elements.", show_default="64Ki,1Mi,16Mi; on a GPU 1Mi,16Mi,128Mi"),
    ] = None,
    threads: Annotated[str, typer.Option(help="PyTorch's threads.")] = "1,2",
    device: Annotated[
        str, typer.Option(help="cpu; or cuda, the current GPU, NVIDIA's or AMD's.")
    ] = "cpu",
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer samples: a fifth of the time.")
    ] = False,
    csv: Annotated[Path | None, typer.Option(help="Write every timing to this file.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 where a bar is missed.")
    ] = False,
    neuron: Annotated[
        bool,
        typer.Option(
            "--neuron",
            help="The APTx layer instead, and its memory; with --quick, --csv and --check.",
        ),
    ] = False,
    paper: Annotated[
        bool,
        typer.Option(
            "--paper",
            help="With --device cuda: compile the GPU kernels, without a GPU, and set what "
            "they compute against what they read and write; with --csv and --check.",
        ),
    ] = False,
    like: Annotated[
        str | None,
        typer.Option(
            help="A table that others have published, in its layout, instead: mish-cuda, or "
            "hmish (h_mish, or --function); with --dtype, --threads and --quick.",
        ),
    ] = None,
) -> None:
    """Time every function beside torch's ReLU and torch's own, in turns.

    Prints ns per element (minimum/median), the ratios, and the bars that one thread, or a GPU,
    must reach. Timings are noisy: a missed bar is an error with --check alone.
    """
    from mishkit.lab.bench import command
    from mishkit.lab.bench import settings as lab
    from mishkit.lab.common.files import check_writable

    check_writable(csv)
    on_gpu = device == "cuda" and not paper
    dtypes = lab.GPU_DTYPES if on_gpu else lab.Settings.dtypes
    of_device = lab.GPU_SIZES if on_gpu else lab.Settings.sizes
    settings = lab.Settings(
        functions=tuple(function or lab.Settings.functions),
        dtypes=tuple(dtype or dtypes),
        sizes=lab.parse_numbers(sizes) if sizes else of_device,
        threads=lab.parse_numbers(threads),
        device=device,
        quick=quick,
        paper=paper,
    )
    if like is not None:
        if neuron or csv:
            from mishkit.lab import LabError

            raise LabError("--like goes with neither --neuron nor --csv")
        from mishkit.lab.bench import published_cpu as _published_cpu

        status = _published_cpu.main(like, settings, tuple(function or ("h_mish",)))
    elif neuron:
        status = command.main_of_layer(settings, csv)
    else:
        status = command.main(settings, csv)
    raise typer.Exit(status if check else 0)
