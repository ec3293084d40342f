"""`mishkit.analyze` and `mishkit explain`: what is claimed follows from the definitions alone."""

from __future__ import annotations

import functools
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import interpreters
import mpmath
import pytest
import references
import torch
from common import (
    DEFAULTS,
    KERNELS,
    SHAPES,
    TYPICAL,
    Case,
    every_function,
    mostly_slow,
)
from mpmath import mpf
from typer.testing import CliRunner

import mishkit
from mishkit.backends import cpu
from mishkit.bodies import BODIES
from mishkit.functions import ACTIVATIONS
from mishkit.lab import LabError
from mishkit.lab.calculus import cost
from mishkit.lab.calculus.analysis import Analysis, show
from mishkit.lab.calculus.analyze import analyze_named, curve_of, l2
from mishkit.lab.calculus.curve import Curve, parse
from mishkit.lab.code import machine as _machine_code
from mishkit.lab.common.named import Named, find, options
from mishkit_cli import app

# A kink, a bend, a jump of the second derivative, and an analysis that takes seconds each.
SOME = ("relu", "relu2", "elu", "softplus", "mish", "h_mish", "linear_swish", "aptx")
some_shapes = pytest.mark.parametrize(
    "case", mostly_slow(SHAPES, [case for case in DEFAULTS if case.a.name in SOME]), ids=str
)


def named(case: Case) -> Named:
    return Named(case.a, case.parameters)


@functools.cache
def curve(case: Case) -> Curve:
    return curve_of(named(case))


@functools.cache
def analysis(case: Case) -> Analysis:
    return analyze_named(named(case))


@functools.cache
def from_mish(text: str) -> Analysis:
    return analyze_named(find(text), find("mish"))


def analysis_of(text: str) -> Analysis:
    named = find(text)
    return analysis(Case(named.activation, named.values))


# ---- against the formulas of the library ----


@some_shapes
@pytest.mark.parametrize(("order", "formula"), [(0, "f"), (1, "df"), (2, "d2f")])
def test_derivatives_are_those_of_the_library(case: Case, order: int, formula: str) -> None:
    x = torch.linspace(-30.013, 30.013, 61, dtype=torch.float64)
    want = case.exactly(formula, x)
    got = [float(curve(case).at(mpf(float(at)), order)) for at in x]
    assert got == pytest.approx(want.tolist(), rel=1e-10, abs=1e-12)


@some_shapes
def test_digits(case: Case) -> None:
    """Values agree with the definition's to 30 digits, in the tails too."""
    for at in (-40.0, -7.3, -1.1, 0.6, 5.7, 33.0):
        with mpmath.workdps(100):
            exact = [mpf(str(value)) for value in case.parameters]
            got, want = curve(case).at(mpf(at)), references.function(case.a.name)(mpf(at), *exact)
            assert abs(got - want) <= mpf(10) ** -30 * abs(want) + mpf(10) ** -300


@pytest.mark.parametrize("case", mostly_slow(SHAPES, TYPICAL), ids=str)
def test_the_minimum_is_the_turn(case: Case) -> None:
    minima = analysis(case).minima
    try:
        turn = case.turn
    except ValueError:
        # Not exactly one minimum with f falling before it and rising behind.
        shape = analysis(case).shape
        assert len(minima) != 1 or not shape.quasiconvex
        return
    turns = [] if turn is None else [turn]
    assert [float(m.x) for m in minima] == pytest.approx(turns, rel=1e-14)
    for minimum in minima:
        y = case.exactly("f", torch.tensor(turn, dtype=torch.float64)).item()
        assert float(minimum.y) == pytest.approx(y, rel=1e-14)


@some_shapes
def test_limits_are_those_of_the_library(case: Case) -> None:
    ends = torch.tensor([-math.inf, math.inf], dtype=torch.float64)
    derived = analysis(case).ends
    assert [float(end.limit) for end in derived] == case.exactly("f", ends).tolist()
    slopes = case.exactly("df", ends).tolist()
    assert [float(end.slope) for end in derived] == pytest.approx(slopes, abs=1e-15)
    far = torch.tensor([-700.0, 700.0], dtype=torch.float64)
    for end, x, y in zip(derived, far.tolist(), case.exactly("f", far).tolist(), strict=True):
        if end.intercept is None:  # no line follows a slope that grows without end
            assert not end.slope.is_finite()
        else:
            line = float(end.slope) * x + float(end.intercept)
            assert y == pytest.approx(line, rel=1e-13, abs=1e-13)


@some_shapes
def test_bounds_hold_and_are_reached(case: Case) -> None:
    """On a dense grid f stays in its range and f′ and f″ below their bounds, and come near them;
    where there is no bound, they grow to infinity."""
    analysed = analysis(case)
    reach = 12 / min(1.0, *(abs(v) for v in case.parameters if 0.1 < abs(v) < 1), 1.0)
    x = torch.linspace(-reach, reach, 200_001, dtype=torch.float64)
    f = case.exactly("f", x)
    assert f.min().item() >= float(analysed.range.low) - 1e-12
    assert f.max().item() <= float(analysed.range.high) + 1e-12
    if analysed.range.has_low:
        assert f.min().item() == pytest.approx(float(analysed.range.low), abs=1e-4)
    ends = torch.tensor([-math.inf, math.inf], dtype=torch.float64)
    for formula, bound in (("df", analysed.lipschitz_f), ("d2f", analysed.lipschitz_df)):
        if bound.steepest.is_finite():
            largest = case.exactly(formula, x).abs().max().item()
            assert largest == pytest.approx(float(bound.steepest), rel=1e-3)
            assert largest <= float(bound.steepest) * (1 + 1e-12)
        else:
            assert case.exactly(formula, ends).abs().max().item() == math.inf
            assert not bound.constant.is_finite()


@some_shapes
def test_gains(case: Case) -> None:
    """Against the trapezoidal rule."""
    z = torch.linspace(-12, 12, 960_001, dtype=torch.float64)
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    gaussian = analysis(case).gaussian

    def expectation(values: torch.Tensor) -> float:
        return torch.trapezoid(values * density, z).item()

    f, df = case.exactly("f", z), case.exactly("df", z)
    assert float(gaussian.mean) == pytest.approx(expectation(f), rel=1e-5, abs=1e-9)
    assert float(gaussian.gain) == pytest.approx(expectation(f * f) ** -0.5, rel=1e-5)
    assert float(gaussian.backward_gain) == pytest.approx(expectation(df * df) ** -0.5, rel=1e-4)


def test_a_distance_under_a_wider_normal_distribution() -> None:
    """Against the trapezoidal rule, with the library's own formulas."""
    scale = 2.5
    x = torch.linspace(-12 * scale, 12 * scale, 960_001, dtype=torch.float64)
    density = torch.exp(-0.5 * (x / scale) ** 2) / (scale * math.sqrt(2 * math.pi))
    difference = ACTIVATIONS["relu"].f(x) - ACTIVATIONS["mish"].f(x)
    square = torch.trapezoid(difference**2 * density, x).item()
    relu, mish = curve_of(find("relu")), curve_of(find("mish"))
    assert float(l2(relu, mish, scale)) == pytest.approx(math.sqrt(square), rel=1e-6)


def test_relus_gain_is_torchs() -> None:
    assert float(analysis_of("relu").gaussian.gain) == torch.nn.init.calculate_gain("relu")


def test_sizes_have_their_digits() -> None:
    """Those of negative numbers too."""
    analysed = analyze_named(find("mish"), find("relu"))
    assert (
        analysed.against is not None
        and analysed.against.max_error == analysed.minima[0].y.copy_negate()
    )
    assert analysed.lipschitz_f.constant == analysed.inflections[1].slope


@pytest.mark.parametrize("name", ["mish", "gelu", "swish:beta=30"])
def test_integrals_have_their_digits(name: str) -> None:
    """Against mpmath's other rule, at more digits."""
    one = find(name)
    with mpmath.workdps(36):
        f = references.function(one.activation.name)
        want = mpmath.quad(
            lambda z: f(z, *one.values) ** 2 * mpmath.npdf(z), [-16, -4, -1, 0, 1, 4, 16]
        )
        got = mpf(str(analysis_of(name).gaussian.second_moment))
        assert abs(got - want) < mpf(10) ** -28


# ---- facts ----


MINIMA = [
    ("mish", "-1.1924312", "-0.3088434", 7),
    ("h_mish", "-1", "-0.5", 28),
    *((f"hard_mish:k={k}", "-1.5", f"{-9 / (4 * k)}", 15) for k in (1.5, 2, 3, 4, 5, 6, 50)),
    ("hard_mish:k=1.2", "-1.8", "-1.8", 15),
    ("hardswish", "-1.5", "-0.375", 28),
    ("linear_swish", "-1.02277", "-0.44554", 5),
    ("aptx:alpha=0", "0", "0", 28),
]


@pytest.mark.parametrize(("name", "x", "y", "digits"), MINIMA, ids=str)
def test_minima(name: str, x: str, y: str, digits: int) -> None:
    (minimum,) = analysis_of(name).minima
    assert abs(mpf(str(minimum.x)) - mpf(x)) <= mpf(10) ** -digits
    assert abs(mpf(str(minimum.y)) - mpf(y)) <= mpf(10) ** -digits


def test_mish() -> None:
    mish = analysis_of("mish")
    assert [float(i.x) for i in mish.inflections] == pytest.approx([-2.25638, 1.49057], abs=5e-6)
    assert [i.becomes_convex for i in mish.inflections] == [True, False]
    slopes = [float(i.slope) for i in mish.inflections if i.slope is not None]
    assert slopes == pytest.approx([-0.1125, 1.0885], abs=5e-5)
    assert float(mish.lipschitz_f.constant) == slopes[1]
    of_mish = curve(next(case for case in DEFAULTS if case.a.name == "mish"))
    assert float(of_mish.at(mpf(0), 1)) == 0.6 and float(of_mish.at(mpf(0), 2)) == 0.64
    assert mish.shape.quasiconvex and not mish.shape.convex and mish.shape.monotone is None
    assert mish.smoothness is None and str(mish.range) == "[−0.30884341, ∞)"


JOINTS: list[tuple[str, list[tuple[float, int, int, float]]]] = [
    ("relu", [(0, 0, 1, 1)]),
    ("h_mish", [(-2, 0, 1, -1), (0, 1, 2, -1)]),
    ("piecewise_swish", [(0, 1, 2, 0.5)]),
    ("linear_swish", [(0, 1, 2, -1.25)]),
    *((f"hard_mish:k={k}", [(-3, 0, 1, -3 / k), (k - 3, 0, 1, 3 / k - 1)]) for k in (1.2, 2, 5, 6)),
    ("hard_mish:k=3", [(-3, 0, 1, -1), (0, 1, 2, -2 / 3)]),
    ("softplus", [(20, -1, 0, -math.log1p(math.exp(-20)))]),
]


@pytest.mark.parametrize(("name", "joints"), JOINTS, ids=lambda v: v if isinstance(v, str) else "")
def test_joints(name: str, joints: list[tuple[float, int, int, float]]) -> None:
    got = [(float(j.x), j.smoothness, j.jumps, float(j.jump)) for j in analysis_of(name).joints]
    assert got == [pytest.approx(joint, rel=1e-12) for joint in joints]


def test_a_jump_counts() -> None:
    """softplus returns x itself beyond the threshold, which is 2e−9 less."""
    softplus = analysis_of("softplus")
    assert softplus.shape.monotone is None and softplus.shape.but_for_jumps == "rising"
    assert (
        not softplus.lipschitz_f.constant.is_finite() and float(softplus.lipschitz_f.steepest) == 1
    )
    assert not softplus.extrema and not softplus.shape.convex


@pytest.mark.parametrize(
    ("name", "monotone", "convex", "quasiconvex", "extrema"),
    mostly_slow(
        [
            ("swish:beta=0", "rising", True, True, []),
            ("aptx:alpha=1.1", None, False, False, ["maximum", "minimum"]),
            ("h_mish", None, False, True, ["minimum"]),
            ("relu", "rising", True, True, []),
            ("swish:beta=-0.8", None, False, False, ["maximum"]),
            ("aptx:alpha=-1.1", None, False, False, ["minimum", "maximum"]),
            ("aptx:alpha=-1.5", "falling", False, True, []),
            ("aptx:alpha=2", "rising", False, True, []),
        ],
        3,
    ),
)
def test_verdicts(
    name: str, monotone: str | None, convex: bool, quasiconvex: bool, extrema: list[str]
) -> None:
    analysed = analysis_of(name)
    assert analysed.shape.monotone == monotone and analysed.shape.convex == convex
    assert analysed.shape.quasiconvex == quasiconvex
    assert [e.kind for e in analysed.extrema] == extrema


# The largest |g − mish|, where it is, and √E|g − mish|² under N(0, 1).
CLOSENESS = [
    ("piecewise_swish", 0.0359, -0.791, 0.0219),
    ("hard_mish", 0.1595, -1.730, 0.0654),
    ("swish", 0.1844, 1.821, 0.0804),
    ("aptx:beta=0.5", 0.1844, 1.821, 0.0804),
    ("swish:beta=2", 0.2283, -1.617, 0.1022),
    ("aptx", 0.2283, -1.617, 0.1022),
    ("linear_swish", 0.1464, -0.821, 0.1086),
    ("hardswish", 0.2895, 1.747, 0.1188),
    ("hard_mish:k=4", 0.2701, -1.673, 0.1254),
    ("h_mish", 0.2525, -2, 0.1285),
    ("relu", 0.3088, -1.192, 0.1827),
    ("hard_mish:k=3", 0.4558, -1.621, 0.2162),
]


@pytest.mark.parametrize(("name", "most", "where", "mean"), mostly_slow(CLOSENESS, 3), ids=str)
def test_closeness_to_mish(name: str, most: float, where: float, mean: float) -> None:
    distance = from_mish(name).against
    assert distance is not None and distance.at is not None
    assert float(distance.max_error) == pytest.approx(most, abs=5e-5)
    assert float(distance.at) == pytest.approx(where, abs=5e-4)
    assert float(distance.l2) == pytest.approx(mean, abs=5e-5)


@pytest.mark.parametrize(
    ("first", "second"),
    [("aptx:beta=0.5", "silu"), ("aptx", "swish:beta=2"), ("hard_mish:k=6", "hardswish")],
)
def test_one_function_under_two_names(first: str, second: str) -> None:
    distance = analyze_named(find(first), find(second)).against
    assert distance is not None and distance.max_error == 0 and distance.at is None


@pytest.mark.parametrize("beta", [1.0, 100.0, 1e6])
def test_aptx_tends_to_relu(beta: float) -> None:
    distance = analyze_named(find("aptx", {"beta": beta}), find("relu")).against
    assert distance is not None
    assert float(distance.max_error) == pytest.approx(0.13923 / beta, rel=1e-4)


def test_narrow_differences_are_integrated() -> None:
    """aptx is within 1e−6 of relu all but there, where z hardly varies."""
    distance = analyze_named(find("aptx:beta=1e6"), find("relu")).against
    integral = mpmath.quad(lambda u: (u / (1 + mpmath.exp(2 * u))) ** 2, [0, 1, 4, 16, 64])
    assert distance is not None
    want = math.sqrt(2 * mpmath.npdf(0) * integral / 1e18)
    assert float(distance.l2) == pytest.approx(want, rel=1e-9)


def test_a_distance_that_grows_is_infinite() -> None:
    distance = analyze_named(find("aptx:alpha=1.1"), find("silu")).against
    assert distance is not None and distance.max_error == math.inf
    assert distance.at is not None and not distance.at.is_finite()


@pytest.mark.parametrize("text", ["x/(1 + x**2)", "Max(0, exp(x) - 2)"])
def test_what_is_beyond_it_is_refused_and_not_wrong(text: str) -> None:
    with pytest.raises(LabError, match="beyond this analysis"):
        Curve.of(parse(text, {})).pieces[0].end(-1, 0)


# ---- asking ----


def test_names_and_parameters() -> None:
    assert find("HardMish", {"k": 3}) == find("hard_mish:k=3")
    assert str(find("aptx:gamma=-0.5,alpha=1")) == "aptx:gamma=-0.5"
    assert options(["--k", "3", "--beta=-1", "--gamma", "-2"]) == {"k": 3, "beta": -1, "gamma": -2}
    for wrong in ("mosh", "mish:k=3", "hard_mish:k=-1", "hard_mish:k", "swish:beta=inf"):
        with pytest.raises(LabError):
            find(wrong)
    for texts in (["k", "3"], ["--k"], ["--k", "x"]):
        with pytest.raises(LabError):
            options(texts)


def test_the_public_function() -> None:
    analysed = mishkit.analyze("hard_mish", k=3, against="mish")
    assert analysed.parameters == {"k": 3} and analysed.cost is None
    assert "C⁰" in str(analysed) and "0.45581683" in str(analysed)
    with pytest.raises(ValueError, match=r"mishkit\.analyze: .*did you mean \"mish\""):
        mishkit.analyze("mosh")


def test_without_the_extra(tmp_path: Path) -> None:
    (tmp_path / "sympy.py").write_text("raise ModuleNotFoundError(name='sympy')")
    code = "import mishkit; mishkit.analyze('mish')"
    path = f"{tmp_path}:{Path(mishkit.__file__).parent.parent}"
    done = interpreters.python(code, {"PYTHONPATH": path})
    assert "needs sympy: pip install" in done.stderr.splitlines()[-1]


@every_function
def test_everything_is_printed(case: Case) -> None:
    text = str(analysis(case))
    for word in (case.a.formula.split()[0], "range", "f″", "Lipschitz", "gain", "x → +∞"):
        assert word in text


def test_the_command() -> None:
    done = CliRunner().invoke(app, ["explain", "mish", "--no-cost", "--against", "relu"])
    assert done.exit_code == 0, done.output
    assert "0.30884341" in done.output and "1.4868476" in done.output


def test_the_command_takes_parameters_and_gives_json() -> None:
    asked = ["explain", "aptx", "--beta=-1", "--gamma", "-0.5", "--no-cost", "--json"]
    done = CliRunner().invoke(app, [*asked, "--against", "swish:beta=2"])
    printed = json.loads(done.stdout)
    assert printed["parameters"] == {"alpha": 1, "beta": -1, "gamma": -0.5}
    assert printed["extrema"][0]["kind"] == "minimum"
    assert printed["extrema"][0]["x"] == pytest.approx(0.6392322713805369)
    assert printed["range"]["high"] == "Infinity" and printed["against"]["max_error"] == "Infinity"
    assert re.search(r"0\.63923227138053689\d{10}", done.stdout)
    for wrong in (["explain", "mish", "--k", "3"], ["explain", "mosh"], ["explain", "relu", "x"]):
        done = CliRunner().invoke(app, wrong)
        assert done.exit_code == 1 and done.stderr.startswith("mishkit: ")


@every_function
def test_formulas_are_written(case: Case) -> None:
    """In words without Python's operators, and in LaTeX with its braces closed."""
    for part in analysis(case).parts:
        for form in (part.f, part.df, part.d2f):
            assert not re.search(r"\*|\^\d|exp\(x\)|sqrt|log", form.unicode), form.unicode
            assert form.latex.count("{") == form.latex.count("}")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5"), (-1e-9, "−1e−9"), (2e6, "2000000"), (math.inf, "∞"), (0, "0"), (None, "–")],
)
def test_figures(value: float | None, text: str) -> None:
    assert show(value) == text


# ---- cost ----

linux = pytest.mark.skipif(
    sys.platform != "linux" or not KERNELS or not shutil.which("objdump"),
    reason="needs the kernels, an ELF library and objdump",
)


@linux
def test_every_kernel_is_found_where_its_symbol_says() -> None:
    """The table in the library against the symbols, where they are not stripped."""
    kernels = _machine_code.library().kernels
    isas = {isa for isa, *_ in kernels}
    assert set(cpu.isas()) <= isas
    counts = len(isas) * len(ACTIVATIONS) * len(_machine_code.DTYPES) * len(BODIES)
    assert len(kernels) == counts
    done = subprocess.run(["nm", "-C", cpu.LIBRARY], capture_output=True, text=True)
    symbols = {
        int(line.split()[0], 16): line for line in done.stdout.splitlines() if line[0] != " "
    }
    if not any("::run<" in line for line in symbols.values()):
        pytest.skip("the symbols are stripped")
    # Where the formula is chosen by the parameters, the function of the body has it as an argument.
    words = {"forward": "Forward", "backward": "Backward", "double_backward": "DoubleBackward"}
    for (isa, name, _, body), address in kernels.items():
        if body in words:
            symbol = symbols[address]
            is_body = re.search(rf"::{words[body]}[<,]", symbol)
            assert (f"::{isa}::" in symbol and is_body) or name == "relu"
            assert f"::{ACTIVATIONS[name].module_name}<" in symbol or name == "relu"


@linux
@pytest.mark.parametrize("name", ["relu", "mish", "aptx", "gelu"])
def test_instructions_are_counted(name: str) -> None:
    loops = cost.count(find(name), ("float32", "float64"))
    of_isa = {(loop.isa, loop.dtype, loop.body): loop for loop in loops}
    for (isa, dtype, body), loop in of_isa.items():
        assert 0.1 < loop.vector_instructions < 250
        if body == "forward":  # the packed one stores a side too, but may move less about
            packed = of_isa[isa, dtype, "forward_packed"]
            assert packed.vector_instructions >= loop.vector_instructions * 0.85
            assert packed.divisions == loop.divisions
        vector = loop.elements / 4
        if name == "relu":
            assert not loop.divisions and not loop.square_roots and not loop.iterates
        if name == "mish" and body == "forward":
            assert loop.divisions * vector == 1 and not loop.square_roots
        if name == "mish" and (body, dtype) == ("backward_packed", "float32"):
            assert loop.square_roots * vector == 1
        # Only float64 inverts f step by step here.
        steps = body == "backward_packed" and dtype == "float64" and name != "relu"
        assert loop.iterates == steps or name == "gelu", loop


@linux
@pytest.mark.skipif(not shutil.which("strip"), reason="needs strip")
def test_symbols_are_not_needed(tmp_path: Path) -> None:
    path = tmp_path / "stripped.so"
    subprocess.run(["strip", "-s", "-o", path, cpu.LIBRARY], check=True)
    whole, stripped = _machine_code.library(), _machine_code.Library(path)
    assert stripped.kernels == whole.kernels
    for body in BODIES:
        kernel = (KERNELS[-1].name, "aptx", "float32", body)
        assert stripped.count(*kernel) == whole.count(*kernel)


@linux
def test_a_missing_objdump_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    library = _machine_code.Library(cpu.LIBRARY)
    with pytest.raises(LabError, match=r"objdump is not installed"):
        library.disassemble(next(iter(library.kernels.values())))


def test_natural_loops() -> None:
    """A jump backwards into unlikely code is no loop; nested loops are told apart."""
    listing = """
      0: vmov %ymm0
      1: jmp 4 <f>
      2: nop
      4: vmov %ymm0
      5: vadd %ymm1
      6: jne 5 <f>
      7: je 12 <f>
      8: jne 4 <f>
      9: ret
      12: vmov %ymm2
      13: jmp 8 <f>
    """
    parts = [line.split(None, 2) for line in listing.strip().splitlines()]
    code = [
        _machine_code.Instruction(int(address[:-1], 16), name, "".join(operands))
        for address, name, *operands in parts
    ]
    loops = _machine_code.loops(code)
    outer, inner = sorted(loops, key=lambda loop: -loop.weight)
    assert [i.address for i in outer.code] == [4, 5, 6, 7, 8, 0x12, 0x13]
    assert outer.has_inner and not outer.is_inner
    assert [i.address for i in inner.code] == [5, 6] and inner.is_inner


def test_bytes_moved() -> None:
    mish, relu = ACTIVATIONS["mish"], ACTIVATIONS["relu"]
    bfloat16 = torch.bfloat16
    assert cost.bytes_moved(mish, "forward", torch.float32) == 8
    assert cost.bytes_moved(mish, "backward_packed", bfloat16) == 6.125
    assert cost.bytes_moved(relu, "backward_packed", bfloat16) == 6
    assert cost.bytes_moved(mish, "double_backward", torch.float64) == 40


def test_the_roofline_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "SECONDS", 0.05)
    monkeypatch.setattr(cost, "LEAST_COPY", 1 << 22)
    monkeypatch.setattr(cost, "MOST_COPY", 1 << 22)
    monkeypatch.setattr(cost, "count", lambda named: [])
    measured = cost.measure(find("aptx:alpha=1.1"))  # its output does not give its gradient
    assert {roof.body for roof in measured.roofs} == {"forward", "backward"}
    assert measured.copy_bytes_per_ns > 0.1
    for roof in measured.roofs:
        assert roof.memory_ns == pytest.approx(roof.bytes / measured.copy_bytes_per_ns)
        assert roof.bound == ("memory" if roof.ratio < 1 else "compute")
