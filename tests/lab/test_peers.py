"""The comparison with everyone else: its rows, the page made of them, adapters that need torch.

Nothing here asserts a time.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
import mmap
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from common import ROOT, mostly_slow
from typer.testing import CliRunner

from mishkit.backends import cpu
from mishkit.functions import ACTIVATIONS
from mishkit.lab import LabError
from mishkit.lab.bench import published_cpu as _published_cpu
from mishkit.lab.bench import published_gpu as _published
from mishkit.lab.bench.settings import Settings as BenchSettings
from mishkit.lab.common.memory import page_faults
from mishkit.lab.common.timing import PROCESSOR, Call, round_robin
from mishkit_cli import app

BENCHMARKS = ROOT / "benchmarks"
FACTS = {"cpu": "Zen", "cores": "2", "isa": "avx2", "load": "0.1", "minutes": "9", "date": "today"}
CELL = ("mish", "float32", "forward", "fresh", 1 << 16, 1)


def _load(name: str) -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


adapters, page, pages, peers, networks, installer = map(
    _load, ("peer_adapters", "peer_page", "pages", "peers", "networks", "install_peers")
)


def row(peer: str, least: float, cell: tuple[Any, ...] = CELL, **others: Any) -> Any:
    quantiles = (least, least, 2 * least, 4 * least)
    return page.Row(peer, *cell, "1.0", 5, least, 2 * least, quantiles, **{"error": 1e-7, **others})


def rows() -> list[Any]:
    larger, small = (*CELL[:4], 1 << 24, 1), (*CELL[:4], 1 << 10, 1)
    existing = ("mish", "float32", "backward", "existing", 1 << 20, 1)
    return [
        row("mishkit", 0.1), row("torch", 3.0), row("copy", 0.01), row("oneDNN", 0.05),
        row("mishkit", 0.104, larger), row("ONNX Runtime", 0.1, larger),
        row("mishkit", 2.0, small), row("torch", 1.0, small), row("oneDNN", 1.5, small),
        row("mishkit", 0.5, (*existing[:3], "fresh", *existing[4:])), row("JAX", 0.25, existing),
        page.Row("ncnn", threads=1, note="absent: No module named 'ncnn'"),
        page.Row("NumPy", "mish", "bfloat16", "forward", threads=1, note="no bfloat16"),
    ]  # fmt: skip


def machine(cpu: str = "Zen", timed: list[Any] | None = None) -> Any:
    return page.Machine(Path(f"{cpu}.csv"), tuple(timed or rows()), {**FACTS, "cpu": cpu})


# ---- rows and page ----


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    page.write(tmp_path / "peers.csv", rows(), FACTS)
    assert page.read(tmp_path / "peers.csv") == rows()
    assert page.read_facts(tmp_path / "peers.csv") == FACTS


@pytest.mark.parametrize(("old", "error"), [("median", KeyError), ("0.1", ValueError)])
def test_a_broken_file_is_refused(old: str, error: type[Exception], tmp_path: Path) -> None:
    page.write(tmp_path / "peers.csv", rows(), FACTS)
    text = (tmp_path / "peers.csv").read_text().replace(old, "wrong", 1)
    (tmp_path / "peers.csv").write_text(text)
    with pytest.raises(error):
        page.read(tmp_path / "peers.csv")


def test_where_we_are_behind() -> None:
    """Another is faster by more than 5%; floors don't count; the worst first."""
    late = page.behind(page.duels(rows()))
    assert [(d.cell.direction, d.cell.size, d.best.peer, d.ratio) for d in late] == [
        ("forward", 1 << 16, "oneDNN", 2.0),
        ("forward", 1 << 10, "torch", 2.0),
        ("backward", 1 << 20, "JAX", 2.0),
    ]
    assert late[1].faster == ("torch", "oneDNN")
    text = page.counts([machine()])
    assert "| Zen, avx2 | 64 Ki and above | 1 | 3 | 0 | 1 | 2 |" in text
    assert "| Zen, avx2 | 1 Ki | 1 | 1 | 0 | 0 | 1 |" in text


def told(duelists: list[Any], *others: Any) -> str:
    (duel,) = page.duels(duelists)
    return page.cause(duel, page.times([*duelists, *others]))


def test_a_cause_is_told_from_the_rows() -> None:
    out = ("relu", "float32", "forward", "existing", 1 << 16, 1)
    small = (*out[:4], 1 << 10, 1)
    pair = [row("mishkit", 0.07, out), row("oneDNN", 0.05, out)]
    assert told(pair) == page.UNEXPLAINED
    # 1.3 µs more here; at 1 Ki 1.0 µs more, then 0.5.
    calls = [row("mishkit", 2.0, small), row("oneDNN", 1.0, small)]
    assert told(pair, *calls) == "the call: 1.0 µs more at 1 Ki, and 1.3 µs here"
    assert told(pair, row("mishkit", 1.5, small), calls[1]) == page.UNEXPLAINED
    assert told(calls).endswith("checked arguments: 1.0 µs more")
    # What is right in absolute terms alone is faster for that.
    pair = [row("mishkit", 0.07, out, relative=4e-7), row("oneDNN", 0.05, out, relative=1.0)]
    half = row("mishkit", 1.5, small), calls[1]
    assert "largest relative error on these inputs is 1, ours 4e-07; 0.5 of" in told(pair, *half)
    # Two threads that take as long as one.
    both = [row("mishkit", 0.07, (*out[:5], 2)), row("oneDNN", 0.05, (*out[:5], 2))]
    text = "a second thread does not speed up ours: 4.6 µs with one, 4.6 with 2"
    assert told(both, row("mishkit", 0.07, out)) == text
    assert told(both, row("mishkit", 0.14, out)) == page.UNEXPLAINED
    # Faster once, slower mostly.
    pair = [row("mishkit", 0.07, out), dataclasses.replace(row("JAX", 0.05, out), median=0.28)]
    assert "by medians ours is first, by 2.00×" in told(pair)


def test_a_cause_is_memory_that_is_not_fresh() -> None:
    fresh = ("relu", "float32", "forward", "fresh", 1 << 24, 1)
    pair = [row("mishkit", 0.4, fresh, faults=544), row("ONNX Runtime", 0.2, fresh)]
    other = row("torch", 2.0, fresh, faults=16385)
    assert "makes 0 page faults, ours 544, torch's 16,385" in told(pair, other)
    assert told([row("mishkit", 0.4, fresh, faults=544), row("JAX", 0.2, fresh, faults=500)]) == (
        page.UNEXPLAINED
    )
    gradient = ("mish", "float32", "backward", "existing", 1 << 20, 1)
    ours = row("mishkit", 0.5, (*gradient[:3], "fresh", *gradient[4:]))
    assert told([ours, row("JAX", 0.25, gradient)]).endswith("as every gradient of autograd does")
    others = [row("JAX", 1.0, ours.cell), row("copy", 0.1, ours.cell)]
    (duel,) = [d for d in page.duels([ours, row("JAX", 0.25, gradient), *others])
               if d.cell.memory == "existing"]  # fmt: skip
    text = page.cause(duel, page.times([ours, row("JAX", 0.25, gradient), *others]))
    assert text.endswith("the fastest, JAX, takes 2.00× as long")


def test_a_file_for_each_cpu(tmp_path: Path) -> None:
    """What is timed again takes the place of what was; all else stays."""
    page.add(tmp_path, rows(), FACTS)
    path = page.add(tmp_path, [row("mishkit", 0.2), row("torch", 2.0)], {**FACTS, "date": "later"})
    assert path == tmp_path / "zen-avx2.csv"
    page.add(tmp_path, rows(), {**FACTS, "cpu": "AMD EPYC (Zen 5)"})
    first, second = page.machines(tmp_path)
    assert (first.name, second.name) == ("AMD EPYC (Zen 5), avx2", "Zen, avx2")
    assert list(first.rows) == rows() and second.facts["date"] == "later"
    same = [r for r in second.rows if page._work(r) == page._work(row("mishkit", 1.0))]
    assert [(r.peer, r.min) for r in same] == [("mishkit", 0.2), ("torch", 2.0)]
    others = [r for r in rows() if page._work(r) != page._work(row("mishkit", 1.0))]
    assert [r for r in second.rows if r not in same] == others


def test_ranges_are_over_cpus() -> None:
    cell = ("mish", "float32", "forward", "existing", 1 << 16, 1)
    quick, slow = (
        machine(cpu, [row("mishkit", ours, cell), row("torch", 3.0, cell)])
        for cpu, ours in (("Zen", 0.1), ("Core", 0.3))
    )
    assert "| mishkit, ns | 0.10–0.30 |" in page.table([quick, slow])
    assert "| torch | 10–30 |" in page.table([quick, slow])
    assert "| torch | 30 |" in page.table([quick])
    assert "| mish | 10–30 × torch |" in page.leads([quick, slow], "float32")


def test_the_page() -> None:
    text = page.page([machine(), machine("Core")], "peers.svg", "results", "behind.csv")
    assert "[Zen](results/Zen.csv)" in text and "[Core](results/Core.csv)" in text
    assert "| ONNX Runtime | – | – | 0.96 | – | – |" in text
    assert "- **ncnn**, on Zen, avx2: absent: No module named 'ncnn'\n" in text
    assert "no bfloat16" not in text  # the files have what others don't offer
    assert (
        f"| {page.UNEXPLAINED} | mish, float32, forward, fresh, 64 Ki, 1 thread: oneDNN |" in text
    )
    assert "(behind.csv)" in text and "](peers.svg)" in text


def test_the_page_in_the_docs_is_that_of_the_results() -> None:
    links = ("figures/peers.svg", "results/peers", "results/peers-behind.csv")
    assert page.PAGE.read_text() == page.page(page.machines(page.RESULTS), *links)


def test_every_cell_in_which_another_is_faster_is_in_a_file(tmp_path: Path) -> None:
    page.write_behind(tmp_path / "behind.csv", [machine()])
    lines = list(csv.DictReader((tmp_path / "behind.csv").read_text().splitlines()))
    assert len(lines) == len(page.behind(page.duels(rows())))
    assert (lines[0]["cpu"], lines[0]["ratio"], lines[0]["faster"]) == ("Zen", "2", "oneDNN")
    assert all(line["cause"] for line in lines)


def test_the_readme_gets_its_ranges(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("before\n\n<!-- peers: begin -->\nwhat was\n<!-- peers: end -->\n\nafter\n")
    columns = [("mish", "float32", *column, 1) for column in page._SHOWN]
    timed = [row("mishkit", 0.1, cell) for cell in columns]
    timed += [row("torch", 3.0, cell) for cell in columns]
    for _ in range(2):
        page.write_readme(path, [machine(timed=timed)])
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("\n\nafter\n") and "what was" not in text
    assert text.count("| mish | 30 | 30 | 30 | 30 |") == 1 and "Zen, avx2" in text
    path.write_text("no marks")
    with pytest.raises(ValueError, match="peers: begin"):
        page.write_readme(path, [machine(timed=timed)])


def test_the_figure(tmp_path: Path) -> None:
    cells = [("mish", "float32", "forward", "existing", size, 1) for size in (1 << 10, 1 << 16)]
    timed = [row(name, 0.1, cell) for name in (*page.LINES, "JAX") for cell in cells]
    page.draw([machine(timed=timed), machine("Core", timed)], tmp_path / "figures" / "peers.svg")
    root = ElementTree.parse(tmp_path / "figures" / "peers.svg").getroot()
    words = "".join(root.itertext())
    # Labels are text, in their place at the ends, and at most five.
    assert len(page.LINES) <= 5 and all(name in words for name in page.LINES)
    assert "JAX" not in words
    assert float(root.get("width", "").removesuffix("pt")) <= 390
    assert len(set(page.COLOURS[: len(page.LINES)])) == len(page.LINES)


def test_labels_do_not_overlap() -> None:
    places = page._apart([1.0, 1.0, 8.0, 1.1])
    assert places[0] == 1.0 and places[2] == 8.0
    assert min(b / a for a, b in itertools.pairwise(sorted(places))) > 1.3


def test_a_quick_run_leaves_the_files_alone() -> None:
    assert pages.DOCS not in peers.QUICK_RESULTS.parents


# ---- measuring ----


def test_page_faults_are_counted() -> None:
    resource = pytest.importorskip("resource")
    pages = 1000 * resource.getpagesize()
    assert page_faults(lambda: mmap.mmap(-1, pages).write(bytes(pages))) >= 1000
    assert page_faults(lambda: None) < 1000


class Absent(adapters.Adapter):
    def load(self) -> None:
        raise ImportError("No module named 'absent'")


class Wrong(adapters.Torch):
    def calls(self, work: Any) -> Any:
        return self.eager(work, "silu")


class Broken(adapters.Adapter):
    def calls(self, work: Any) -> Any:
        raise RuntimeError("no such kernel\nand more")


@pytest.fixture
def some(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [
        adapters.Mishkit("mishkit"), adapters.FromOutput("mishkit, from output"),
        adapters.Torch("torch"), Absent("absent"), Wrong("wrong"), Broken("broken"),
        adapters.Copy("copy"),
    ]  # fmt: skip
    monkeypatch.setattr(peers, "everyone", lambda: chosen)
    monkeypatch.setattr(peers, "seconds", lambda *_: 0.0)


@pytest.mark.usefixtures("some")
@pytest.mark.parametrize("dtype", mostly_slow(["float32", "bfloat16"], 1))
def test_who_is_timed(dtype: str) -> None:
    """Those that compute the function; the others are named with the reason."""
    measured = peers.measure(torch.get_num_threads(), ["mish"], [dtype], [256], 1.0)
    timed = {(r.peer, r.direction, r.memory) for r in measured if not r.note}
    forward = {
        (p, "forward", m) for p in ("mishkit", "torch", "copy") for m in ("fresh", "existing")
    }
    assert timed == forward | {
        ("mishkit", "backward", "fresh"),
        ("mishkit, from output", "backward", "fresh"),
        ("torch", "backward", "fresh"),
        ("copy", "backward", "fresh"),
        ("copy", "backward", "existing"),
    }
    notes = {r.peer: r.note for r in measured if r.note}
    assert notes["absent"] == "absent: No module named 'absent'"
    assert notes["broken"] == "failed: no such kernel"
    assert notes["wrong"].startswith("another function: off by ")
    assert all(r.samples >= 3 and 0 < r.min <= r.median for r in measured if not r.note)


@pytest.mark.parametrize("name", adapters.FUNCTIONS)
def test_the_reference_is_ours(name: str) -> None:
    """Jumps of the derivative, where everyone has a convention, are left out."""
    for direction in ("forward", "backward"):
        work = adapters.Work.of(name, torch.float32, direction, 512, 1)
        for _, call in adapters.Mishkit("mishkit").calls(work):
            assert peers.errors_of(call, work).worst < 1e-6
    knots = torch.tensor([-3.0, -2.0, 0.0, 3.0])
    at = dataclasses.replace(work, x=knots, grad=torch.ones(4)).exact(slice(None))
    jumps = {"hardswish": [0, 3], "h_mish": [1], "relu": [2]}.get(name, [])
    assert [i for i, value in enumerate(at.tolist()) if math.isnan(value)] == jumps


def test_what_is_not_written_shows() -> None:
    work = adapters.Work.of("mish", torch.float32, "forward", 64, 1)
    assert math.isnan(peers.errors_of(adapters._into(work, lambda: None), work).rms)


def test_a_process_is_told_its_threads() -> None:
    single, double = peers.settings_of(1), peers.settings_of(2)
    assert (single["OMP_NUM_THREADS"], double["NPROC"]) == ("1", "2")
    assert "multi_thread_eigen=false" in single["XLA_FLAGS"]


def test_the_clock_of_the_processor_leaves_out_sleep() -> None:
    import time

    call = Call(lambda: time.sleep(2e-3), most_calls=1)
    assert call.sample(1, PROCESSOR) < 1e6 < call.sample(1)
    timing = round_robin({"a": call}, seconds=0, least=2, clock=PROCESSOR)["a"]
    assert timing.min < 1e6


def test_what_is_installed() -> None:
    timm = installer.Requirement("timm>=1.0")
    alone, others = installer.commands(timm, "torch==2")
    assert alone[2:] == ["--no-deps", "timm>=1.0", "torchvision"] and "torch==2" in others
    (command,) = installer.commands(installer.Requirement("jax>=0.4"), "torch==2")
    assert command == ["install", "-qq", "torch==2", "jax>=0.4"]


# ---- published tables ----


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_published, "SHAPE", (2, 3, 4, 5))
    monkeypatch.setattr(_published, "RUNS", 5)
    monkeypatch.setattr(_published, "WARM_RUNS", 0)
    monkeypatch.setattr(_published, "SIZE", 3000)
    monkeypatch.setattr(_published_cpu, "SECONDS", 0.0)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # seconds


@pytest.mark.usefixtures("tiny")
def test_like_mish_cuda() -> None:
    command = ["bench", "--like", "mish-cuda", "--dtype", "float32", "--threads", "1"]
    said = CliRunner().invoke(app, command).output
    assert "mish-cuda's table: torch.float32, (2, 3, 4, 5), 1 thread, over 5 runs" in said
    lines = [line for line in said.splitlines() if "±" in line]
    assert len(lines) == 2 * 11
    assert lines[0].split()[0] == "relu_fwd:" and " (" in lines[0] and " – " in lines[0]


@pytest.mark.usefixtures("tiny")
def test_like_hmish() -> None:
    """The scalar and the vector column are our least and our best instruction set."""
    before = cpu.isa()
    command = ["bench", "--like", "hmish", "--dtype", "float32", "--threads", "1"]
    lines = CliRunner().invoke(app, command).output.splitlines()
    assert cpu.isa() == before
    heads = [line for line in lines if line.startswith("Implementation")]
    columns = [cell.strip() for cell in heads[0].split("|")]
    isas = dict.fromkeys([cpu.isas()[0], cpu.isas()[-1]]) if cpu.isas() else {"plain torch": None}
    assert columns == ["Implementation", *(f"Time ({isa})" for isa in isas), "L2norm", ""]
    assert len(heads) == 2
    errors = {
        line.split("|")[0].strip(): line.split("|")[-2].strip() for line in lines if "|" in line
    }
    assert [errors[name] for name in ("relu", "relu_grad", "hmish_train_fwd")] == ["N/A"] * 3
    assert 0 < float(errors["hmish"]) < 1e-4
    assert 0 < float(errors["hmish_bwd"]) < 1e-2


@pytest.mark.usefixtures("tiny")
def test_errors_are_those_of_the_function() -> None:
    """Not of another: a wrong one would be off by far more."""
    a = ACTIVATIONS["mish"]
    rows, exact, x = _published_cpu._hmish_rows(a, torch.float32)
    y = rows["mish"]()
    assert _published.l2_error(y, exact["mish"], x) < 1e-2
    assert _published.l2_error(y + 1, exact["mish"], x) > 1


@pytest.mark.parametrize(("table", "settings"), [("others", {}), ("hmish", {"device": "cuda"})])
def test_misuse(table: str, settings: dict[str, Any]) -> None:
    with pytest.raises(LabError, match="--like"):
        _published_cpu.main(table, BenchSettings(**settings))


# ---- whole networks ----


def net_row(network: str, variant: str, step: float, peak: int | None) -> Any:
    return networks.Row(network, variant, networks.KEPT, step, 2 * step, 7, 0.0, 1.0, 1.5, peak)


def test_the_bars_of_networks(tmp_path: Path) -> None:
    facts = dict.fromkeys(networks._FACTS, "x")
    rows = [
        net_row("seven_layers", networks.RELU, 10.0, 1000),
        net_row("seven_layers", networks.OURS, 10.4, 1050),
        net_row("resnet18", networks.RELU, 10.0, None),
        net_row("resnet18", networks.OURS, 10.6, None),
        networks.Row("resnet18", networks.OURS, networks.DEFAULT, 14.0, 15.0, 9, 3072.0),
    ]
    networks.write(tmp_path / "n.csv", [(row, facts) for row in rows])
    lines = networks.read(tmp_path / "n.csv")
    assert [row for row, _ in lines] == rows
    words = [(v.measured, v.word) for v in networks.verdicts(rows)]
    assert words == [
        ("1.040× of minima, 1.040× of medians", "met"),
        ("1.050×", "MISSED"),
        ("1.060× of minima, 1.060× of medians", "MISSED"),
        ("not measured", "–"),
    ]
    text = networks.page(lines)
    assert "## seven_layers, 64×1×28×28" in text and "| 1.050 |" in text
    assert f"| resnet18 | {networks.OURS} | 15.00 | 3,072 | 21.20 | 0 |" in text


def test_networks_differ_by_their_activation_alone() -> None:
    first, image = networks.build(networks.SEVEN, networks.RELU)
    for variant, make in networks.VARIANTS.items():
        model, same = networks.build(networks.SEVEN, variant)
        kinds = [type(m) for m in model.modules() if isinstance(m, type(make()))]
        assert len(kinds) == 7
        torch.testing.assert_close(same, image)
        for ours, theirs in zip(model.parameters(), first.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)
    networks.training(model, image[:2])()
    assert networks.inference(model, image[:2])().shape == (2, networks.CLASSES)


def test_replacing_reaches_every_child() -> None:
    model = torch.nn.Sequential(
        torch.nn.ReLU(), torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Tanh())
    )
    assert networks.replace(model, torch.nn.ReLU, torch.nn.Mish) == 2
    assert [type(m).__name__ for m in model.modules()][1:] == ["Mish", "Sequential", "Mish", "Tanh"]
