"""Every function's forms in every runtime: writes docs/runtimes.md, its CSV, the README's line and
the fastest forms.

    python benchmarks/runtimes.py                       # all, half an hour
    python benchmarks/runtimes.py --only onnxruntime    # one runtime; the other rows stay
    python benchmarks/runtimes.py --page-only           # the page and the table, from the CSV

Single calls are on 64 Ki numbers from N(0, 2), in a model of nothing else; whole networks have
random weights. Every form of a function runs in one process, in turns, on one thread, by the
processor's time, which other work on the machine does not lengthen. A process of its own for each
function and network, as some runtimes end theirs where they lack an operator. What a runtime can't
load, or computes wrongly, is not timed, and the page says so. What is fastest in float32 becomes
`mishkit.functions._fastest.FASTEST`, if it is at least 10 % faster than the standard form by
itself, and not slower in a network.
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

import onnx
import pages
from diffusion_unet import DiffusionUNet
from pages import DOCS, markdown
from runtime_adapters import RUNTIMES, Runtime, result

import mishkit as mk
from mishkit.export import FAST
from mishkit.forms import STANDARD
from mishkit.functions import ACTIVATIONS, _fastest
from mishkit.lab.common.formats import significant
from mishkit.lab.common.models import load
from mishkit.lab.common.timing import PROCESSOR, Call, round_robin

CSV, PAGE, TABLE = DOCS / "runtimes.csv", DOCS / "runtimes.md", Path(_fastest.__file__)
SIZE = 1 << 16
DTYPES = ("float32", "float16")
NETWORKS: dict[str, tuple[str, tuple[int, ...]]] = {
    "cspdarknet53": ("mish", (1, 3, 416, 416)),
    "diffusion U-Net": ("mish", (1, 16, 64)),
    "vit_tiny_patch16_224": ("gelu", (1, 3, 224, 224)),
}
"""The function that each has everywhere, and the shape of its input."""
OPSET, OLDER = 20, "opset:17"
"""The models' opset, and the form in operators that older runtimes have."""
RELU = "relu"
"""What the network takes with ReLU instead: no form can be cheaper."""
SECONDS, NETWORK_SECONDS, PATIENCE = 0.7, 10.0, 400
WRONG = {"float32": 1e-4, "float16": 0.02}
"""Errors from which on a runtime does not compute the function, next to max(1, |f|)."""
FASTER, SLOWER = 1.1, 1.03
"""How much faster than the standard form another must be by itself to be chosen, and how much
slower it may be in a network, where timing is no better.
"""


@dataclass(frozen=True)
class Row:
    """One form of a function, by itself or in a network, in one runtime."""

    runtime: str
    version: str
    subject: str
    """A function or a network."""
    dtype: str
    form: str
    minimum: float | None = None
    """Nanoseconds an element, or milliseconds a pass through a network."""
    median: float | None = None
    samples: int = 0
    error: float | None = None
    """The largest; of a function only."""
    note: str = ""
    """Why there are no times."""


# ---- models ----


@contextmanager
def taking(function: str, form: str) -> Iterator[str]:
    """What `mk.swap` takes for this form of a function."""
    names = [known.name for known in ACTIVATIONS[function].forms]
    if form not in names or form == STANDARD:
        yield form
        return
    table = next(iter(_fastest.FASTEST.values()))
    before = dict(table)
    table[function] = form
    try:
        yield FAST
    finally:
        table.clear()
        table.update(before)


def forms(function: str, *, network: bool) -> list[str]:
    """The forms to be timed."""
    names = [known.name for known in ACTIVATIONS[function].forms]
    if function in ("mish", "gelu", "gelu_tanh", "hardswish"):
        names.insert(1, OLDER if function != "hardswish" else "opset:13")
    return [*names, RELU] if network else names


def single(function: str, form: str, dtype: str, path: Path) -> None:
    """A model of one function."""
    kind = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16}[dtype]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Tanh", ["x"], ["y"])],
        "single",
        [value("x", kind, (1, SIZE))],
        [value("y", kind, (1, SIZE))],
    )
    imports = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=9)
    with taking(function, form) as wanted:
        mk.swap(model, {"tanh": function}, form=wanted, output=path)


def network(name: str, folder: Path) -> Path:
    """The network as a file, in the standard form."""
    path = folder / f"{name.replace(' ', '_')}.onnx"
    if path.exists():
        return path
    function, shape = NETWORKS[name]
    torch.manual_seed(0)
    if name == "diffusion U-Net":
        model: nn.Module = DiffusionUNet()
    else:
        model = load(f"timm:{name}", (",".join(map(str, shape)),)).model
        mk.swap(model, {"leaky_relu": function, "relu": function, "gelu": function})
    program = torch.onnx.export(
        model.eval(), (torch.randn(shape),), dynamo=True, verbose=False, opset_version=OPSET,
        input_names=["x"], output_names=["y"],
    )  # fmt: skip
    assert program is not None
    program.save(path)
    return path


# ---- timing, in a process of its own ----


def time_function(runtime: Runtime, function: str, dtype: str, folder: Path) -> list[Row]:
    """All forms of a function in turns."""
    a = ACTIVATIONS[function]
    x = np.random.default_rng(0).normal(0, 2, (1, SIZE)).astype(dtype)
    want = a.f(torch.from_numpy(x).double(), *a.defaults).numpy()
    calls, rows, errors = {}, [], {}
    for form in forms(function, network=False):
        try:
            if hasattr(runtime, "load_form"):
                if form not in [known.name for known in a.forms]:
                    continue
                run = runtime.load_form(a.form(form).write, a.defaults, x)
            else:
                path = folder / f"{function}_{form.replace(':', '')}_{dtype}.onnx"
                single(function, form, dtype, path)
                run = runtime.load(path, x)
            y = result(run).reshape(x.shape).astype(np.float64)
            errors[form] = float((np.abs(y - want) / np.maximum(1, np.abs(want))).max())
            if not errors[form] <= WRONG[dtype]:
                raise ValueError(f"is off by {errors[form]:.1g}")
            calls[form] = Call(run)
        except Exception as error:
            rows.append(_failed(runtime, function, dtype, form, error))
    for form, timing in (
        round_robin(calls, seconds=SECONDS, clock=PROCESSOR).items() if calls else ()
    ):
        times = timing.min / SIZE, timing.median / SIZE
        rows.append(Row(runtime.key, runtime.version, function, dtype, form, *times,
                        len(timing.samples), errors[form]))  # fmt: skip
    return rows


def time_network(runtime: Runtime, name: str, folder: Path) -> list[Row]:
    """A network with each form of its function, in turns."""
    function, shape = NETWORKS[name]
    x = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    calls, rows, outputs = {}, [], {}
    for form in forms(function, network=True):
        try:
            path = folder / f"{name.replace(' ', '_')}_{form.replace(':', '')}.onnx"
            with taking(function, form if form != RELU else STANDARD) as wanted:
                rules = {function: RELU if form == RELU else function}
                mk.swap(network(name, folder), rules, form=wanted, output=path)
            run = runtime.load(path, x)
            outputs[form] = result(run).reshape(-1).astype(np.float64)
            # With ReLU it is another network; the forms of one function agree.
            first = next(iter(outputs.values()))
            off = float(np.abs(outputs[form] - first).max() / np.abs(first).max())
            if form != RELU and not off <= 1e-3:
                raise ValueError(f"is off by {off:.1g} of the output's size")
            calls[form] = Call(run)
        except Exception as error:
            rows.append(_failed(runtime, name, "float32", form, error))
    timings = round_robin(calls, seconds=NETWORK_SECONDS, least=7, clock=PROCESSOR) if calls else {}
    for form, timing in timings.items():
        times = timing.min / 1e6, timing.median / 1e6
        rows.append(Row(runtime.key, runtime.version, name, "float32", form, *times,
                        len(timing.samples)))  # fmt: skip
    return rows


def _failed(runtime: Runtime, subject: str, dtype: str, form: str, error: Exception) -> Row:
    note = _tidy(str(error)) or type(error).__name__
    return Row(runtime.key, runtime.version, subject, dtype, form, note=note)


def _tidy(text: str) -> str:
    """An error in a line, without the paths of this machine."""
    return re.sub(r"/\S+", "…", " ".join(text.split()))[:90]


def in_process(runtime: Runtime, subject: str, dtype: str, folder: Path) -> list[Row]:
    """The rows of one subject, from a process that may end as it likes."""
    out = folder / "rows.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--one", runtime.key, subject, dtype, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE, env=environment)
        why = f"the process ended with status {done.returncode}"
    except subprocess.TimeoutExpired:
        why = "took too long"
    if out.exists():
        return [Row(**row) for row in json.loads(out.read_text())]
    names = forms(subject, network=False) if subject in ACTIVATIONS else [STANDARD]
    return [_failed(runtime, subject, dtype, form, RuntimeError(why)) for form in names]


def one(key: str, subject: str, dtype: str, folder: str) -> None:
    """What `in_process` runs."""
    (runtime,) = (runtime for runtime in RUNTIMES if runtime.key == key)
    if subject in ACTIVATIONS:
        rows = time_function(runtime, subject, dtype, Path(folder))
    else:
        rows = time_network(runtime, subject, Path(folder))
    Path(folder, "rows.json").write_text(json.dumps([asdict(row) for row in rows]))


# ---- what comes of it ----


def fastest(rows: Sequence[Row]) -> dict[str, dict[str, str]]:
    """The fastest form of every function in every runtime."""
    minima = {(r.runtime, r.subject, r.dtype, r.form): r.minimum for r in rows}
    return {
        key: {function: _fastest_form(minima, key, function) for function in ACTIVATIONS}
        for key in dict.fromkeys(row.runtime for row in rows)
    }


def _fastest_form(
    minima: Mapping[tuple[str, ...], float | None], runtime: str, function: str
) -> str:
    def timed(subject: str, form: str) -> float | None:
        return minima.get((runtime, subject, DTYPES[0], form))

    times = {form.name: time for form in ACTIVATIONS[function].forms
             if (time := timed(function, form.name)) is not None}  # fmt: skip
    for name, (other, _) in NETWORKS.items():
        standard = timed(name, STANDARD)
        if other != function or standard is None or STANDARD not in times:
            continue
        for form in [*times]:
            # A runtime may fuse the standard form with what is before it.
            if (timed(name, form) or math.inf) > SLOWER * standard:
                del times[form]
    best = min(times, key=times.__getitem__, default=STANDARD)
    is_near = STANDARD in times and times[STANDARD] < FASTER * times[best]
    return STANDARD if is_near else best


def write_table(rows: Sequence[Row]) -> None:
    """The table that `mk.swap` and `mk.export_form` read."""
    lines = [
        '"""Where a form other than the standard one is fastest, by benchmarks/runtimes.py."""',
        "",
        "from __future__ import annotations",
        "",
        "FASTEST: dict[str, dict[str, str]] = {",
    ]
    for key, chosen in fastest(rows).items():
        lines.append(f'    "{key}": {{')
        lines += [f'        "{f}": "{form}",' for f, form in chosen.items() if form != STANDARD]
        lines.append("    },")
    TABLE.write_text("\n".join([*lines, "}"]) + "\n", encoding="utf-8")


TEXT = """# Forms for runtimes

Made by `python benchmarks/runtimes.py`; all rows are in [runtimes.csv](runtimes.csv). One thread of
{cpu} ({date}, load {load}).
{versions}.

A form is a way to write a function in standard ONNX operators. The standard form is the function's
own operator, where the opset has one; [swap](swap.md#forms) says how to choose. In bold: what
`form="fast:RUNTIME"` takes, which for ONNX Runtime is `form="fast"`. A dash: the runtime can't do
it (the reasons are below). A form other than the standard one is taken if it is 10 % faster by
itself and not slower in a network. Times are processor time, the minimum over repeats that
alternate between the forms. Trust ratios between forms, not times, and those of networks only
roughly: where a runtime joins the nodes of `opset:17` to the standard operator, the two should take
the same time.

## Mish

A call on {size:,} float32 numbers in nanoseconds an element, and CSPDarknet53 with Mish at 416×416,
as in YOLOv4, in milliseconds.

{mish}

## One call, float32

Nanoseconds an element, {size:,} of them.

{float32}

## One call, float16

{float16}

## Whole networks

Milliseconds a pass, float32; in brackets the speed over the standard form or, where the runtime
lacks that, over the older form. ReLU: the same network with ReLU, for scale.

{networks}

## Errors

The largest error |y − f(x)| / max(1, |f(x)|) where every operator rounds its result, over a dense
sample of float32, over every float16, and over all opsets. A test measures them.

{errors}

## What runtimes can't do

{lacks}
"""


def page(rows: Sequence[Row], facts: dict[str, str]) -> str:
    """docs/runtimes.md"""
    runtimes = [runtime for runtime in RUNTIMES if any(row.runtime == runtime.key for row in rows)]
    versions = {row.runtime: row.version for row in rows}
    return TEXT.format(
        **facts,
        versions=", ".join(f"{r.title} {versions[r.key]}" for r in runtimes),
        size=SIZE,
        mish=_mish(rows),
        **{dtype: _functions(rows, runtimes, dtype) for dtype in DTYPES},
        networks=_networks(rows, runtimes),
        errors=_errors(),
        lacks=_lacks(rows, runtimes),
    )


def _mish(rows: Sequence[Row]) -> str:
    """Mish in every runtime."""
    body = []
    for runtime in RUNTIMES:
        form = fastest(rows).get(runtime.key, {}).get("mish")
        if form is None:
            continue
        cells = [f"{runtime.title} {next(r.version for r in rows if r.runtime == runtime.key)}"]
        for subject in ("mish", "cspdarknet53"):
            times = _float32(rows, runtime.key, subject)
            cells += [_cell(times.get(name)) for name in (STANDARD, form)]
        body.append([*cells, form])
    head = ["", "call, standard", "call, fast", "network, standard", "network, fast", "fast form"]
    return markdown(head, body)


def summary(rows: Sequence[Row], facts: dict[str, str]) -> str:
    """The README's line: a network with Mish in ONNX Runtime."""
    times = _float32(rows, "onnxruntime", "cspdarknet53")
    form = fastest(rows)["onnxruntime"]["mish"]
    version = next(row.version for row in rows if row.runtime == "onnxruntime")
    return (
        f"CSPDarknet53 with Mish takes {_cell(times[form])} ms in ONNX Runtime {version} instead\n"
        f"of {_cell(times[STANDARD])} (416×416, one thread of an {facts['cpu']}).\n"
    )


def _float32(rows: Sequence[Row], runtime: str, subject: str) -> dict[str, float | None]:
    """The times of the forms of one subject in one runtime."""
    key = (runtime, subject, DTYPES[0])
    return {r.form: r.minimum for r in rows if (r.runtime, r.subject, r.dtype) == key}


def _cell(time: float | None) -> str:
    return "–" if time is None else significant(time)


def _functions(rows: Sequence[Row], runtimes: Sequence[Runtime], dtype: str) -> str:
    times = {(r.subject, r.form, r.runtime): r.minimum for r in rows if r.dtype == dtype}
    chosen = fastest(rows)
    body = []
    for function in ACTIVATIONS:
        for form in forms(function, network=False):
            cells = []
            for runtime in runtimes:
                time = times.get((function, form, runtime.key))
                text = _cell(time)
                is_best = time is not None and chosen[runtime.key][function] == form
                cells.append(f"**{text}**" if is_best and dtype == DTYPES[0] else text)
            if any(cell != "–" for cell in cells):
                body.append([function, form, *cells])
    return markdown(["function", "form", *(runtime.title for runtime in runtimes)], body, words=2)


def _networks(rows: Sequence[Row], runtimes: Sequence[Runtime]) -> str:
    times = {(r.subject, r.form, r.runtime): r.minimum for r in rows if r.subject in NETWORKS}
    shown = [runtime for runtime in runtimes if runtime.takes_networks]
    body = []
    for name, (function, _) in NETWORKS.items():
        for form in forms(function, network=True):
            cells = []
            for runtime in shown:
                time = times.get((name, form, runtime.key))
                base = times.get((name, STANDARD, runtime.key)) or times.get(
                    (name, OLDER, runtime.key)
                )
                if time is None or base is None:
                    cells.append(_cell(time))
                else:
                    cells.append(f"{significant(time)} ({base / time:.2f})")
            body.append([name, function if form != RELU else "", form, *cells])
    return markdown(
        ["network", "function", "form", *(runtime.title for runtime in shown)], body, words=3
    )


def _errors() -> str:
    body = [[a.name, form.name, f"{form.float32:.1e}", f"{form.float16:.1e}"]
            for a in ACTIVATIONS.values() for form in a.forms]  # fmt: skip
    return markdown(["function", "form", "float32", "float16"], body, words=2)


def _lacks(rows: Sequence[Row], runtimes: Sequence[Runtime]) -> str:
    lines = []
    for runtime in runtimes:
        reasons: dict[str, list[str]] = {}
        for row in rows:
            if row.runtime == runtime.key and row.note:
                place = f"{row.subject} {row.form} {row.dtype}"
                reasons.setdefault(row.note.replace("|", "\\|"), []).append(place)
        for reason, which in reasons.items():
            some = ", ".join(which[:4]) + (f" and {len(which) - 4} more" if len(which) > 4 else "")
            lines.append([runtime.title, some, f"`{reason}`"])
    return markdown(["runtime", "what", "why"], lines, words=3) if lines else "Nothing."


# ---- the script ----


def read_rows() -> tuple[list[Row], dict[str, str]]:
    """The rows of the last run, and what it ran on."""
    if not CSV.exists():
        return [], {}
    with CSV.open(encoding="utf-8", newline="") as file:
        facts = json.loads(file.readline().removeprefix("# "))
        return [_row(row) for row in csv.DictReader(file)], facts


def _row(text: dict[str, str]) -> Row:
    numbers = {name: float(text[name]) if text[name] else None
               for name in ("minimum", "median", "error")}  # fmt: skip
    return Row(**{**text, **numbers, "samples": int(text["samples"])})  # type: ignore[arg-type]


def write_rows(rows: Sequence[Row], facts: dict[str, str]) -> None:
    """The CSV, whose first line is what it was measured on."""
    with CSV.open("w", encoding="utf-8", newline="") as file:
        file.write(f"# {json.dumps(facts)}\n")
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in asdict(row).items()}
            writer.writerow(shown)


def main(
    only: Annotated[list[str] | None, typer.Option(help="A runtime; repeat for more.")] = None,
    subject: Annotated[list[str] | None, typer.Option(help="A function or network.")] = None,
    page_only: bool = False,
) -> None:
    """Time everything, and write the page."""
    rows, facts = read_rows()
    if not page_only:
        facts = pages.facts()
        with tempfile.TemporaryDirectory() as folder:
            for runtime in RUNTIMES:
                if (only and runtime.key not in only) or not _is_installed(runtime):
                    continue
                for name, dtype in _work(runtime):
                    if subject and name not in subject:
                        continue
                    new = in_process(runtime, name, dtype, Path(folder))
                    print(*(f"{r.runtime} {r.subject} {r.dtype} {r.form}: {r.minimum} {r.note}"
                            for r in new), sep="\n", flush=True)  # fmt: skip
                    key = (runtime.key, name, dtype)
                    rows = [r for r in rows if (r.runtime, r.subject, r.dtype) != key] + new
                    write_rows(_ordered(rows), facts)
    rows = _ordered(rows)
    write_table(rows)
    PAGE.write_text(page(rows, facts), encoding="utf-8")
    pages.put(pages.README, "runtimes", summary(rows, facts))


def _work(runtime: Runtime) -> list[tuple[str, str]]:
    work = [(function, dtype) for dtype in DTYPES for function in ACTIVATIONS]
    return work + [(name, "float32") for name in NETWORKS] * runtime.takes_networks


def _is_installed(runtime: Runtime) -> bool:
    try:
        return bool(runtime.version)
    except importlib.metadata.PackageNotFoundError:
        return False


def _ordered(rows: Sequence[Row]) -> list[Row]:
    keys = [runtime.key for runtime in RUNTIMES]
    subjects = [*ACTIVATIONS, *NETWORKS]
    return sorted(rows, key=lambda r: (keys.index(r.runtime), subjects.index(r.subject),
                                       DTYPES.index(r.dtype)))  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
    else:
        typer.run(main)
