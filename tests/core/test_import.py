"""Importing mishkit: what it brings along, and how the environment chooses a backend."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import interpreters
import pytest
from common import KERNELS, mostly_slow

import mishkit

SOURCE = Path(mishkit.__file__).parent.parent


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MISHKIT_")}
    clean |= {"PYTHONPATH": str(SOURCE), **environment}
    return interpreters.python(code, clean, strict="RuntimeWarning")


def test_only_torch_and_the_standard_library_are_imported() -> None:
    done = python(
        "import sys, torch; before = set(sys.modules); import mishkit\n"
        "assert not hasattr(mishkit, 'nonsense') and 'mishkit.surgery' not in sys.modules\n"
        "for name in mishkit.__all__: getattr(mishkit, name)\n"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert "mishkit" in imported
    assert imported <= {"mishkit", "torch", *sys.stdlib_module_names}


USE = """
import torch, mishkit
from mishkit.backends import cpu
x = torch.linspace(-9, 9, 1001)
for name in mishkit.functional.FUNCTIONS:
    f = getattr(mishkit, name)
    gradients = []
    for options in ({}, {"save": "output"}, {"inplace": True}):
        leaf = x.clone().requires_grad_()
        y = f(leaf * 1, **options)
        y.sum().backward()
        gradients.append(leaf.grad)
        f(x, out=torch.empty_like(x))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=5e-4)
    torch.testing.assert_close(gradients[2], gradients[0], rtol=0, atol=5e-4)
print(cpu.isa())
"""


@pytest.mark.parametrize("isa", mostly_slow(["none", *(e.name for e in KERNELS)], 2))
def test_the_environment_chooses(isa: str) -> None:
    done = python(USE, MISHKIT_CPU_ISA=isa)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [isa]


@pytest.mark.skipif(not KERNELS, reason="no kernels here")
def test_the_best_is_the_default_and_nonsense_is_refused() -> None:
    assert python("from mishkit.backends import cpu; import mishkit; print(cpu.isa())").stdout == (
        KERNELS[-1].name + "\n"
    )
    done = python("import mishkit", MISHKIT_CPU_ISA="mmx")
    assert done.returncode
    assert "MISHKIT_CPU_ISA" in done.stderr.splitlines()[-1] and "mmx" in done.stderr


def test_a_library_that_does_not_load_gives_way_to_plain_torch(tmp_path: Path) -> None:
    package = tmp_path / "mishkit"
    shutil.copytree(Path(mishkit.__file__).parent, package)
    (package / "_kernels.so").write_bytes(b"for another machine")
    code = "import torch, mishkit; print(mishkit.mish(torch.zeros(1)).item())"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = interpreters.python(code, clean, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0.0"
    assert done.stderr.count("mishkit runs on plain torch") == 1
    assert "do not load" in done.stderr
