"""Wrong uses of every command: one line that says what is wrong, and the right exit status."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning_fabric", reason="the lab's dependencies are an extra")

from rich.console import Console
from typer.testing import CliRunner

import mishkit
from mishkit import _missing
from mishkit.lab import LabError, surgery
from mishkit.lab.accuracy import exhaustive
from mishkit.lab.accuracy import sampled as accuracy
from mishkit.lab.bench import cpu as bench
from mishkit.lab.calculus import drawing, explain, fit
from mishkit.lab.common import files as _files
from mishkit.lab.common.bars import table
from mishkit.lab.common.errors import told
from mishkit.lab.study import compare, report
from mishkit_cli import app

NET = """
import sys
import torch
from torch import nn

number = 3
def three():
    return 3
def build(width=8):
    return nn.Sequential(nn.Linear(8, width), nn.SiLU(), nn.Linear(width, 2))
def boom():
    raise ValueError("no model\\ntoday")
def stops():
    sys.exit(3)
class Picky(nn.Linear):
    def forward(self, x):
        assert x.ndim == 4
        return super().forward(x)
def picky():
    return Picky(8, 8)
class Still(nn.Module):
    def forward(self, x):
        return x > 0
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with files that something is wrong with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, text in {
        "net.py": NET,
        "syntax.py": "def build(:\n    pass\n",
        "lost.py": "import nothing_of_this_name\n",
        "damaged.json": '{"what": 3',
        "foreign/sweep.json": "[1, 2]\n",
        "other/sweep.json": '{"lr": 3}\n',
        "damaged/sweep.json": json.dumps(shared()),
        "damaged/trials.jsonl": "not a trial\n",
        "half/sweep.json": json.dumps(shared()),
        "half/trials.jsonl": '{"trial": "abcdefgh", "result": {"accuracy": [0.5]}}\n',
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


TINY = (
    "compare", "--data", "digits", "-a", "mish", "--lr", "1e-2", "--seeds", "1", "--epochs", "1",
    "--train-samples", "90", "--test-samples", "20", "--channels", "4", "--threads", "1",
    "--accelerator", "cpu",
)  # fmt: skip


def shared() -> dict[str, Any]:
    """What the folder of `TINY` holds about its trials."""
    return compare.Settings(
        activations=("mish",),
        data=("digits",),
        lr=(1e-2,),
        seeds=1,
        epochs=1,
        train_samples=90,
        test_samples=20,
        channels=4,
        threads=1,
        accelerator="cpu",
    ).shared(1)


WRONG: list[tuple[str | tuple[str, ...], str]] = [
    ("audit resnet50", 'what is "resnet50"?'),
    ("audit net.py:build", "needs inputs"),
    ("audit net.py:build -i 4,9", "with inputs 4×9 float32: RuntimeError: mat1 and mat2"),
    ("audit net.py:build -i 4,8 -i 4,8", "with inputs 4×8 float32 and 4×8 float32: TypeError"),
    ("audit net.py:build -i 4;8", "a shape is numbers"),
    ("audit net.py:build -i=-1,8", "a shape is numbers"),
    ("audit net.py:build -i 99999999,99999999,99999999", "net.py:build, --input"),
    ("audit net.py:build -i 4,8 --option width", "an option is key=value"),
    ("audit net.py:build -i 4,8 --option widht=9", "unexpected keyword argument 'widht'"),
    ("audit net.py:build -i 4,8 --option width=no", "net.py:build: net.py:10: TypeError: "),
    ("audit net.py:boom -i 4,8", "net.py:boom: net.py:12: ValueError: no model today"),
    ("audit net.py:stops -i 4,8", "net.py:stops: net.py:14: SystemExit: 3"),
    ("audit net.py:picky -i 4,8", "float32: net.py:17: AssertionError: assert x.ndim == 4"),
    ("audit net.py:three -i 4,8", "is no torch.nn.Module but a int"),
    ("audit net.py:number -i 4,8", 'net.py has no function "number"'),
    ("audit net.py:nothing -i 4,8", 'net.py has no function "nothing"'),
    ("audit syntax.py:build -i 4,8", "can't be imported: syntax.py:1: SyntaxError: "),
    ("audit lost.py:build -i 4,8", "lost.py:1: ModuleNotFoundError: No module named 'nothing_of"),
    ("audit none.py:build -i 4,8", "there is no file none.py"),
    ("audit no.such.module:build", "no.such.module can't be imported"),
    ("audit net.py:build -i 4,8 --autocast int8", "--autocast takes"),
    ("audit net.py:build -i 4,8 --csv net.py/s.csv", "net.py/s.csv can't be written"),
    ("audit net.py:build -i 4,8 --csv .", "it is a folder"),
    ("lean net.py:build -i 4,9", "RuntimeError: mat1 and mat2"),
    ("lean net.py:Still -i 4,8", "no output of the model has a gradient"),
    ("lean net.py:boom -i 4,8", "net.py:12: ValueError"),
    ("compare -a mush", "unknown activation 'mush'"),
    ("compare -a net:nothing", "'net' has no 'nothing'"),
    ("compare -a syntax:build", "syntax.py:1: SyntaxError"),
    ("compare -a net:boom", "does not work: TypeError: boom() takes 0"),
    ("compare --lr nan", "--lr takes finite learning rates above 0"),
    ("compare --lr 1e-3,inf", "--lr takes finite"),
    ("compare --lr=-1e-3", "--lr takes finite"),
    ("compare --lr 0", "--lr takes finite"),
    ("compare --lr much", "--lr takes learning rates with commas"),
    ("compare --target 0.5 --target 0.6", "--target is given once"),
    ("compare --baseline gelu", "the baseline 'gelu' is none"),
    ("compare --precision 7", "Lightning Fabric refuses"),
    ((*TINY, "--data", "imagenet"), "unknown data 'imagenet'"),
    ((*TINY, "--data", "folder:nowhere"), "there is no such folder"),
    ((*TINY, "--model", "net.py:boom"), "net.py:boom: net.py:12: ValueError"),
    ((*TINY, "--model", "net.py:picky"), "has no activation that can be replaced"),
    ((*TINY, "--model", "net.py:build"), "net.py:build does not return a score for each"),
    ((*TINY, "--batch-size", "2000"), "a batch of 2000 is more than"),
    ((*TINY, "-o", "net.py"), "net.py: "),
    ((*TINY, "-o", "foreign"), "foreign/sweep.json holds no settings of a sweep"),
    ((*TINY, "-o", "other"), "other/sweep.json holds no settings of a sweep"),
    ((*TINY, "-o", "damaged"), "damaged/trials.jsonl, line 1, is no trial"),
    ((*TINY, "-o", "half"), "half/trials.jsonl, line 1, is no trial"),
    ("bench -f mush", "unknown function 'mush'"),
    ("bench --dtype int8", "unknown dtype 'int8'"),
    ("bench --sizes 64K", "'64K' is not a count".lower()),
    ("bench --threads 0", "must be positive"),
    ("bench --device mps", "unknown device 'mps'"),
    ("bench --paper", "it wants --device cuda"),
    ("bench --paper --device cuda --neuron", "does not go with --neuron"),
    ("bench --like nothing", "--like takes"),
    ("bench --like hmish --csv x.csv", "--like goes with none of"),
    ("bench --csv net.py/x.csv", "net.py/x.csv can't be written"),
    ("accuracy mush", "unknown function 'mush'"),
    ("accuracy --isa mmx", "unknown instruction set 'mmx'"),
    ("accuracy --backend mush", "unknown backend 'mush'"),
    ("accuracy --exhaustive --stride 3", "does not go with --exhaustive"),
    ("accuracy --markdown x.md", "--markdown needs --exhaustive"),
    ("accuracy --exhaustive --resume damaged.json", "damaged.json holds no progress of a sweep"),
    ("accuracy --exhaustive --markdown .", "it is a folder"),
    ("explain mush", 'there is no function "mush"'),
    ("explain hard_mish --q 3", 'has no parameter "q"'),
    ("explain hard_mish --k", "--k needs a value"),
    ("explain hard_mish --k nan", "is not NAME=NUMBER, a finite one"),
    ("explain hard_mish --k=-1", "k must be"),
    ("plot", "which function?"),
    ("plot mush -o x.png", 'there is no function "mush"'),
    ("plot mish -o x.txt", "the name must end in .png"),
    ("plot mish -o x.png --range 4,-5", "LOW must be below HIGH"),
    ("plot mish -o x.png --range nan,4", "is no range"),
    ("plot mish -o net.py/x.png", "net.py/x.png can't be written"),
    ("plot --gallery net.py", "can't be written"),
    ("fit mush", 'there is no function "mush"'),
    ("fit mish --family !", '"!" is no family'),
    ("fit mish --measure max:nan,1", "is no measure"),
    ("fit mish --bounds k=1", "is not NAME=LOW,HIGH"),
    ("fit mish --fix k=much", "is not NAME=NUMBER"),
    ("fit mish --keep everything", '"everything" is no constraint'),
    ("fit mish --plot x.txt", "the name must end in .png"),
]


def run(arguments: str | tuple[str, ...], **options: Any) -> Any:
    words = arguments.split() if isinstance(arguments, str) else list(arguments)
    return CliRunner().invoke(app, words, **options)


def assert_one_line(done: Any, status: int, says: str) -> None:
    assert done.exit_code == status, (done.output, done.exception)
    assert done.stderr.startswith("mishkit: ") and done.stderr.count("\n") == 1, done.stderr
    assert says.lower() in done.stderr.lower() and "Traceback" not in done.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    WRONG,
    ids=[a if isinstance(a, str) else " ".join(a[-2:]) for a, _ in WRONG],
)
def test_a_wrong_use_ends_with_one_line(
    work: Path, arguments: str | tuple[str, ...], says: str
) -> None:
    assert_one_line(run(arguments), 1, says)
    assert not list(work.rglob("*.new"))


@pytest.mark.parametrize(
    "arguments",
    [
        *("mush", "audit", "lean", "fit", "explain", "bench --nothing", "plot --wrong"),
        *("compare --epochs 0", "compare --target nan", "accuracy --stride 0"),
    ],
)
def test_what_is_no_command_line_is_explained_by_its_usage(arguments: str) -> None:
    done = run(arguments)
    assert done.exit_code == 2 and "Usage: " in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "env", "raised_in"),
    [
        ("--traceback audit net.py:boom -i 4,8", {}, "in boom"),
        ("audit net.py:picky -i 4,8 --traceback", {}, "assert x.ndim == 4"),
        ("lean net.py:build -i 4,9", {"MISHKIT_TRACEBACK": "1"}, "in forward"),
        ("explain mush --traceback", {}, "in find"),
        ("compare -a net:nothing --traceback", {}, "in _import"),
    ],
)
def test_the_traceback_is_there_for_the_asking(
    work: Path, arguments: str, env: dict[str, str], raised_in: str
) -> None:
    done = run(arguments, env=env)
    assert done.exit_code == 1
    assert done.stderr.startswith("Traceback") and raised_in in done.stderr
    assert done.stderr.splitlines()[-1].startswith("mishkit: ")


@pytest.mark.parametrize(
    ("arguments", "owner", "name"),
    [
        (" ".join(TINY), compare, "_compare_and_tell"),
        ("bench -f mish --sizes 64", bench, "time_group"),
        ("bench -f mish --sizes 64 --check", bench, "time_group"),
        ("accuracy mish --backend torch", accuracy, "run"),
        ("accuracy --exhaustive mish", exhaustive, "run"),
        ("explain mish", explain, "analyze_named"),
        ("plot mish -o x.png", drawing, "of_named"),
        ("fit mish", fit, "fit"),
        ("audit net.py:build -i 4,8", surgery.mk, "audit"),
        ("lean net.py:build -i 4,8", surgery, "_step"),
    ],
)
def test_after_ctrl_c_the_status_is_130(
    work: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, owner: Any, name: str
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupt)
    done = run(arguments)
    assert done.exit_code == 130, done.output
    assert done.stderr.startswith("mishkit: ") and done.stderr.count("\n") == 1
    assert not re.search("bars? met", done.output)


# ---- files ---------------------------------------------------------------------------------------


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.md"
    with _files.whole_file(path) as file:
        file.write("before ×\n")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # which has no name of a file
    with (
        pytest.raises(LabError, match=r"page\.md can't be written: No space left on device"),
        _files.whole_file(path) as file,
    ):
        file.write("half")
        raise full
    with pytest.raises(KeyboardInterrupt), _files.whole_file(path, "wb") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text(encoding="utf-8") == "before ×\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["page.md"]
    link = tmp_path / "link.md"
    link.symlink_to(path)
    with _files.whole_file(link) as file:
        file.write("after")
    assert link.is_symlink() and path.read_text() == "after"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only where there is a /dev/full")
def test_a_full_disk_is_one_line(work: Path) -> None:
    done = run("audit net.py:build -i 4,8 --csv /dev/full")
    assert_one_line(done, 1, "/dev/full can't be written: No space left on device")


def test_a_report_is_never_cut(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(TINY).exit_code == 0
    page = work / "mishkit-compare" / "report.html"
    before = page.read_text()

    def render(result: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(report, "render", render)
    assert_one_line(run(TINY), 1, "report.html can't be written: No space left on device")
    assert page.read_text() == before


def test_a_second_run_in_the_same_place_is_refused(work: Path) -> None:
    with _files.locked(work / "mishkit-compare" / "sweep.lock", "it"):
        assert_one_line(run(TINY), 1, "another mishkit is at work on the trials in")
    with _files.locked(work / "mishkit-exhaustive.json.lock", "it"):
        assert_one_line(run("accuracy --exhaustive mish"), 1, "another mishkit is at work on")
    with _files.locked(work / "mishkit-exhaustive.json.lock", "it"):
        pass  # it is free again


# ---- terminals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", ["explain relu --no-cost", "fit --help", "audit net.py:é"])
def test_what_a_terminal_cannot_encode_is_replaced(work: Path, arguments: str) -> None:
    plain = run(arguments)
    for charset in ("ascii", "latin-1", "cp1252"):
        done = CliRunner(charset=charset).invoke(app, arguments.split())
        assert done.exit_code == plain.exit_code and "Traceback" not in done.output
        assert len(done.stdout) == len(plain.stdout)  # each character that is missing is a ?
        assert "?" in done.stdout or not plain.stdout or charset != "ascii"


def test_json_stays_the_same_where_it_must_be_escaped() -> None:
    command = ["explain", "relu", "--no-cost", "--json"]
    plain, escaped = (
        CliRunner(charset=charset).invoke(app, command).stdout for charset in ("utf-8", "ascii")
    )
    assert not plain.isascii() and escaped.isascii()
    assert json.loads(plain) == json.loads(escaped)


def test_a_pipe_that_cannot_encode_and_one_that_is_full() -> None:
    python = [sys.executable, "-m", "mishkit"]
    command, env = [*python, "explain", "relu", "--no-cost"], {"PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(
        command, env={**os.environ, **env}, capture_output=True, text=True, check=True
    )
    assert "?" in done.stdout and not done.stderr
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            failed = subprocess.run(
                [*python, "env"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
        assert failed.returncode == 1 and "No space left on device" in failed.stderr
        assert failed.stderr.count("\n") == 1, failed.stderr


def test_help_breaks_no_word_where_there_is_no_room_for_boxes() -> None:
    command = [sys.executable, "-m", "mishkit", "fit", "--help"]
    env = {**os.environ, "COLUMNS": "50"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert "(hard_mish, swish, aptx)," in done.stdout and "…" not in done.stdout


EFFECT = surgery.Effect(
    "timm:convnext_nano", 17, 12, 1 << 30, 1 << 30, 1 << 29, 1 << 29, 9, 9, 0.5, 1e-7, 1e-4
)


@pytest.mark.parametrize("width", [40, 60, 80])
def test_no_name_is_broken_in_a_narrow_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Console(file=io.StringIO(), width=width, highlight=False)
    monkeypatch.setattr(surgery, "_console", out)
    surgery.show_effects([EFFECT])
    wide = table("Wide", ["function", *(f"column {n}" for n in range(9))])
    wide.add_row("composed_hard_mish", *(f"{1.5 * n:.4f}" for n in range(9)))
    out.print(wide)
    assert isinstance(out.file, io.StringIO)
    said = out.file.getvalue()
    for word in ("timm:convnext_nano", "1 GiB", "promised", "composed_hard_mish", "12.0000"):
        assert word in said, said
    assert all(len(line) <= width for line in said.splitlines() if "Errors are" not in line)


# ---- words ---------------------------------------------------------------------------------------


def test_hints_name_packages_and_keep_the_torch_that_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pinned = f'"torch=={torch.__version__}"'
    assert _missing.install("timm") == f"pip install timm {pinned}"
    assert _missing.install("torchvision.datasets", "lab").startswith("pip install torchvision")
    assert _missing.install("torchvision.datasets", "lab").endswith(pinned)
    assert re.fullmatch(r'pip install "?scikit-learn[^ ]*', _missing.install("sklearn.x", "lab"))
    monkeypatch.setattr(_missing, "_is_installed", lambda name: name != "pillow")
    assert re.fullmatch(
        r'pip install "typer>=[\d.]+" "pillow>=[\d.]+"', _missing.install("typer", "lab")
    )

    def none(name: str) -> None:
        raise _missing.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(_missing.metadata, "requires", none)
    assert _missing.install("PIL.Image", "lab") == "pip install pillow"


def test_no_message_sends_to_an_index_where_nothing_is() -> None:
    source = Path(mishkit.__file__).parent
    assert not [path for path in source.rglob("*.py") if 'install "mishkit[' in path.read_text()]


@pytest.mark.parametrize(
    ("raiser", "says"),
    [
        (lambda: mishkit.audit(3), "audit: "),  # type: ignore[arg-type]
        (lambda: Path("/no/such/file").read_text(), "/no/such/file: No such file or directory"),
        (lambda: torch.ones(2) @ torch.ones(3), "RuntimeError: inconsistent tensor size"),
        (lambda: {}["x" * 1000], "KeyError: 'xxxxxx"),
    ],
)
def test_an_error_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, raiser: Callable[[], Any], says: str
) -> None:
    monkeypatch.setattr("mishkit.lab.common.errors._is_the_users", lambda file: False)
    with pytest.raises(Exception) as caught:
        raiser()
    line = told(caught.value)
    assert line.startswith(says) and "\n" not in line and len(line) < 500, line
