"""Python processes that have imported torch and nothing of ours, without the seconds that takes.

A process of each worker imports torch, and forks for each piece of code. What a test says about
importing torch, or about how Python is started, needs a Python of its own instead.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

PARENT = """
import builtins, json, os, sys, torch, traceback, warnings

sys.modules.pop("mishkit_autoload", None)  # which torch loads, perhaps from elsewhere

def run(code, environment, folder, strict, files):
    for stream, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv[:] = ["-c"]
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    warnings.simplefilter("always")
    if strict:
        warnings.simplefilter("error", getattr(builtins, strict))
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})

for line in sys.stdin:
    child = os.fork()
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    status = 0
    try:
        run(*json.loads(line))
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
"""


@functools.cache
def _parent() -> subprocess.Popen[str]:
    ours = ("MISHKIT_", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(parent.communicate)  # which ends its input, and so the process
    return parent


def python(
    code: str, environment: Mapping[str, str], folder: Path | None = None, strict: str = ""
) -> subprocess.CompletedProcess[str]:
    """As `python -c code` with this environment. Warnings are printed; those of the category that
    `strict` names are errors."""
    parent = _parent()
    assert parent.stdin and parent.stdout
    with TemporaryDirectory() as outputs:
        files = [os.path.join(outputs, name) for name in ("out", "err")]
        asked = (code, dict(environment), str(folder or Path.cwd()), strict, files)
        parent.stdin.write(json.dumps(asked) + "\n")
        parent.stdin.flush()
        status = int(parent.stdout.readline())
        out, err = (Path(file).read_text() for file in files)
    return subprocess.CompletedProcess([code], status, out, err)


def program(
    file: Path, *arguments: str, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """As `python file arguments…` with this environment."""
    code = (
        "import runpy, sys\n"
        f"sys.argv[:] = {[str(file), *arguments]!r}\n"
        f"sys.path[0] = {str(file.parent)!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    paths = os.pathsep.join(filter(None, sys.path))
    return python(code, {"PYTHONPATH": paths, **environment})


def in_two_processes(work: Callable[..., None], *arguments: str) -> None:
    """Calls work(rank, *arguments) in two processes at once, as `torch.multiprocessing.spawn`, with
    one thread each."""
    code = (
        "import torch.multiprocessing\n"
        f"from {work.__module__} import {work.__name__} as work\n"
        "torch.set_num_threads(1)\n"
        f"torch.multiprocessing.start_processes(work, {arguments!r}, 2, start_method='fork')\n"
    )
    paths = os.pathsep.join(filter(None, sys.path))
    done = python(code, {**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
