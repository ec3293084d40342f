"""The kernels built for arm64, and run there by an emulator, where the tools for that are at hand.

On Debian: g++-aarch64-linux-gnu and qemu-user.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from common import ROOT

from mishkit.functions import ACTIVATIONS

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
FLAGS = ["-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wall"]

pytestmark = pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
    reason=f"needs {COMPILER} and {EMULATOR}",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arm64")
    kernels, program = folder / "kernels.o", folder / "program"
    source = str(ROOT / "csrc" / "kernels.cpp")
    library = [COMPILER, *FLAGS, "-O1", "-DMISHKIT_ISA=neon", "-c", source, "-o", str(kernels)]
    subprocess.run(library, check=True)
    main = str(ROOT / "tests" / "arm64_kernels.cpp")
    link = [COMPILER, *FLAGS, main, str(kernels), "-static", "-o", str(program)]
    subprocess.run(link, check=True)
    return program


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_kernels_are_right_on_arm64(name: str, program: Path) -> None:
    a = ACTIVATIONS[name]
    x = torch.linspace(-10, 10, 20011)  # odd, so that there is a tail
    command = [EMULATOR, str(program), str(list(ACTIVATIONS).index(name)), *map(str, a.defaults)]
    done = subprocess.run(command, input=x.numpy().tobytes(), capture_output=True, check=True)
    rows = torch.from_numpy(np.frombuffer(done.stdout, np.float32).copy()).view(5, -1)
    y, df, df_y, blend, its_slope = rows

    want = a.f(x.double(), *a.defaults)
    assert ((y - want).abs() <= 5e-7 * want.abs()).all()  # 4 ULP
    slope = a.df(x.double(), *a.defaults)
    assert (df - slope).abs().max() <= 2.5e-7
    # Beside the minimum the rounding of y costs up to 9e-5.
    assert (df_y - slope).abs().max() <= 1.2e-4

    relu = ACTIVATIONS["relu"]
    torch.testing.assert_close(blend, (want / 4 + relu.f(x.double()) * 3 / 4).float())
    torch.testing.assert_close(its_slope, (slope / 4 + relu.df(x.double()) * 3 / 4).float())
