"""`mishkit compare`: train networks with several activations.

An option has the name and the default of the field of `mishkit.lab.study.settings.Settings` that
it sets.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from .app import app

Activations = Annotated[
    list[str] | None,
    typer.Option(
        "--activation",
        "-a",
        help="An activation to compare; repeat the option for more. A name, or anything importable "
        "(torch.nn.GELU, package.module:function). An unknown name lists the names.",
        show_default="ReLU in place, Mish by hand, torch's Mish, and mishkit's Mish, Mish in place "
        "and HMish",
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        help="A data set; repeat the option for more. Images: mnist, digits, fashion-mnist, "
        "folder:PATH (one subfolder for each class), torchvision:CLASS. Tables: sklearn:NAME, "
        "mlbench:NAME. Sentences: vader:NAME.",
        show_default="mnist",
    ),
]
Model = Annotated[
    str,
    typer.Option(
        help="The network: auto (seven convolutions for images, an MLP for tables, a transformer "
        "for sentences), timm:NAME, path/to/file.py:FUNCTION or package.module:FUNCTION."
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        help="KEY=VALUE, an argument of the function that builds the model; repeat the option for "
        "more.",
    ),
]
DataRoot = Annotated[
    Path, typer.Option(help="The folder with the data of torchvision, mlbench and vader.")
]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision download its data.")]
ImageSize = Annotated[
    int | None, typer.Option(help="Resize images to squares of this many pixels.", min=4)
]
TrainSamples = Annotated[
    int | None, typer.Option(help="Train with this many samples.", min=2, show_default="all")
]
TestSamples = Annotated[
    int | None, typer.Option(help="Test with this many samples.", min=1, show_default="all")
]
Channels = Annotated[
    int,
    typer.Option(
        help="Channels of each layer of the built-in networks; an eighth of the MLP's units, a "
        "quarter of the transformer's width.",
        min=1,
    ),
]
Epochs = Annotated[int, typer.Option(help="Passes over the training data.", min=1)]
Seeds = Annotated[
    int,
    typer.Option(
        help="How often each activation is trained in the end, with one seed each.", min=1
    ),
]
FirstSeed = Annotated[
    int,
    typer.Option(
        "--seed",
        help="The first seed. It also decides which samples are for training and which for "
        "testing.",
        min=0,
    ),
]
BatchSize = Annotated[int, typer.Option(help="Samples in each step, over all devices.", min=1)]
LearningRates = Annotated[
    str,
    typer.Option(
        help="Learning rates, separated by commas: the highest of AdamW's schedule. If there are "
        "several, each activation gets the rate that is best for it on part of the training data."
    ),
]
TuningSeeds = Annotated[
    int,
    typer.Option(
        help="How often each activation is trained with each learning rate, to find the best rate.",
        min=1,
    ),
]
Target = Annotated[
    list[float] | None,
    typer.Option(
        help="The test accuracy to reach, 0 to 1; once for all, or once for each --data.",
        min=0,
        max=1,
        show_default="a point below the baseline",
    ),
]
Baseline = Annotated[
    str | None,
    typer.Option(
        help="The activation that the others are compared with.",
        show_default="the first ReLU, or the first",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(help="Threads of PyTorch in each trial.", min=1, show_default="PyTorch's choice"),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="How many trials run at the same time, each in its own process. Times get longer.",
        min=1,
        show_default="1",
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(help="Run the trials on the Ray cluster at this address; local starts one here."),
]
Precision = Annotated[
    str, typer.Option(help="Lightning Fabric's precision, for instance bf16-mixed.")
]
Accelerator = Annotated[
    str, typer.Option(help="Lightning Fabric's accelerator: cpu, cuda, mps, auto.")
]
Devices = Annotated[str, typer.Option(help="Lightning Fabric's devices: how many, or which.")]
Strategy = Annotated[str, typer.Option(help="Lightning Fabric's strategy: ddp, fsdp, auto.")]
Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", help="The folder that the report and its tables are written to."
    ),
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Start again, and forget the trials in the folder.")
]


@app.command(epilog="For example: mishkit compare -a torch_relu -a mish --data digits --seeds 3")
def compare(
    activations: Activations = None,
    data: Data = None,
    model: Model = "auto",
    options: Options = None,
    data_root: DataRoot = Path("data"),
    download: Download = False,
    image_size: ImageSize = None,
    train_samples: TrainSamples = None,
    test_samples: TestSamples = None,
    channels: Channels = 16,
    epochs: Epochs = 5,
    seeds: Seeds = 5,
    first_seed: FirstSeed = 0,
    batch_size: BatchSize = 64,
    lr: LearningRates = "5e-3,1e-2,2e-2,4e-2",
    tuning_seeds: TuningSeeds = 2,
    target: Target = None,
    baseline: Baseline = None,
    threads: Threads = None,
    workers: Workers = None,
    ray: RayAddress = None,
    precision: Precision = "32-true",
    accelerator: Accelerator = "auto",
    devices: Devices = "1",
    strategy: Strategy = "auto",
    output: Output = Path("mishkit-compare"),
    fresh: Fresh = False,
) -> None:
    """Train a network on real data with each activation, and report costs and results.

    Searches for the best learning rate of each activation, then trains with several seeds. Prints
    the time per step, the bytes kept for the backward pass, the epochs and seconds to a target
    accuracy, and the final accuracy with its difference to the baseline, all with 95 % intervals.
    Writes report.html, trials.csv, epochs.csv and summary.csv. After Ctrl-C the finished trials are
    kept, and the same command continues from there.
    """
    fields = dict(locals())
    from mishkit.lab.study import compare as lab
    from mishkit.lab.study.settings import Settings, parse_rates

    fields["lr"] = parse_rates(lr)
    for name in ("activations", "data", "options", "target"):
        fields[name] = tuple(fields[name] or getattr(Settings, name))
    command = shlex.join(["mishkit", *sys.argv[1:]])
    raise typer.Exit(lab.main(Settings(**fields), command=command))
