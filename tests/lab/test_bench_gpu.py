"""`mishkit bench --device cuda` with made-up clocks: what is queued, printed, judged and written.

On a machine with a GPU the last test runs the command itself, small.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mishkit.functions import ACTIVATIONS
from mishkit.lab import Interrupted
from mishkit.lab.bench import command, gpu_device
from mishkit.lab.bench import gpu as _bench_gpu
from mishkit.lab.bench import gpu_neuron as _bench_gpu_neuron
from mishkit.lab.bench import published_gpu as _published
from mishkit.lab.bench.cases import working
from mishkit.lab.bench.gpu import BODIES, COMPILED, COPY, DOUBLE, share_of_copy, speed
from mishkit.lab.bench.gpu_device import Device, device, normal
from mishkit.lab.bench.neuron import BOTH, LINEAR, OURS, PLAIN
from mishkit.lab.bench.neuron import COMPILED as COMPILED_LAYER
from mishkit.lab.bench.results import FAMILY, Key, Results
from mishkit.lab.bench.settings import Settings
from mishkit.lab.code.roofline import H100
from mishkit.lab.common import gpu_timing as _gpu_timing
from mishkit.lab.common.gpu_timing import Stopwatch
from mishkit.lab.common.timing import Call, Timing
from mishkit_cli import app

GPU = Device("Testing GPU", "sm_90", 50 << 20, "CUDA 13.0")


class Stream:
    """What is queued, in order; the host queues without waiting until it asks for an event."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.clock = 0.0
        self.late = 0
        """How many samples will be late."""


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    recorded = Stream()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.at: float | None = None

        def record(self) -> None:
            recorded.said.append("event")
            recorded.clock += 1e-3
            self.at = recorded.clock

        def query(self) -> bool:
            recorded.said.append("query")
            recorded.late -= 1
            return recorded.late >= 0

        def synchronize(self) -> None:
            recorded.said.append("wait")

        def elapsed_time(self, end: Event) -> float:
            assert self.at is not None and end.at is not None
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(_gpu_timing, "FLUSH", 64)
    monkeypatch.setattr(Stopwatch, "flush", lambda self: recorded.said.append("flush"))
    return recorded


def says(stream: Stream, word: str, takes: float = 0.0) -> Callable[[], None]:
    def run() -> None:
        stream.said.append(word)
        stream.clock += takes

    return run


def test_a_sample_is_queued_whole_before_anyone_waits(stream: Stream) -> None:
    call = Call(says(stream, "call", 0.5), says(stream, "prepare"))
    time, is_late = Stopwatch("cpu", 0).sample(call, flushes=2)
    order = ["prepare", "flush", "flush", "event", "call", "event", "query", "wait"]
    assert stream.said == order
    assert time == pytest.approx(0.501e6) and not is_late  # nanoseconds, of milliseconds


def test_a_late_sample_is_taken_again_behind_more(stream: Stream) -> None:
    stream.late = 2
    timings = Stopwatch("cpu", 0).time({"a": Call(says(stream, "a"))}, rounds=2, warm=0)
    assert stream.said.count("flush") == 1 + 2 + 4 + 4  # what was enough is kept
    assert (len(timings["a"].samples), timings["a"].late) == (2, 0)
    stream.late = 1000
    timings = Stopwatch("cpu", 0).time({"a": Call(says(stream, "a"))}, rounds=3, warm=0)
    assert timings["a"].late == 3 and timings["a"].is_late


def test_everyone_has_a_turn_in_every_round(stream: Stream) -> None:
    names = "abc"
    calls = {name: Call(says(stream, name)) for name in names}
    timings = Stopwatch("cpu", 0).time(calls, rounds=3, warm=2)
    assert "".join(word for word in stream.said if word in names) == names * 5
    assert [len(timing.samples) for timing in timings.values()] == [3, 3, 3]


def test_the_flush_is_larger_than_the_caches() -> None:
    assert _gpu_timing.FLUSH >= 2 * (256 << 20)
    small = pytest.MonkeyPatch()
    with small.context() as patched:
        patched.setattr(_gpu_timing, "FLUSH", 64)
        stopwatch = Stopwatch("cpu", 1000)
    assert stopwatch._memory.nbytes == 4000
    stopwatch.flush()


def test_statistics() -> None:
    timing = Timing([1.0, 2.0, 6.0], late=1)
    assert (timing.mean, timing.std) == (3, statistics.stdev([1, 2, 6])) and not timing.is_late
    assert Timing([1.0]).std == 0


# ---- the functions ----


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch, stream: Stream) -> Stream:
    """The command as on a GPU, with this machine's tensors and nothing compiled."""
    for module, name, value in (
        *((module, "DEVICE", "cpu") for module in (gpu_device, _bench_gpu, _bench_gpu_neuron)),
        *((module, "device", lambda: GPU) for module in (_bench_gpu, _bench_gpu_neuron)),
        (_bench_gpu, "ROUNDS", 2),
        (_bench_gpu, "QUICK_ROUNDS", 2),
        (_bench_gpu, "WARM_ROUNDS", 0),
        (_bench_gpu_neuron, "QUICK_ROUNDS", 2),
        (_bench_gpu_neuron, "WARM_ROUNDS", 0),
        (_published, "SHAPE", (2, 3, 4, 5)),
        (_published, "RUNS", 10),
        (_published, "WARM_RUNS", 0),
        (_published, "SIZE", 3000),
        (_published, "CHUNK", 1000),
        (torch, "compile", lambda function, **_: function),
    ):
        monkeypatch.setattr(module, name, value)
    return stream


def test_every_case_does_what_it_says(on_cpu: Stream) -> None:
    """By values, for a function of torch's and one that is not."""
    for name in ("mish", "h_mish", "relu"):
        a = ACTIVATIONS[name]
        calls = dict(_bench_gpu.calls(a, torch.float32, 500))
        x, g, gg = (normal(500, torch.float32, seed) for seed in range(3))
        y, slope = a.f(x, *a.defaults), a.df(x, *a.defaults)
        bend = gg * g * a.d2f(x, *a.defaults)
        peers = {"relu", COMPILED, *({"torch"} if name == "mish" else set())}
        assert {c for _, c in calls} >= {"mishkit", COPY, *peers}
        for (case, contender), call in calls.items():
            results = [r for r in (call.run(), call.run()) for r in [r]]
            for result in results:
                first = result[0] if isinstance(result, tuple) else result
                if case == COPY:
                    torch.testing.assert_close(first, x)
                elif contender == "relu" and name != "relu":
                    continue
                elif case in ("forward", "forward, packed"):
                    torch.testing.assert_close(first, y)
                elif case == DOUBLE:
                    torch.testing.assert_close(first, gg * slope)
                    if result[1] is not None:
                        torch.testing.assert_close(result[1], bend, atol=1e-5, rtol=1e-5)
                else:
                    torch.testing.assert_close(first, g * slope, atol=1e-3, rtol=1e-3)


def test_who_fails_is_left_out_unless_it_is_ours() -> None:
    def fail() -> None:
        raise ValueError("no\nsuch thing")

    missing: list[str] = []
    calls = [(("forward", "torch.compile"), Call(fail)), (("forward", "relu"), Call(lambda: None))]
    assert list(working(calls, missing, "mish")) == [("forward", "relu")]
    assert missing == ["mish: no forward, torch.compile: no"]
    with pytest.raises(ValueError):
        working([(("forward", "mishkit"), Call(fail))], missing, "mish")


def test_without_memory_a_line_says_so(on_cpu: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(_bench_gpu, "normal", fail)
    results = Results()
    _bench_gpu.time_function(results, "mish", "float32", 1 << 20, Stopwatch("cpu", 0), 1)
    assert results.missing == ["mish, float32, 1 Mi: the GPU's memory does not suffice"]


def key(case: str, contender: str, function: str = "mish", dtype: str = "float32") -> Key:
    return Key(function, dtype, case, 1000, contender)


def test_speeds_and_shares() -> None:
    results = Results({key(COPY, COPY): Timing([8.0])})
    results.timings[key("forward", "mishkit")] = Timing([10.0, 30.0])
    results.timings[key("backward from output", "mishkit")] = Timing([20.0])
    results.timings[key("backward", "relu")] = Timing([10.0])
    assert speed(results, key(COPY, COPY)) == 1000  # bytes a nanosecond are GB/s
    assert speed(results, key("forward", "mishkit")) == 800
    assert share_of_copy(results, key("forward", "mishkit")) == 0.8
    packed = key("backward from output", "mishkit")
    assert speed(results, packed) == (12 + 1 / 8) * 1000 / 20
    assert results.ratio(packed, packed._replace(contender="relu")) == 2
    monotone = key("backward from output", "mishkit", "softplus", "bfloat16")
    assert _bench_gpu.bytes_per_element(monotone) == 6


def test_the_bars_are_of_the_worst_function_at_the_largest_size() -> None:
    results = Results()
    bar = next(b for b in _bench_gpu.BARS if (b.case, b.dtype) == ("forward", "float32"))
    assert bar.contender == "relu" and bar.verdict(results).word == "–"
    for function, time in (("mish", 1.0), ("gelu", 1.2)):
        results.timings[key("forward", "mishkit", function)] = Timing([time])
        results.timings[key("forward", "relu", function)] = Timing([1.0])
    verdict = bar.verdict(results)
    assert (verdict.word, verdict.measured) == ("MISSED", "1.20× (gelu)")
    for contender in ("mishkit", "relu"):
        larger = key("forward", contender)._replace(size=2000)
        results.timings[larger] = Timing([5.0])
    assert bar.verdict(results).word == "met"


def test_the_command(
    on_cpu: Stream,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        _bench_gpu, "rooflines", lambda s, gpu: {("mish", "backward_packed", "bfloat16"): 0.73}
    )
    path, functions = tmp_path / "gpu.csv", ["mish", "h_mish"]
    settings = Settings(functions, ["bfloat16"], sizes=[4000], device="cuda")
    assert command.main(settings, path) in (0, 1)
    said = capsys.readouterr().out
    for text in (
        "Testing GPU (sm_90), L2 cache 50 MiB",
        "bfloat16, 4,000 elements, within the L2 cache; copy",
        "of H100",
        "0.73",
        "mish-cuda's table: torch.bfloat16, (2, 3, 4, 5), over 10 runs",
        "mish_pt_fwd:",
        "mishkit_output_bwd:",
        "L2 norm of the error",
        "Bars",
    ):
        assert text in said, text
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert {row["table"] for row in rows} == {FAMILY, "mish-cuda", "errors"}
    cases = {r["case"] for r in rows if (r["contender"], r["table"]) == ("mishkit", FAMILY)}
    assert cases == set(BODIES)
    for row in rows:
        assert float(row["min"]) <= float(row["median"]) <= float(row["max"])
        assert row["device"] == "Testing GPU" and row["torch"]
        assert bool(row["share_of_copy"]) == (row["table"] == FAMILY)
        assert bool(row["l2_error"]) == (row["table"] == "errors")
    ratios = [row["paper"] for row in rows if row["paper"]]
    assert ratios == ["0.73"]


def test_an_interrupted_run_keeps_what_is_done(
    on_cpu: Stream, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_bench_gpu, "time_function", interrupt)
    settings = Settings(["mish"], device="cuda", quick=True)
    with pytest.raises(Interrupted):
        command.main(settings)
    said = capsys.readouterr().out
    assert "partial" in said and "bars met" not in said


def test_without_a_gpu_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments in ((), ("--neuron",), ("--quick", "--check")):
        done = CliRunner().invoke(app, ["bench", "--device", "cuda", *arguments])
        assert done.exit_code == 1
        assert done.stderr.startswith("mishkit: no GPU: ") and done.stderr.count("\n") == 1
        assert "--paper" in done.stderr
    done = CliRunner().invoke(app, ["bench", "--device", "cuda", "--paper", "--neuron"])
    assert done.exit_code == 1 and "does not go with --neuron" in done.stderr


@pytest.mark.parametrize(
    ("hip", "target", "like"),
    [(None, "sm_90", H100.name), ("7.0", "gfx942", "MI300X")],
)
def test_what_the_device_is(
    monkeypatch: pytest.MonkeyPatch, hip: str | None, target: str, like: str
) -> None:
    class Properties:
        name, major, minor, L2_cache_size = "some GPU", 9, 0, 1 << 20
        gcnArchName = "gfx942:sramecc+:xnack-"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda which: Properties)
    monkeypatch.setattr(torch.version, "hip", hip)
    gpu = device()
    assert gpu.target == target
    assert gpu.published is not None and gpu.published.name == like


# ---- the published tables ----


def test_times_are_written_as_there() -> None:
    words = [_published.time_words(t) for t in (621.8, 223_700, 1_135_000, 2.5e9)]
    assert words == ["621.8ns", "223.7µs", "1.135ms", "2.500s"]
    results = Results()
    timed = Key("mish", "float16", "forward", 10, "relu", table="mish-cuda")
    results.timings[timed] = Timing([223_000.0, 224_000.0])
    assert list(_published.mish_cuda_lines(results, "float16")) == [
        " relu_fwd: 223.5µs ± 707.1ns (223.0µs – 224.0µs)"
    ]


def test_the_published_functions_are_the_same() -> None:
    x = torch.linspace(-9, 9, 101)
    for name, function in _published.mish_cuda_functions().items():
        if "mish" in name and name not in ("mish_compile", "mishkit_silu", "mishkit_h_mish"):
            torch.testing.assert_close(function(x), ACTIVATIONS["mish"].f(x), msg=name)


def test_the_l2_error() -> None:
    x = torch.linspace(-1, 1, 2500)
    y = x + torch.where(x > 0.5, 2.0**-10, 0.0)
    count = int((x > 0.5).sum())
    error = _published.l2_error(y, lambda at: at, x)
    assert error == pytest.approx(math.sqrt(count) * 2.0**-10)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_forms_that_errors_are_of(name: str) -> None:
    a, x = ACTIVATIONS[name], torch.linspace(-6, 6, 200)
    for contender, (function, gradient) in _published.forms(a).items():
        torch.testing.assert_close(function(x), a.f(x, *a.defaults))
        got, want = gradient(torch.ones_like(x), x), a.df(x, *a.defaults)
        torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-4, msg=contender)


def test_errors_have_a_bar() -> None:
    results = Results()
    assert [v.word for v in _published.verdicts(results)] == ["–", "–"]
    ours = Key("mish", "float32", "forward", 10, "mishkit", table="errors")
    results.errors = {ours: 1.2, ours._replace(contender="torch"): 1.0}
    assert [v.word for v in _published.verdicts(results)] == ["MISSED", "–"]


# ---- the layer ----


def test_the_layer(
    on_cpu: Stream,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape = _bench_gpu_neuron.Shape(4, 6, 5)
    monkeypatch.setattr(_bench_gpu_neuron, "SHAPES", (shape,))
    memory = {OURS: 1000}
    monkeypatch.setattr(
        _bench_gpu_neuron, "memory_of", lambda layer, name: memory.get(name, 40_000)
    )
    path = tmp_path / "layer.csv"
    command = ["bench", "--device", "cuda", "--neuron", "--quick", "--csv", str(path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    for text in ("float16: APTxLayer(6, 5), batch 4", BOTH, "40×", "MISSED"):
        assert text in done.output, text
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert {row["contender"] for row in rows} == {OURS, PLAIN, COMPILED_LAYER, LINEAR}
    assert {row["table"] for row in rows} == {"4x6x5"}
    monkeypatch.setattr(_bench_gpu_neuron, "FITS", 1)
    results, memories = Results(), _bench_gpu_neuron.Memories()
    watch = Stopwatch("cpu", 0)
    _bench_gpu_neuron.measure(results, memories, shape, "float32", watch, 1)
    assert {k.contender for k in results.timings} == {OURS, LINEAR}


# ---- on a GPU ----


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(tmp_path: Path) -> None:
    path = tmp_path / "gpu.csv"
    command = ["bench", "--device", "cuda", "--quick", "-f", "mish", "--dtype", "float32"]
    done = CliRunner().invoke(app, [*command, "--sizes", "1Mi", "--csv", str(path)])
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert all(float(row["min"]) > 0 for row in rows)
