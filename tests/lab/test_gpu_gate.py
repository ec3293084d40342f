"""The code of every GPU kernel, compiled ahead of time for every target."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

import interpreters
import pytest
import torch
from common import TESTS, TRITON, mostly_slow

from mishkit.backends import triton
from mishkit.bodies import BODIES, FORWARD_PACKED
from mishkit.functions import ACTIVATIONS
from mishkit.lab.code import paper as _paper
from mishkit.lab.code.gpu import FLOAT64, LOCAL, TARGETS, Build, Code, Job, compile_all

pytestmark = pytest.mark.skipif(not TRITON, reason="Triton is not installed")

SHAPES = {
    "contiguous": (16, 256, 3136),
    "channels_last": (50176, 256, 1),
    "scalar": (1, 1, 1 << 24),
    "few": (3, 20, 1),
}
"""(outer, channels, inner) of tensors with numbers per channel."""
NUMBERS = ("parameters", "sums", "scale", "shift")
POINTERS = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}


def find(function: str, body: str, dtype: str, target: str) -> Build | None:
    """The kernels that `_paper` does not weigh: they follow data or take masks."""
    a, type_ = ACTIVATIONS[function], getattr(torch, dtype)
    if body == "iterated":
        launch = triton.launch(a, "backward_packed", type_, 0.75, 1.25, 0.625)
        return _paper.build_of(launch, dtype, target)
    kernel, _, shape = body.partition(" ")
    sizes = SHAPES[shape]
    tiling = triton.Tiling(sizes, triton.tile_of(sizes, type_))
    is_forward = not kernel.endswith("backward")
    constants: dict[str, Any] = dict(zip(("OUTER", "CHANNELS", "INNER"), tiling.tile, strict=True))
    if kernel.startswith("affine"):
        twin = a.twin.at(*a.defaults)
        constants |= {"f": twin.f} if is_forward else {"df": twin.df, "dead": a.is_dead}
    else:
        twin = a.twin.of_trained
        constants |= {"numbers": twin.trained_numbers, "count": len(a.parameters)}
        constants |= {"f": twin.f} if is_forward else {"df": twin.df, "dp": twin.dp}
    compiled = getattr(triton._kernels(), kernel)
    # What is 1 is a constant to Triton.
    sizes_by_name = dict(zip(("outer", "channels", "inner"), sizes, strict=True))
    constants |= {name: 1 for name, size in sizes_by_name.items() if size == 1}
    if tiling.tiles <= triton.STEPS and "parts" in compiled.arg_names:
        constants["parts"] = 1
    signature: dict[str, Any] = {}
    for name in compiled.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in ("x", "y", "grad", "result"):
            signature[name] = POINTERS[dtype]
        elif name == "c":
            signature[name] = ("fp32",) * max(1, len(twin.numbers(*a.defaults)))
        else:
            signature[name] = "*fp32" if name in NUMBERS else "i32"
    pointers = tuple(name for name, kind in signature.items() if str(kind).startswith("*"))
    return Build(
        compiled,
        signature,
        constants,
        num_warps=triton.WARPS,
        elements=tiling.tile[0] * tiling.tile[1] * tiling.tile[2],
        bytes_per_element=(2 if is_forward else 3) * type_.itemsize,
        aligned=pointers,
    )


def jobs(functions: list[str], targets: Sequence[str]) -> list[Job]:
    """Those that a bar on ratios is for, and every body for every target with the types taking
    turns, so that with all targets each body is there in each type. The command compiles them all.
    """
    kernels = [k for k in _paper.kernels(functions, _paper.DTYPES) if k.is_ours]
    turns = {kernel[:2]: turn for turn, kernel in enumerate(kernels)}
    return [
        kernel.job(target)
        for kernel in kernels
        for turn, target in enumerate(targets, turns[kernel[:2]])
        if kernel.dtype == _paper.DTYPES[turn % len(_paper.DTYPES)]
        or any(bar.gpu.target == target and bar.applies(kernel) for bar in _paper.BARS)
    ]


@pytest.mark.parametrize(
    ("functions", "targets"),
    mostly_slow([(["mish"], ["sm_80", "gfx942"]), (list(ACTIVATIONS), list(TARGETS))], 1),
    ids=["mish", "all"],
)
def test_every_bar(functions: list[str], targets: list[str]) -> None:
    """Roofline ratios, no float64, no local memory, accesses of 128 bits, nothing unseen."""
    processes = 1 if len(functions) == 1 else None  # starting a second would take longer
    codes = dict(compile_all(jobs(functions, targets), _paper.find_build, processes))
    verdicts = list(_paper.verdicts(codes))
    assert not [f"{v.claim}, {v.bar}: {v.measured}" for v in verdicts if v.met is False]
    if len(functions) == len(ACTIVATIONS):  # or there is none that some bars are for
        assert all(v.met for v in verdicts)
    # None was left out, but for the sides that monotone functions don't have.
    left_out = {job[:2] for job, code in codes.items() if not isinstance(code, Code)}
    assert left_out == {
        (name, FORWARD_PACKED) for name in functions if ACTIVATIONS[name].turn is None
    }
    compiled = {job: code for job, code in codes.items() if isinstance(code, Code)}
    of_targets = {(job.function, job.body, job.target) for job in compiled}
    count = len(functions) * len(BODIES) - len(left_out)
    assert len(of_targets) == count * len(targets)
    if len(targets) == len(TARGETS):
        assert len({job[:3] for job in compiled}) == count * len(_paper.DTYPES)
    assert all(code.instructions > 2 for code in compiled.values())


TRAINED = [a.name for a in ACTIVATIONS.values() if a.trainable]


@pytest.mark.slow
def test_kernels_of_what_follows_a_norm() -> None:
    bodies = [f"{b} {s}" for b in ("affine", "affine_backward") for s in SHAPES]
    dtypes = itertools.cycle(_paper.DTYPES)
    jobs = [
        Job(function, body, next(dtypes), target)
        for function, body in itertools.product(ACTIVATIONS, bodies)
        for target in TARGETS
    ]
    for job, code in compile_all(jobs, find):
        assert isinstance(code, Code), (job, code)
        assert FLOAT64 not in code.faults and LOCAL not in code.faults, (job, code.faults)


@pytest.mark.slow
def test_kernels_that_follow_data_or_take_masks() -> None:
    bodies = [f"{b} {s}" for b in ("trained", "trained_backward") for s in SHAPES]
    # Every body for every target; each in another dtype, as these differ in loads and stores alone.
    dtypes = itertools.cycle(_paper.DTYPES)
    jobs = [
        Job(function, body, next(dtypes), target)
        for function, body in [*itertools.product(TRAINED, bodies), ("aptx", "iterated")]
        for target in TARGETS
    ]
    for job, code in compile_all(jobs, find):
        assert isinstance(code, Code), (job, code)
        assert FLOAT64 not in code.faults and LOCAL not in code.faults, (job, code.faults)


def test_every_launch_fits_its_kernel() -> None:
    """Numbers of arguments, tuples, and sizes of 1, which Triton treats apart."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = interpreters.program(TESTS / "feigned_launches.py", environment=clean)
    assert done.returncode == 0, done.stderr[-3000:]
    count, *names = done.stdout.split()
    bodies = ("forward", "forward_packed", "backward", "backward_packed", "double_backward")
    others = ("trained", "trained_backward", "affine", "affine_backward", "layer_norm_again")
    assert names == sorted([*bodies, *others])
    assert int(count) > 200
