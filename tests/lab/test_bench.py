"""`mishkit bench` without its clock: rows come out, and ratios follow from given samples."""

from __future__ import annotations

import csv
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from common import ROOT, shared
from typer.testing import CliRunner

from mishkit.functions import ACTIVATIONS
from mishkit.lab import Interrupted, LabError
from mishkit.lab.bench import cases as _bench_cases
from mishkit.lab.bench import cpu as bench
from mishkit.lab.bench import cpu_bars as _bench_bars
from mishkit.lab.bench import results as _bench_results
from mishkit.lab.bench.cpu_bars import BARS, L2, L3, MEMORY
from mishkit.lab.bench.results import Key, Results, add_to, read_csv, write_csv
from mishkit.lab.bench.settings import Settings, parse_numbers
from mishkit.lab.common.formats import size_name
from mishkit.lab.common.timing import Call, Timing, round_robin
from mishkit_cli import app

TINY = 64


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Every case of every function, on tensors too small to mean anything."""
    results = Results()
    results.timings.update(shared(tmp_path_factory, "bench", timings))
    return results


def timings() -> dict[Key, Timing]:
    by_key: dict[Key, Timing] = {}
    for name in ACTIVATIONS:
        for is_small in (True, False):
            group = bench.Group(name, "float32", TINY, 1, is_small)
            by_key.update(bench.time_group(group, share=1e-9))
    return by_key


def key(case: str, contender: str, function: str = "mish", size: int = L2) -> Key:
    return Key(function, "float32", case, size, contender)


def test_timing() -> None:
    timing = Timing([4.0, 1.0, 3.0, 2.0, 10.0])
    assert (timing.min, timing.median) == (1, 3)
    assert [timing.quantile(q) for q in (0, 0.25, 0.5, 0.6, 1)] == [1, 2, 3, pytest.approx(3.4), 10]


def test_round_robin_takes_turns() -> None:
    said: list[str] = []
    calls = {
        name: Call(lambda name=name: said.append(name), most_calls=1) for name in ("a", "b", "c")
    }
    timings = round_robin(calls, seconds=0, least=4)
    assert [len(timing.samples) for timing in timings.values()] == [4, 4, 4]
    rounds = [name for name, before in zip(said, [None, *said], strict=False) if name != before]
    assert "".join(rounds).endswith("abcabcabcabc")


def test_a_call_is_prepared_before_every_sample() -> None:
    said: list[str] = []
    call = Call(lambda: said.append("run"), lambda: said.append("prepare"), most_calls=5)
    call.sample(2)
    assert said == ["prepare", "run", "run", "run"]  # the first is not timed


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_case_comes_out(name: str, measured: Results) -> None:
    a = ACTIVATIONS[name]
    ours = {k.case for k in measured.timings if k.function == name and k.contender == "mishkit"}
    assert ours == set(_bench_cases.CASES) - (set() if a.turn else {_bench_cases.PACKED})
    twin = _bench_cases.contenders(a).get(_bench_cases.TWIN)
    for case in ours:
        mine = key(case, "mishkit", name, TINY)
        assert measured.ratio(mine, mine._replace(contender="relu")) is not None
        has_twin = measured.ratio(mine, mine._replace(contender="torch")) is not None
        lacks = case == _bench_cases.IN_PLACE and twin is not None and twin.in_place is None
        assert has_twin == (twin is not None and not lacks)
        by_formula = measured.ratio(mine, mine._replace(contender=_bench_cases.EXPRESSION))
        is_forward = _bench_cases.SAME_WORK.get(case, case) == _bench_cases.FORWARD
        assert (by_formula is not None) == (is_forward and _bench_cases.expression(a) is not None)


def test_who_is_in_torch_is_a_peer() -> None:
    assert {name for name, a in ACTIVATIONS.items() if a.torch_function} <= set(_bench_cases.PEERS)


def test_the_peers_are_the_same_functions() -> None:
    """A twin that computes something else would make any ratio worthless."""
    x, g = (
        _bench_cases.normal(TINY, torch.float32, 0),
        _bench_cases.normal(TINY, torch.float32, 1),
    )
    for name, peer in _bench_cases.PEERS.items():
        a = ACTIVATIONS[name]
        y = a.f(x, *a.defaults)
        torch.testing.assert_close(peer.forward(x), y)
        torch.testing.assert_close(peer.backward(g, x, y), g * a.df(x, *a.defaults))
        if peer.out is not None:
            out = torch.empty_like(x)
            peer.out(x, out=out)
            torch.testing.assert_close(out, y)
        if peer.in_place is not None:
            over = x.clone()
            peer.in_place(over)
            torch.testing.assert_close(over, y)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_expressions_are_the_same_functions(name: str) -> None:
    a, x = ACTIVATIONS[name], _bench_cases.normal(TINY, torch.float64, 0)
    by_formula = _bench_cases.expression(a)
    if by_formula is not None:
        torch.testing.assert_close(by_formula(x), a.f(x, *a.defaults))


def test_backward_through_autograd() -> None:
    """From 1 Mi on: the same gradient again and again, on a retained graph."""
    a, size = ACTIVATIONS["mish"], _bench_cases.OPERATOR_LIMIT
    calls = _bench_cases.large(a, torch.bfloat16, size)
    # Beside the minimum the gradient from a bfloat16 output is off by up to 0.014 times grad.
    for case in (_bench_cases.BACKWARD, _bench_cases.FROM_OUTPUT):
        first, again = (calls[case, "mishkit"].run()[0] for _ in range(2))
        torch.testing.assert_close(first, again)
        torch.testing.assert_close(
            first.float(), calls["backward", "torch"].run()[0].float(), atol=0.2, rtol=0.02
        )


def test_ratios() -> None:
    results = Results({key("forward", "mishkit"): Timing([1, 2, 9])})
    results.timings[key("forward", "torch")] = Timing([8, 12, 12])
    above, below = key("forward", "torch"), key("forward", "mishkit")
    assert results.ratio(above, below) == 8
    assert results.ratio(above, below, "median") == 6
    assert results.ratio(above, key("forward", "relu")) is None


def test_a_packed_forward_is_compared_with_a_forward() -> None:
    results = Results({key("forward, packed", "mishkit"): Timing([2])})
    results.timings[key("forward", "relu")] = Timing([1])
    mine = key("forward, packed", "mishkit")
    assert results.ratio(mine, mine._replace(contender="relu")) == 2


@pytest.mark.parametrize(
    ("ours", "theirs", "word"), [(1, 18, "met"), (1, 17.9, "MISSED"), (1, None, "–")]
)
def test_a_bar_from_below(ours: float, theirs: float | None, word: str) -> None:
    results = Results({key("forward", "mishkit"): Timing([ours, 5])})
    if theirs:
        results.timings[key("forward", "torch")] = Timing([theirs, 80])
    verdict = _bench_bars.faster(18, "forward", L2).verdict(results)
    assert verdict.word == word
    if word == "met":
        assert verdict.measured == "18× (16.3×)"  # medians 49 and 3


@pytest.mark.parametrize(("ours", "word"), [(1.05, "met"), (1.06, "MISSED")])
def test_a_bar_from_above(ours: float, word: str) -> None:
    results = Results({key("forward, out=", "mishkit", size=MEMORY): Timing([ours])})
    results.timings[key("forward, out=", "relu", size=MEMORY)] = Timing([1])
    assert _bench_bars.costs(1.05, "forward, out=", MEMORY).verdict(results).word == word


def test_every_bar_is_measured_by_the_default_run() -> None:
    timed = {
        (group.function, group.dtype, group.size, group.is_small)
        for group in bench.groups(Settings())
        if group.threads == 1
    }
    for bar in BARS:
        for k in (bar.above, bar.below):
            assert (k.function, k.dtype, k.size, k.case.startswith("call")) in timed, bar.claim
    assert {L2, L3, MEMORY} == set(Settings().sizes)


def test_csv(measured: Results, tmp_path: Path) -> None:
    write_csv(tmp_path / "bench.csv", measured)
    rows = list(csv.DictReader((tmp_path / "bench.csv").read_text().splitlines()))
    assert len(rows) == len(measured.timings)
    for row in rows:
        assert float(row["min"]) <= float(row["q25"]) <= float(row["median"]) <= float(row["q90"])
        assert row["torch"] and row["mishkit"] and row["cpu"] and row["isa"]
    assert {row["unit"] for row in rows} == {"ns/call", "ns/element"}


def test_the_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "QUICK", 1e-9)
    settings = Settings(["mish"], ["bfloat16"], sizes=[TINY], threads=[1], quick=True)
    assert bench.main(settings, tmp_path / "bench.csv") in (0, 1)
    said = capsys.readouterr().out
    for text in ("forward, out=: bfloat16, 1 thread", "÷relu", "torch÷", "not measured"):
        assert text in said


def test_an_interrupted_run_keeps_what_is_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "time_group", _interrupt)
    with pytest.raises(Interrupted, match="no bar was held"):
        bench.main(Settings(["mish"], sizes=[TINY]))
    said = capsys.readouterr().out
    assert "partial" in said and "bars met" not in said


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_numbers() -> None:
    assert parse_numbers("64Ki, 1Mi,16") == (65536, 1048576, 16)
    assert [size_name(n) for n in (65536, 16 << 20, 1000)] == ["64 Ki", "16 Mi", "1,000"]
    for wrong in ("64K", "Mi", "", "-1", "1.5Mi", "1kimi"):
        with pytest.raises(LabError):
            parse_numbers(wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"functions": ["mush"]}, {"dtypes": ["int8"]}, {"device": "mps"}, {"threads": [0]}],
)
def test_misuse(wrong: dict[str, object]) -> None:
    with pytest.raises(LabError):
        Settings(**wrong)  # type: ignore[arg-type]


# ---- the results of every CPU, and the page made of them ----


def test_results_of_the_same_work_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bench_results, "cpu_name", lambda: "AMD EPYC (Zen 5)")
    first = Results(
        {key("forward", "mishkit"): Timing([1.0]), key("forward", "torch"): Timing([9])}
    )
    first.timings[key("forward", "mishkit", size=L3)] = Timing([2.0])
    path = add_to(tmp_path / "new", first)
    assert path.name.startswith("amd-epyc-zen-5-")
    add_to(tmp_path / "new", Results({key("forward", "mishkit"): Timing([3.0])}))
    rows = [(row["contender"], row["size"], row["min"]) for row in read_csv(path)]
    assert rows == [("mishkit", str(L3), "2"), ("mishkit", str(L2), "3")]


@pytest.mark.parametrize("arguments", ["--quick", "--device cuda", "--neuron", "--like hmish"])
def test_what_is_no_whole_run_stays_out_of_the_results(arguments: str, tmp_path: Path) -> None:
    command = ["bench", "--results", str(tmp_path / "folder"), *arguments.split()]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1 and "--results" in done.output
    assert not (tmp_path / "folder").exists()


def page_of(name: str) -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_the_page_has_ranges_over_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = page_of("bench_page")
    for name, least in (("Zen 4", 0.3), ("Zen 5", 0.15)):
        monkeypatch.setattr(_bench_results, "cpu_name", lambda name=name: name)
        results = Results({key("forward", "mishkit"): Timing([least, 2 * least])})
        results.timings[key("forward", "torch")] = Timing([3.0, 3.0])
        results.timings[key("forward", "relu")] = Timing([0.1, 0.2])
        results.timings[key("forward", "mishkit", "h_mish")] = Timing([0.1])
        results.timings[key("forward", "expression", "h_mish")] = Timing([0.5])
        path = add_to(tmp_path / "bench", results)
    rows = page.machines(tmp_path / "bench")
    assert [machine.facts["cpu"] for machine in rows] == ["Zen 4", "Zen 5"]
    assert "| mish | 10–20 | – |" in page.over_torch(rows, "float32")
    assert "| h_mish | 5.0 | – |" in page.over_torch(rows, "float32")
    assert "| mish | 1.5–3.0 | – |" in page.over_relu(rows, "float32")
    assert "| 0.15 | 20 |" in page.mish_on(rows)
    assert "0 of 2 met" not in page.bars(rows) and "mish, forward, 64 Ki: faster" in page.bars(rows)
    # A median that was not kept can't be judged.
    path.write_text(path.read_text().replace(",3,3,", ",3,,"))
    assert "Zen 5" in page.bars(page.machines(tmp_path / "bench")).split("so no bars")[0]

    document = tmp_path / "page.md"
    marks = ("mish", "torch", "relu", "calls", "bars")
    document.write_text("".join(f"<!-- {m}: begin -->\n<!-- {m}: end -->\n" for m in marks))
    for _ in range(2):
        page.write(document, rows)
    assert document.read_text().count("| mish | 10–20 |") == 1


def test_the_page_is_that_of_the_results(tmp_path: Path) -> None:
    page = page_of("bench_page")
    document = tmp_path / "benchmarks.md"
    document.write_text((ROOT / "docs" / "benchmarks.md").read_text())
    page.write(document, page.machines(page.RESULTS))
    assert document.read_text() == (ROOT / "docs" / "benchmarks.md").read_text()
