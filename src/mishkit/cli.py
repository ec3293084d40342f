"""The command line: thin commands, each of which calls its part of the laboratory."""

from __future__ import annotations

import io
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import get_terminal_size
from typing import Annotated, Any

from mishkit._missing import install

TRACEBACK = "--traceback"
ROOM_FOR_BOXES = 80
LAB_PACKAGES = frozenset(
    (
        "jinja2",
        "lightning_fabric",
        "matplotlib",
        "mlxtend",
        "mpmath",
        "numpy",
        "pandas",
        "PIL",
        "rich",
        "scipy",
        "sklearn",
        "sympy",
    )
)

try:
    import typer
    from typer.core import TyperGroup
except ModuleNotFoundError:
    # The command is installed with the library, its dependencies with an extra.
    def main() -> None:
        """Says what is missing."""
        sys.exit(f"mishkit: the command line needs more packages: {install('typer', 'lab')}")

else:

    class _Commands(TyperGroup):
        """The commands, whose errors are lines and whose output no terminal refuses."""

        def main(self, *args: Any, **keywords: Any) -> Any:
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, io.TextIOWrapper):  # whatever it can't encode is a ?
                    stream.reconfigure(errors="replace")
            return super().main(*args, **keywords)

        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if TRACEBACK in args:  # it may stand behind the command as well
                args = [TRACEBACK, *(argument for argument in args if argument != TRACEBACK)]
            return super().parse_args(ctx, args)

        def invoke(self, ctx: Any) -> Any:
            with one_line_errors(whole=ctx.params["traceback"]):
                return super().invoke(ctx)

    @contextmanager
    def one_line_errors(*, whole: bool = False) -> Iterator[None]:
        """Turns every error into one line on stderr and an exit status: 130 for Ctrl-C, else 1.

        With `whole`, the traceback stands before it.
        """
        from mishkit.lab import INTERRUPTED, LabError

        try:
            yield
        except KeyboardInterrupt as error:
            caught: BaseException = error
            message, status, for_all = "interrupted", INTERRUPTED, True
        except LabError as error:
            caught = error
            message, status, for_all = str(error), error.status, False
        except BrokenPipeError:  # whoever read the output has seen enough
            raise
        except Exception as error:
            if hasattr(error, "exit_code"):  # Typer's own: an exit, or its words on the usage
                raise
            caught = error
            message, status, for_all = _described(error), 1, True
        else:
            return
        # Of several processes that meet the same mistake one speaks.
        if whole or for_all or os.environ.get("LOCAL_RANK", "0") == "0":
            if whole:
                _show_everything(caught)
            typer.echo(f"mishkit: {' '.join(message.split())}", err=True)
        raise typer.Exit(status)

    def _described(error: Exception) -> str:
        if isinstance(error, ModuleNotFoundError):
            missing = error.name or ""
            if missing.partition(".")[0] in LAB_PACKAGES:
                return f"{missing} is not installed: {install(missing, 'lab')}"
        from mishkit.lab.common.errors import told

        return told(error)

    def _show_everything(error: BaseException) -> None:
        """The traceback, with the causes that a LabError hides."""
        link: BaseException | None = error
        while link is not None:
            link.__suppress_context__ = link.__cause__ is not None
            link = link.__cause__ or link.__context__
        traceback.print_exception(error)

    app = typer.Typer(
        name="mishkit",
        cls=_Commands,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        # Typer's boxes break and cut words where there is no room for them.
        rich_markup_mode="rich" if get_terminal_size().columns >= ROOM_FOR_BOXES else None,
        help="Smooth activation functions at ReLU's price, and the means to measure it.",
    )

    def _print_version(wanted: bool) -> None:
        if wanted:
            from mishkit import __version__

            typer.echo(f"mishkit {__version__}")
            raise typer.Exit

    @app.callback()
    def _options(
        version: Annotated[
            bool,
            typer.Option(
                "--version", help="Show the version.", callback=_print_version, is_eager=True
            ),
        ] = False,
        traceback: Annotated[
            bool,
            typer.Option(
                TRACEBACK,
                help="Show where an error comes from, call by call, and not its line alone.",
                envvar="MISHKIT_TRACEBACK",
            ),
        ] = False,
    ) -> None:
        pass

    @app.command()
    def compare(
        activation: Annotated[
            list[str] | None,
            typer.Option(
                "--activation",
                "-a",
                help="What to compare, once for each: a name, or anything importable "
                "(torch.nn.GELU, package.module:function). An unknown name lists the names.",
                show_default="ReLU in place, Mish by hand, torch's Mish, and mishkit's Mish, "
                "Mish in place and HMish",
            ),
        ] = None,
        data: Annotated[
            list[str] | None,
            typer.Option(
                help="Once for each: mnist, digits, fashion-mnist, folder:PATH (a sub-folder a "
                "class), torchvision:CLASS; tables: sklearn:NAME, mlbench:NAME; sentences: "
                "vader:NAME.",
                show_default="mnist",
            ),
        ] = None,
        model: Annotated[
            str,
            typer.Option(
                help="auto (seven convolutions for images, an MLP for tables, a transformer for "
                "sentences), timm:NAME, path/to/file.py:FUNCTION or package.module:FUNCTION."
            ),
        ] = "auto",
        option: Annotated[
            list[str] | None,
            typer.Option("--option", help="KEY=VALUE for what builds the model, once for each."),
        ] = None,
        data_root: Annotated[
            Path, typer.Option(help="Where the data of torchvision, mlbench and vader are.")
        ] = Path("data"),
        download: Annotated[
            bool, typer.Option("--download", help="Let torchvision download the data.")
        ] = False,
        image_size: Annotated[
            int | None, typer.Option(help="Resize images to a square of so many pixels.", min=4)
        ] = None,
        train_samples: Annotated[
            int | None, typer.Option(help="Train with so many samples.", min=2, show_default="all")
        ] = None,
        test_samples: Annotated[
            int | None, typer.Option(help="Test with so many samples.", min=1, show_default="all")
        ] = None,
        channels: Annotated[
            int,
            typer.Option(
                help="Of every layer of our own; an eighth of the MLP's units, a quarter of the "
                "transformer's width.",
                min=1,
            ),
        ] = 16,
        epochs: Annotated[int, typer.Option(min=1)] = 5,
        seeds: Annotated[int, typer.Option(help="Final trainings of each activation.", min=1)] = 5,
        seed: Annotated[
            int, typer.Option(help="The first seed; it also decides the train/test split.", min=0)
        ] = 0,
        batch_size: Annotated[
            int, typer.Option(help="Samples a step, over all devices.", min=1)
        ] = 64,
        lr: Annotated[
            str,
            typer.Option(
                help="Learning rates (AdamW's highest), with commas. Of several, each activation "
                "gets the one that is best for it on a part of the training data."
            ),
        ] = "5e-3,1e-2,2e-2,4e-2",
        tuning_seeds: Annotated[
            int, typer.Option(help="Trainings of each activation with each rate.", min=1)
        ] = 2,
        target: Annotated[
            list[float] | None,
            typer.Option(
                help="The test accuracy to reach, 0 to 1: once, or once for each --data.",
                min=0,
                max=1,
                show_default="a point below the baseline",
            ),
        ] = None,
        baseline: Annotated[
            str | None,
            typer.Option(
                help="The activation that the others are set against.",
                show_default="the first ReLU, or the first",
            ),
        ] = None,
        threads: Annotated[
            int | None,
            typer.Option(
                help="PyTorch's threads, of each trial.", min=1, show_default="PyTorch's choice"
            ),
        ] = None,
        workers: Annotated[
            int | None,
            typer.Option(
                help="Trials at a time, in so many processes; times then suffer.",
                min=1,
                show_default="1",
            ),
        ] = None,
        ray: Annotated[
            str | None,
            typer.Option(help="Run the trials on this Ray cluster, an address; local makes one."),
        ] = None,
        precision: Annotated[
            str, typer.Option(help="Fabric's, for instance bf16-mixed.")
        ] = "32-true",
        accelerator: Annotated[str, typer.Option(help="Fabric's: cpu, cuda, mps, auto.")] = "auto",
        devices: Annotated[str, typer.Option(help="Fabric's: how many, or which.")] = "1",
        strategy: Annotated[str, typer.Option(help="Fabric's: ddp, fsdp, auto.")] = "auto",
        output: Annotated[
            Path, typer.Option("--output", "-o", help="The folder for the report and its tables.")
        ] = Path("mishkit-compare"),
        fresh: Annotated[
            bool, typer.Option("--fresh", help="Forget the trials that are in the folder.")
        ] = False,
    ) -> None:
        """Train a network on real data with each activation, and report what each costs and brings.

        Searches the learning rate of each, then trains several seeds. Prints time per step, bytes
        kept for backward, epochs and seconds to a target accuracy, and final accuracy with its
        difference to the baseline, all with 95 % intervals; writes report.html, trials.csv,
        epochs.csv and summary.csv. Ctrl-C keeps what is done, and the same command goes on.
        """
        from mishkit.lab.study import compare as lab
        from mishkit.lab.study.settings import Settings, parse_rates

        settings = Settings(
            activations=tuple(activation) if activation else Settings.activations,
            data=tuple(data) if data else Settings.data,
            model=model,
            options=tuple(option or ()),
            data_root=data_root,
            download=download,
            image_size=image_size,
            train_samples=train_samples,
            test_samples=test_samples,
            channels=channels,
            epochs=epochs,
            seeds=seeds,
            first_seed=seed,
            batch_size=batch_size,
            lr=parse_rates(lr),
            tuning_seeds=tuning_seeds,
            target=tuple(target or ()),
            baseline=baseline,
            threads=threads,
            workers=workers,
            ray=ray,
            precision=precision,
            accelerator=accelerator,
            devices=devices,
            strategy=strategy,
            output=output,
            fresh=fresh,
        )
        status = lab.main(settings, command=_command())
        raise typer.Exit(status)

    Function = Annotated[
        list[str] | None,
        typer.Option("--function", "-f", help="A function, once for each.", show_default="all"),
    ]

    @app.command()
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

    @app.command()
    def accuracy(
        functions: Annotated[
            list[str] | None, typer.Argument(help="Functions.", show_default="all")
        ] = None,
        function: Function = None,
        dtype: Annotated[
            list[str] | None,
            typer.Option(
                "--dtype",
                help="float32, bfloat16 or float16, once for each.",
                show_default="all three",
            ),
        ] = None,
        stride: Annotated[
            int | None,
            typer.Option(
                help="Take every so many-th float32 by bit pattern; 1 for all.",
                min=1,
                show_default="509; 65521 in Triton's interpreter",
            ),
        ] = None,
        isa: Annotated[
            str | None,
            typer.Option(help="The kernels' instruction set.", show_default="the best there is"),
        ] = None,
        backend: Annotated[
            str | None,
            typer.Option(
                help="cpu (the kernels), torch (the plain formulas), or triton (the GPU's kernels, "
                "in Triton's interpreter where there is no GPU).",
                show_default="cpu",
            ),
        ] = None,
        exhaustive: Annotated[
            bool,
            typer.Option(
                "--exhaustive",
                help="Every float32 through the kernels, in minutes a function, and bit by bit "
                "beside another instruction set. Ctrl-C, and the same command goes on.",
            ),
        ] = False,
        compare_isa: Annotated[
            str | None,
            typer.Option(
                help="With --exhaustive: the other instruction set.",
                show_default="the best of the others",
            ),
        ] = None,
        processes: Annotated[
            int | None, typer.Option(help="With --exhaustive.", min=1, show_default="one a core")
        ] = None,
        resume: Annotated[
            Path | None,
            typer.Option(
                help="With --exhaustive: the file that keeps the progress; a sweep that has begun "
                "in it goes on.",
                show_default="mishkit-exhaustive.json",
            ),
        ] = None,
        markdown: Annotated[
            Path | None, typer.Option(help="With --exhaustive: write the report to this file.")
        ] = None,
    ) -> None:
        """Measure the errors of f and f' over all 16-bit inputs and a stride of float32, or all.

        Prints the largest errors, where they are, and the bars. Exits with 1 where one is missed.
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
            how = "does not go with" if exhaustive else "needs"
            raise LabError(f"{wrong[0]} {how} --exhaustive")
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

    Against = Annotated[
        str | None,
        typer.Option(help="Another function, whose distance is measured: gelu, swish:beta=2."),
    ]

    @app.command(
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        epilog="Parameters are options: mishkit explain hard_mish --k 3",
    )
    def explain(
        context: typer.Context,
        name: Annotated[str, typer.Argument(help="A function: mish, hard_mish, hard_mish:k=3.")],
        against: Against = None,
        cost: Annotated[
            bool, typer.Option(help="Count instructions, and time the kernels on this machine.")
        ] = True,
        as_json: Annotated[
            bool, typer.Option("--json", help="Print JSON, with 30 digits.")
        ] = False,
    ) -> None:
        """Derive from a function's definition what it is, and measure what it costs.

        Prints its derivatives, range, minima, inflections, limits, joints, Lipschitz constants,
        gains, shape, and its distance to another function; vector instructions an element, and
        whether memory or arithmetic bounds it here.
        """
        from mishkit.lab.calculus import explain as lab
        from mishkit.lab.common.named import find, options

        named = find(name, options(context.args))
        other = find(against) if against else None
        lab.main(named, other, cost=cost, as_json=as_json)

    @app.command()
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
            str, typer.Option("--range", help="Of x: --range=-5,4.", metavar="LOW,HIGH")
        ] = "-5,4",
        gallery: Annotated[
            Path | None,
            typer.Option(help="Draw every function, and a page about them, into this folder."),
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
        drawn = [drawing.of_named(find(one)) for one in name]
        other = drawing.of_named(find(against)) if against else None
        if out is None:
            drawing.window(drawn, against=other, low=low, high=high)
        else:
            drawing.save(drawn, out, against=other, low=low, high=high)

    @app.command()
    def fit(
        target: Annotated[str, typer.Argument(help="The function to come close to: mish.")],
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
                help="What is to be small: max or max:LOW,HIGH, the largest error; normal:SIGMA or "
                "uniform:LOW,HIGH, the L2 error under a distribution."
            ),
        ] = "max",
        keep: Annotated[
            list[str] | None,
            typer.Option(
                help="A constraint, once for each: place or depth (the target's minimum), smooth "
                "(f′ is continuous at the last joint)."
            ),
        ] = None,
        fix: Annotated[
            list[str] | None, typer.Option(help="A parameter that stays: --fix alpha=1.")
        ] = None,
        bounds: Annotated[
            list[str] | None,
            typer.Option(help="Where a parameter is sought: --bounds k=1,10."),
        ] = None,
        plot: Annotated[
            Path | None, typer.Option(help="Draw both to this .png, .svg or .pdf file.")
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Find the parameters that bring a cheap family of functions closest to a target.

        Prints them, the error and where it is largest, and how the published choices rank. The same
        question always gets the same answer.
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
    Autocast = Annotated[
        str | None, typer.Option(help="bfloat16 or float16: as in mixed precision.")
    ]
    Evaluation = Annotated[
        bool, typer.Option("--eval", help="Evaluation instead of training mode.")
    ]

    @app.command()
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

    @app.command()
    def lean(
        model: Model,
        input_: Shapes = None,
        option: Options = None,
        autocast: Autocast = None,
        evaluation: Evaluation = False,
        inplace: Annotated[
            bool, typer.Option(help="Write over inputs that nobody can miss.")
        ] = False,
    ) -> None:
        """Follow the audit's advice, and show one training step before and after.

        Bytes kept, as promised and as counted; the loss and the gradient; and by how much a step
        raises the resident memory, each in a process of its own (Linux).
        """
        from mishkit.lab import surgery as lab

        shapes, options = tuple(input_ or ()), tuple(option or ())
        settings = lab.Settings(model, shapes, options, autocast, evaluation)
        lab.show_effects([lab.effect(settings, inplace=inplace)])

    def _command() -> str:
        """The command as it was given."""
        return shlex.join(["mishkit", *sys.argv[1:]])

    def main() -> None:
        """Runs the command line."""
        app(prog_name="mishkit")
