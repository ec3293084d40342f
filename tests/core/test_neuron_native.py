"""The neuron's kernels in a program of their own: no access beyond any tensor; and on arm64.

For arm64, on Debian: g++-aarch64-linux-gnu and qemu-user.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from common import TESTS, every_dtype, mostly_slow
from neurons import arguments, assert_exact
from torch import Tensor

from mishkit.activation import DTYPES
from mishkit.backends import cpu

SOURCE = TESTS / "neuron_kernels.cpp"
# As setup.py's, but for the optimisation. The sanitizer's checks as calls compile in half the time.
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
SANITIZE = ["-fsanitize=address", "--param", "asan-instrumentation-with-call-threshold=0"]
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", *AVX2]


@dataclass(frozen=True)
class Target:
    """How to compile, and what runs the program."""

    isa: str
    compiler: str
    flags: tuple[str, ...]
    emulator: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.isa


ISAS = {"baseline": [], "avx2": AVX2, "avx512": AVX512, "neon": []}
TARGETS = [Target(isa, "g++", (*SANITIZE, *ISAS[isa])) for isa in cpu.isas()]
TARGETS += [Target("arm64", "aarch64-linux-gnu-g++", ("-static",), ("qemu-aarch64",))]


# One of the vector sets in every run; each takes long to compile with the sanitizer.
@pytest.fixture(scope="module", params=mostly_slow(TARGETS, TARGETS[1:2]), ids=str)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command."""
    target = request.param
    for tool in (target.compiler, *target.emulator):
        if not shutil.which(tool):
            pytest.skip(f"needs {tool}")
    path = tmp_path_factory.mktemp("neuron") / "program"
    command = [target.compiler, *FLAGS, "-DMISHKIT_ISA=tested", str(SOURCE), *target.flags]
    done = subprocess.run([*command, "-o", path], capture_output=True, text=True)
    if "asan" in done.stderr:
        pytest.skip("needs the address sanitizer")
    assert done.returncode == 0, done.stderr
    return [*target.emulator, str(path)]


def run(command: list[str], tensors: list[Tensor], chunk_rows: int) -> list[Tensor]:
    dtype, (batch, dims_out) = tensors[0].dtype, tensors[5].shape
    numbers = DTYPES.index(dtype), batch, tensors[0].shape[1], dims_out, chunk_rows
    given = b"".join(t.contiguous().view(torch.uint8).numpy().tobytes() for t in tensors)
    whole = [*command, *map(str, numbers)]
    leaking = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(whole, input=given, capture_output=True, env=leaking)
    assert done.returncode == 0, done.stderr.decode()
    output = torch.from_numpy(np.frombuffer(done.stdout, np.uint8).copy()).view(dtype)
    shapes = [tensors[i].shape for i in (5, 0, 1, 2, 3)]
    parts = output.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


# Tails of every kind, sizes of one, blocks of rows and of outputs, several chunks of the batch.
SHAPES = [
    (1, 1, 1, 1),
    (3, 7, 5, 3),
    (9, 33, 35, 4),
    (40, 16, 3, 40),
    (133, 31, 2, 133),
    (133, 5, 2, 45),
    (270, 18, 3, 270),
    (2, 1030, 2, 1),
    (2, 3, 259, 2),
]


@every_dtype
def test_no_access_beyond_a_tensor_and_right_results(
    program: list[str], dtype: torch.dtype
) -> None:
    for *shape, chunk_rows in SHAPES:
        tensors = arguments(*shape, dtype)
        assert_exact(run(program, tensors, chunk_rows), tensors)
