"""The sweep over every float32: what counts the errors, what is resumed, and the report."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import pairwise
from pathlib import Path

import mpmath
import numpy as np
import pytest
import references
import torch
from common import DEFAULTS, KERNELS, Case, every_function, mostly_slow
from typer.testing import CliRunner

from mishkit.backends import cpu
from mishkit.functions import ACTIVATIONS
from mishkit.lab import Interrupted, LabError
from mishkit.lab.accuracy import exhaustive
from mishkit.lab.accuracy import sampled as accuracy
from mishkit.lab.accuracy.exhaustive import ALL_ROWS, DF_ROWS, ROWS, Block, Rows, Settings
from mishkit.lab.accuracy.references import Reference
from mishkit_cli import app

pytestmark = pytest.mark.skipif(not KERNELS, reason="the kernels were not built")

SPANS = ((0x3F7F_FF00, 0x3F80_1100), (0xBF98_A100, 0xBF98_A500), (0xFFFF_FF00, 1 << 32))
"""About 1; about mish's turn; and NaNs."""


def reference_of(case: Case) -> Reference:
    return Reference(case.a, case.parameters)


def empty(count: int) -> Rows:
    rows = np.zeros((count, 4))
    rows[:, 1] = math.nan
    return rows


RUN = 64


def some(case: Case) -> torch.Tensor:
    """Runs of consecutive float32 from many places, and beside the turn."""
    random = np.random.default_rng(0)
    starts = random.integers(0, exhaustive.INFINITY - RUN, 20)
    near = np.float32([case.turn or 0.5, -0.5, 1, -3, -20]).view(np.uint32).astype(np.int64) - 32
    runs = [s + np.arange(RUN) for s in [*starts, *(starts | 1 << 31), *near, 0, 1 << 31]]
    return torch.from_numpy(np.concatenate(runs).astype(np.uint32).view(np.float32))


# ---- what counts ---------------------------------------------------------------------------------


def in_numpy(
    x: np.ndarray,
    y: np.ndarray,
    gradient: np.ndarray,
    decoded: np.ndarray,
    *exactly: np.ndarray,
    turn: float,
) -> tuple[Rows, np.ndarray]:
    """The rows of csrc/errors.cpp, by its definitions."""
    rows = empty(len(ROWS))

    def add(name: str, errors: np.ndarray, which: np.ndarray) -> None:
        errors, at = np.where(np.isnan(errors), np.inf, errors)[which], at_all[which]
        if errors.size:
            row = rows[ROWS.index(name)]
            row[2:] = errors.sum(), errors.size
            if errors.max() > 0:
                row[:2] = errors.max(), at[errors.argmax()]

    after, y_after = x[1:].astype(float), y[1:].astype(float)
    x, y, gradient, decoded = (a[:-1].astype(float) for a in (x, y, gradient, decoded))
    f, df, d2f = (a[:-1] for a in exactly)
    at_all, right = x, x > turn
    everywhere = np.ones(x.size, bool)

    def in_tail(value: np.ndarray) -> np.ndarray:
        return np.abs(value) < np.maximum(accuracy.TAIL_F, np.abs(x) * accuracy.TAIL_WEIGHT)

    def overflows(value: np.ndarray, result: np.ndarray) -> np.ndarray:
        return (np.abs(value) > np.finfo(np.float32).max) & (result == np.copysign(np.inf, value))

    def distance(result: np.ndarray, value: np.ndarray) -> np.ndarray:
        return np.where(overflows(value, result), 0, np.abs(result - value))

    unit, tail = accuracy.ulp(f, "float32"), in_tail(f)
    add("f_ulp", distance(y, f) / unit, ~tail)
    add("f_abs", distance(y, f), ~tail)
    add("tail", distance(y, f), tail)

    fall = np.where((after > x) == right, y - y_after, y_after - y)
    falls = (fall > 0) & (right == (after > turn))
    add("falls", fall / unit, falls & ~tail)
    add("tail_falls", fall, falls & tail)

    scale = np.maximum(np.abs(df), 1)
    add("df_abs", distance(gradient, df) / scale, everywhere)
    in_ulp = distance(gradient, df) / accuracy.ulp(df, "float32")
    place = 1 - np.frexp(np.clip(np.abs(df), 2.0**-10, 1))[1]  # 2⁻¹ is 0.5·2⁰
    for row, name in enumerate(DF_ROWS):
        add(name, in_ulp, (place == row) & ~in_tail(df))
    add("df_far", in_ulp, (np.abs(x - turn) >= 1) & ~in_tail(df))

    def decode(output: np.ndarray) -> np.ndarray:
        square = df * df + 2 * d2f * (output - f)
        size = np.sqrt(np.where(square > 0, square, 0))
        return np.where(right, size, -size)

    told = ~overflows(f, y)
    add("df_y", np.abs(decoded - df) / scale, told)
    beyond = np.abs(decoded - decode(y)) / scale
    half = accuracy.ulp(y, "float32") / 2
    ends = decode(y - half), decode(y + half)
    outside = np.maximum(np.minimum(*ends) - decoded, decoded - np.maximum(*ends)) / scale
    beyond = np.where(beyond <= accuracy.BAR_DF_Y, beyond, np.maximum(outside, 0))
    near = beyond <= accuracy.BAR_DF_Y
    add("df_y_beyond", beyond, near & told)
    return rows, np.flatnonzero(~near & told)


FLAWS = ("none", "f", "f in places", "nan", "inf", "df", "df_y")


@pytest.mark.parametrize("flaw", FLAWS)
@every_function
def test_errors_are_counted_as_in_numpy(case: Case, flaw: str) -> None:
    reference, x = reference_of(case), some(case)
    exactly = x.double()
    f, df, d2f = reference.f(exactly), reference.df(exactly), reference.d2f(exactly)
    y, gradient, decoded = f.float(), df.float(), reference.df_of_output(f, exactly).float()
    torch.manual_seed(1)
    places = torch.rand(x.numel()) < 0.01
    if flaw == "f":
        y = y * (1 + 3e-7)
    elif flaw == "f in places":
        y = torch.where(places, y * (1 + 3e-6), y)
    elif flaw in ("nan", "inf"):
        y[77], gradient[78], decoded[79] = (float(flaw),) * 3
    elif flaw == "df":
        gradient = torch.where(places, gradient + 1e-5, gradient)
    elif flaw == "df_y":
        decoded = torch.where(places, decoded - 1e-3, decoded)
    turn = -math.inf if case.turn is None else float(np.float32(case.turn))
    tensors = (x, y, gradient, decoded, f, df, d2f)
    got, want, far = empty(len(ROWS)), empty(len(ROWS)), []
    for run in zip(*(t.split(RUN) for t in tensors), strict=True):
        places = exhaustive.add_errors(got, *run, exhaustive.rules(reference)).tolist()
        with np.errstate(invalid="ignore"):
            rows, want_places = in_numpy(*(t.numpy() for t in run), turn=turn)
        want = exhaustive.merged(want, rows)
        assert places == want_places.tolist()
        far += run[0][places].tolist()
    for name, ours, theirs in zip(ROWS, got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-300, err_msg=name)
    row = dict(zip(ROWS, got[:, 0], strict=True))
    if flaw == "nan":
        assert row["f_ulp"] == row["df_abs"] == math.inf and x[79] in far
    if flaw == "df_y" and case.a.name != "relu":
        assert len(far) > 5


def test_differences_are_counted() -> None:
    x = torch.tensor([1.0, -0.0, 3.0, 4.0, -100.0, 6.0, 7.0])
    a = torch.tensor([1.0, -0.0, math.nan, 4.0, 1e-40, 6.0, 0.0])
    b = torch.tensor([1.0, 0.0, math.nan, 4.0 + 2.0**-20, 0.0, math.nan, 9.0])
    rows = empty(2)
    rule = exhaustive.rules(reference_of(Case(ACTIVATIONS["mish"], ())))
    exhaustive.add_differences(rows, x[:-2], a[:-2], b[:-2], a[:-2].double(), rule)
    np.testing.assert_array_equal(rows[0], [2, 4, 1, 3])  # −0 is in the tail
    np.testing.assert_array_equal(rows[1], [2.0**-20, 4, 2, 4])
    exhaustive.add_differences(rows, x, a, b, None, rule)
    assert rows[1, 0] == math.inf and rows[1, 1] == 6 and rows[1, 2] == 6


# ---- what it is counted against ------------------------------------------------------------------


def hard_points(case: Case) -> list[float]:
    """Float32 beside the turn, beside 0 and beside the joints, and in both tails."""
    turn = -1.0 if case.turn is None else case.turn
    beside = [np.float32(turn)]
    for step in (-1, 1):
        x = np.float32(turn)
        for _ in range(3):
            x = np.nextafter(x, np.float32(step * 9), dtype=np.float32)
            beside.append(x)
    beside += [turn + s * 2.0**-e for e in range(1, 21, 3) for s in (-1, 1)]
    small = [s * 10.0**e for e in (-38, -30, -12, -7, -4, -2) for s in (-1, 1)]
    joints = [at + d for at in (-3, -2, 0, 2, 3) for d in (-1e-6, 1e-6)]
    tails = [
        -4.9,
        -7.879,
        -11.5,
        -12.76,
        -13.8,
        -16.6,
        -40.1,
        -86.9,
        -87.4,
        -103.5,
        9.1,
        20.5,
        88.8,
    ]
    return [float(np.float32(x)) for x in (*beside, *small, *joints, *tails)]


@pytest.mark.parametrize("case", mostly_slow(DEFAULTS, DEFAULTS[-6:]), ids=str)
def test_reference(case: Case) -> None:
    """A hundredth of an ULP at most, where ULP are counted; f'' only corrects the inverse."""
    points = hard_points(case)
    assert len(points) >= 50
    x, name = torch.tensor(points, dtype=torch.float64), case.a.name
    reference = reference_of(case)
    with mpmath.workdps(references.DIGITS):
        for at, f, df, d2f in zip(
            points,
            *(g(x).tolist() for g in (reference.f, reference.df, reference.d2f)),
            strict=True,
        ):
            true, slope = references.f(name, at), references.df(name, at)
            assert abs(f - true) <= 1e-12 * abs(true) + 1e-43, at
            tail = max(accuracy.TAIL_F, abs(at) * accuracy.TAIL_WEIGHT)
            far = case.turn is None or abs(at - case.turn) > 0.1
            assert abs(df - slope) <= (1e-10 * abs(slope) + tail if far else 1e-14), at
            if abs(d2f - references.df(name, at, order=2)) > 1e-9:  # at a joint, one of its sides
                sides = [references.df(name, at + side, order=2) for side in (-1e-3, 1e-3)]
                assert at == round(2 * at) / 2 and min(sides) - 1e-2 <= d2f <= max(sides) + 1e-2, at


@every_function
def test_inverse_to_the_second_order(case: Case) -> None:
    """As C++ has it, against Newton's method: off by a twentieth of the bar at most."""
    reference = reference_of(case)
    bend = torch.randn(25_000, generator=torch.Generator().manual_seed(0)) * 4
    x = torch.cat([bend, (case.turn or 0) + 1e-3 * bend, some(case)])
    # Beside a joint another piece may begin within a rounding of y.
    joints = torch.tensor([-3.0, -2.0, 0.0, 2.0, 3.0])
    x = x[((x[:, None] - joints).abs().amin(1) > 1e-6) & (x.abs() < 1e4)]
    # Where f is flat, outputs that are off belong to inputs elsewhere.
    x = x[(reference.df(x.double()) != 0) | (reference.f(x.double()) == 0)]
    exactly = x.double()
    f, df, d2f = reference.f(exactly), reference.df(exactly), reference.d2f(exactly)
    for off in (-1e-7, 0, 1e-7):
        y = (f * (1 + off)).float()
        decoded = reference.df_of_output(y.double(), exactly).float()
        rows = empty(len(ROWS))
        far = exhaustive.add_errors(
            rows, x, y, df.float(), decoded, f, df, d2f, exhaustive.rules(reference)
        )
        assert not far.numel()
        # Rounding a slope of up to 2 to float32 takes 6e−8.
        assert rows[ROWS.index("df_y_beyond"), 0] <= accuracy.BAR_DF_Y / 20 + 6e-8


# ---- blocks and progress -------------------------------------------------------------------------


def test_blocks_hold_every_bit_pattern_but_infinity() -> None:
    spans = sorted(exhaustive.blocks(Settings.spans))
    assert sum(stop - start for start, stop in spans) == 2**32 - 2
    gaps = [(a[1], b[0]) for a, b in pairwise(spans) if a[1] != b[0]]
    inf, minus = exhaustive.INFINITY, exhaustive.MINUS_INFINITY
    assert gaps == [(inf, inf + 1), (minus, minus + 1)]
    assert (spans[0][0], spans[-1][1]) == (0, 1 << 32)


def settings(path: Path, **changes: object) -> Settings:
    small = Settings(
        ("mish", "relu"), spans=SPANS, block=700, processes=1, progress=path / "progress.json"
    )
    return dataclasses.replace(small, **changes)


def silent(name: str, done: int) -> None:
    pass


def same(a: dict[str, exhaustive.Swept], b: dict[str, exhaustive.Swept]) -> None:
    assert list(a) == list(b)
    for name, swept in a.items():
        assert swept.blocks == b[name].blocks
        np.testing.assert_array_equal(swept.rows, b[name].rows)


def test_an_interrupted_sweep_goes_on(tmp_path: Path) -> None:
    whole, begun = (settings(tmp_path, progress=tmp_path / name) for name in ("whole", "begun"))
    want = exhaustive.run(whole, silent)
    told = 0

    def stop(name: str, done: int) -> None:
        nonlocal told
        told += bool(done)
        if told == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exhaustive.run(begun, stop)
    kept = json.loads(begun.progress.read_text())["functions"]
    assert sum(blocks for blocks, *_ in kept.values()) == 9
    total = 0

    def count(name: str, done: int) -> None:
        nonlocal total
        total += done

    same(exhaustive.run(begun, count), want)
    assert total == 2 * sum(stop - start for start, stop in SPANS)
    same(exhaustive.run(begun, silent), want)  # there is nothing left to do
    assert not list(tmp_path.glob("*.new"))


def test_a_function_named_twice_is_swept_once(tmp_path: Path) -> None:
    swept = exhaustive.run(settings(tmp_path, functions=("relu", "relu")), silent)
    assert swept["relu"].blocks == len(exhaustive.blocks(SPANS, 700))


def test_processes_change_nothing(tmp_path: Path) -> None:
    by_one = exhaustive.run(settings(tmp_path), silent)
    by_two = exhaustive.run(settings(tmp_path, processes=2, progress=tmp_path / "two.json"), silent)
    same(by_one, by_two)


@pytest.mark.skipif(len(KERNELS) < 2, reason="one instruction set alone")
def test_the_progress_of_another_sweep_is_refused(tmp_path: Path) -> None:
    first = settings(tmp_path, functions=("relu",))
    exhaustive.run(first, silent)
    for other in (
        dataclasses.replace(first, isa=cpu.isas()[0]),
        dataclasses.replace(first, block=800),
    ):
        with pytest.raises(LabError, match="another sweep"):
            exhaustive.run(other, silent)
    kept = json.loads(first.progress.read_text())
    kept["what"]["version"] = "0.0.0"
    first.progress.write_text(json.dumps(kept))
    with pytest.raises(LabError, match=r"version '0\.0\.0'"):
        exhaustive.run(first, silent)
    for broken in (
        "",
        "[]",
        "{}",
        '{"what": {}, "functions": []}',
        json.dumps({**kept, "functions": {"relu": 3}}),
    ):
        first.progress.write_text(broken)
        with pytest.raises(LabError, match="holds no progress"):
            exhaustive.run(first, silent)


# ---- the figures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_a_sweep_finds_what_the_sweep_with_a_stride_does(case: Case) -> None:
    start = 0xBF40_0000
    rows = exhaustive.sweep(Block(case.a.name, cpu.isa(), cpu.isa(), start, start + 3000))
    swept = exhaustive.Swept(1, 0.0, rows)
    x = torch.from_numpy(np.arange(start, start + 3000, dtype=np.uint32).view(np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy, "inputs", lambda dtype, stride: [x])
        patch.setattr(accuracy, "beside", lambda turn, count: x[:0])
        strided = accuracy.measure(case.a, "float32")
    for name, there in (
        ("f_ulp", strided.f_ulp),
        ("f_abs", strided.f_abs),
        ("tail", strided.tail_abs),
        ("df_abs", strided.df_abs),
        ("df_y", strided.decoder),
    ):
        here = swept.row(name)
        assert (here.max, here.count) == (there.max, there.count), name
        assert here.total == pytest.approx(there.total) and (here.at == there.at or there.max == 0)
    assert swept.row("df_y_beyond").max == pytest.approx(strided.df_y_abs.max, abs=1e-8)
    assert all(swept.row(name).total == 0 for name in ALL_ROWS if "differs" in name)


@pytest.mark.parametrize("case", [c for c in DEFAULTS if c.turn], ids=str)
def test_beside_the_minimum(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient from the output is held against that of the input, where it is off the furthest,
    and outputs that are others with sides against f."""
    size = int(np.float32(-case.turn).view(np.int32))
    turn = size | 1 << 31
    block = Block(case.a.name, cpu.isa(), cpu.isa(), turn - 3000, turn + 3000)

    def sweep() -> exhaustive.Swept:
        return exhaustive.Swept(1, 0.0, exhaustive.sweep(block))

    rows = sweep()
    assert 2e-5 < rows.row("df_y").max <= accuracy.BAR_FROM_OUTPUT
    assert rows.row("df_y_beyond").max <= accuracy.BAR_DF_Y
    assert 0.2 < rows.row("packed").max <= exhaustive.BAR_PACKED
    assert 0 < rows.row("packed").total < rows.row("packed").count == 6000
    packed = accuracy.Kernels.packed
    monkeypatch.setattr(
        accuracy.Kernels,
        "packed",
        lambda self, x: (packed(self, x)[0] * (1 + 2.0**-23), packed(self, x)[1]),
    )
    assert sweep().row("packed").max > exhaustive.BAR_PACKED


def test_nans_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    block = Block("mish", cpu.isa(), cpu.isa(), 0x7FC0_0000, 0x7FC0_9000)
    assert exhaustive.sweep(block)[ALL_ROWS.index("nan")].tolist()[2:] == [0, 0x9000]
    monkeypatch.setattr(accuracy.Kernels, "forward", lambda _, x: x.nan_to_num(nan=1.0))
    assert exhaustive.sweep(block)[ALL_ROWS.index("nan")].tolist()[2:] == [0x9000, 0x9000]


def test_far_gradients_are_inverted(monkeypatch: pytest.MonkeyPatch) -> None:
    """About hard_mish's joint the slopes of two pieces share an output; a wrong one is found."""
    start = int(np.float32(1.99999).view(np.uint32))
    block = Block("hard_mish", cpu.isa(), cpu.isa(), start, start + 500)
    row = ALL_ROWS.index("df_y_beyond")
    assert exhaustive.sweep(block)[row, 0] <= accuracy.BAR_DF_Y
    right = accuracy.Kernels.backward_packed
    monkeypatch.setattr(
        accuracy.Kernels, "backward_packed", lambda self, y, side: right(self, y, side) + 1e-4
    )
    assert exhaustive.sweep(block)[row, 0] == pytest.approx(1e-4, rel=1e-2)


# ---- the command ---------------------------------------------------------------------------------


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    status = exhaustive.main(settings(tmp_path, functions=tuple(ACTIVATIONS), markdown=page))
    said, written = capsys.readouterr().out, page.read_text()
    for name in ACTIVATIONS:
        assert f" {name} " in said and f" {name} " in written
    assert status == ("MISSED" in said) and "bars met" in written and cpu.compiler() in written


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exhaustive, "run", stop)
    with pytest.raises(Interrupted, match=r"the same command goes on from .*progress\.json"):
        exhaustive.main(settings(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--exhaustive", "mush"], "unknown function 'mush'"),
        (["--exhaustive", "--stride", "3"], "--stride does not go with --exhaustive"),
        (["--exhaustive", "--backend", "torch"], "--backend does not go with --exhaustive"),
        (["mish", "--resume", "x.json"], "--resume needs --exhaustive"),
        (["--exhaustive", "--markdown", "setup.py/page.md"], "setup.py is no folder"),
        (["--exhaustive", "--compare-isa", "mmx"], "unknown instruction set 'mmx'"),
    ],
)
def test_misuse(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["accuracy", *arguments])
    assert result.exit_code == 1 and said in result.stderr
