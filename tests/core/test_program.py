"""`mishkit run`: a program as it is, as with python, with our kernels or in less memory."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from common import ROOT
from torch import nn

import mishkit as mk
from mishkit import _program
from mishkit.backends import cpu
from mishkit.recompute.everywhere import _passes, recompute_everywhere

SCRIPT = """\
import os, pickle, sys

class Mine:
    pass

assert type(pickle.loads(pickle.dumps(Mine()))) is Mine
print(__name__, sys.argv, __file__ == os.path.abspath(sys.argv[0]), sys.path[0])
print(sorted(set(globals()) - {"Mine", "os", "pickle", "sys", "__cached__", "__annotations__"}))
if "fail" in sys.argv:
    def inner(): return 1 / 0
    inner()
sys.exit(len(sys.argv))
"""


def execute(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, text=True, capture_output=True
    )


def same(program: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program with python and with us: the status and all that is printed are the same."""
    ours = execute("-m", "mishkit._program", *program, cwd=cwd)
    torchs = execute(*program, cwd=cwd)
    assert (ours.returncode, ours.stdout) == (torchs.returncode, torchs.stdout), ours.stderr
    assert ours.stderr == torchs.stderr
    return ours


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "program.py"
    path.parent.mkdir()
    path.write_text(SCRIPT)
    return path


def test_a_script_with_arguments(script: Path) -> None:
    done = same(["folder/program.py", "--enable", "-m", "x"], script.parent.parent)
    assert done.returncode == 4 and not done.stderr


def test_a_script_that_fails(script: Path) -> None:
    done = same([str(script), "fail"], script.parent)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


def test_a_script_that_is_no_python(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text("print(1\n")
    assert same(["wrong.py"], tmp_path).returncode == 1


@pytest.mark.slow
def test_a_module_a_package_and_a_folder(script: Path) -> None:
    folder = script.parent
    same(["-m", "program", "--recompute"], folder)
    (folder / "__main__.py").write_text(SCRIPT)
    same(["-m", "folder", "x"], folder.parent)
    assert same(["folder", "x"], folder.parent).returncode == 2


def test_programs_that_there_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        _program.main([str(tmp_path / "none.py")])
    assert stopped.value.code == 2
    assert "can't open file" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="No module named 'there_is_none'"):
        _program.main(["-m", "there_is_none.at_all"])


@pytest.mark.skipif(not cpu.isas(), reason="there are no kernels")
def test_the_command(tmp_path: Path) -> None:
    """Everything after the script is the program's, --traceback too."""
    pytest.importorskip("typer")
    (tmp_path / "program.py").write_text(
        "import os, sys, torch, mishkit\n"
        "print(sys.argv[1:], mishkit.enabled(), os.environ['MISHKIT_ENABLE'])\n"
        "layer = torch.nn.Sequential(torch.nn.BatchNorm1d(64), torch.nn.ReLU())\n"
        "with mishkit.KeptBytes(exclude=[*layer.parameters(), *layer.buffers()]) as kept:\n"
        "    y = layer(torch.ones(64, 64, requires_grad=True))\n"
        "print(kept.total)\n"
    )
    command = ("-m", "mishkit", "run", "--enable", "--recompute", "program.py")
    done = execute(*command, "--traceback", "-m", "--enable", cwd=tmp_path)
    first, second = done.stdout.splitlines()
    assert first == ("['--traceback', '-m', '--enable'] ('gelu', 'hardswish', 'mish', 'silu') 1")
    assert int(second) < 2 * 64 * 64 * 4  # without: the norm's input and the output of ReLU


@pytest.fixture
def everywhere() -> object:
    before = [
        dict(hooks)
        for hooks in (
            torch.nn.modules.module._global_forward_pre_hooks,
            torch.nn.modules.module._global_forward_hooks,
        )
    ]
    recompute_everywhere()
    yield
    for hooks, kept in zip(
        (
            torch.nn.modules.module._global_forward_pre_hooks,
            torch.nn.modules.module._global_forward_hooks,
        ),
        before,
        strict=True,
    ):
        for key in hooks.keys() - kept.keys():
            del hooks[key]
            torch.nn.modules.module._global_forward_hooks_always_called.pop(key, None)


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 4, 3))


def test_recompute_everywhere(everywhere: object) -> None:
    net, x = _net(), torch.randn(2, 3, 20, 20)
    exclude = [*net.parameters(), *net.buffers(), x]
    with mk.KeptBytes(exclude=exclude) as kept:
        net(x).sum().backward()
    reference = _net()
    with mk.KeptBytes(exclude=[*reference.parameters(), *reference.buffers(), x]) as explicit:
        with mk.recompute():
            y = reference(x)
        y.sum().backward()
    assert kept.total == explicit.total
    for ours, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    with torch.no_grad():
        net(x)
    with pytest.raises(RuntimeError):
        net(x[:, :2])
    assert not _passes.running
    torch.func.vmap(torch.func.grad(lambda image: net.eval()(image[None]).sum()))(x)
    warnings.filterwarnings("ignore", "Using `torch.compile")  # pytest has reset the filters
    compiled = torch.compile(_net(), backend="aot_eager")
    compiled(x).sum().backward()
    assert not _passes.running
