"""docs/claims.md: what is said about these functions in public, and whether it is so.

Each verdict is worked out here from the definitions, from counted bytes or from counted
instructions. Nothing is timed.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mpmath
import pytest
import references
import sympy
import torch
import torch.distributed as dist
import torch.nn.functional as F
from common import KERNELS, ROOT, TURNING, every_half, name_of
from mpmath import mpf
from torch import Tensor, nn

import mishkit
from mishkit.functions import ACTIVATIONS
from mishkit.lab.calculus import cost
from mishkit.lab.calculus.analysis import Analysis
from mishkit.lab.calculus.analyze import analyze_named, curve_of, farthest, l2
from mishkit.lab.calculus.curve import Curve, parse
from mishkit.lab.calculus.fit import Candidate, find_family, fit, parse_measure
from mishkit.lab.common.named import find

PAGE = ROOT / "docs" / "claims.md"
X = sympy.Symbol("x", real=True)
E = sympy.Symbol("E", positive=True)
"""eˣ"""


@functools.cache
def analysis_of(text: str) -> Analysis:
    return analyze_named(find(text))


def distance(curve: Curve, low: float = -math.inf, high: float = math.inf) -> float:
    """The largest |f − mish| between two places."""
    return abs(float(farthest(curve_of(find("mish")), curve, low, high)[0]))


def definition(name: str, **parameters: float) -> sympy.Expr:
    """The function as its source defines it."""
    exact = {p: sympy.nsimplify(value) for p, value in parameters.items()}
    return sympy.sympify(ACTIVATIONS[name].expression, locals={"x": X, **exact})


def rational(expression: sympy.Expr) -> sympy.Expr:
    """In x and E = eˣ, as one reduced fraction: equal expressions become the same."""
    powers = {sympy.exp(k * X): E**k for k in (-3, -2, -1, 1, 2, 3)}
    return sympy.cancel(sympy.simplify(expression.rewrite(sympy.exp).subs(powers)))


# ---- H-Mish ----


def test_h_mish_is_quasiconvex_and_not_convex() -> None:
    shape = analysis_of("h_mish").shape
    assert shape.quasiconvex and not shape.convex
    # A chord of a convex function is nowhere below it.
    f = definition("h_mish")
    left, middle, right = (f.subs(X, at) for at in (-3, -2, -1))
    assert middle > (left + right) / 2
    # It is convex right of the joint that breaks it.
    (joint, _) = analysis_of("h_mish").joints
    assert joint.x == -2 and joint.jumps == 1 and joint.jump < 0


def test_output_and_side_give_h_mishs_gradient() -> None:
    """Exactly, and the output alone does not."""
    t = sympy.Symbol("t", nonnegative=True)  # the distance from the minimum
    f = X * (X + 2) / 2  # on [−2, 0]
    for at in (-2, -1, sympy.Rational(-1, 3), 0):
        assert f.subs(X, at) == definition("h_mish").subs(X, at)
    for side in (-1, 1):
        x = -1 + side * t
        y = f.subs(X, x)
        assert sympy.simplify(side * sympy.sqrt(2 * y + 1) - sympy.diff(f, X).subs(X, x)) == 0
    # One output, two gradients.
    pair = sympy.solve(f + sympy.Rational(3, 8), X)
    slopes = {sympy.diff(f, X).subs(X, at) for at in pair}
    assert len(pair) == 2 and len(slopes) == 2 and sum(slopes) == 0


def test_a_rounded_output_does_not_give_it_exactly() -> None:
    """Inputs on one side whose outputs round to the same bfloat16, and whose gradients differ."""
    every = every_half(torch.bfloat16)
    spreads, errors = [], []
    for low, high in ((-2, -1), (-1, 0)):
        x = every[(every > low) & (every <= high)]
        slope = 1 + x.double()
        y = ACTIVATIONS["h_mish"].f(x.double()).bfloat16()
        for output in y.unique():
            shared = slope[y == output]
            spreads.append((shared.max() - shared.min()).item())
        x.requires_grad_()
        mishkit.h_mish(x, save="output").sum().backward()
        errors.append((x.grad.double() - slope).abs().max().item())
    # The middle of them is the best that a decoder can answer.
    floor = max(spreads) / 2
    assert floor == pytest.approx(0.0195, abs=5e-5)
    assert floor <= max(errors) < 1.5 * floor


def kept(act: nn.Module, after: nn.Module, dtype: torch.dtype = torch.float32) -> float:
    """What a training step keeps of one hidden activation, in units of that activation."""
    batch, width = 32, 1024
    net = nn.Sequential(nn.Linear(4, width), act, after).to(dtype)
    x = torch.randn(batch, 4, dtype=dtype)
    with mishkit.KeptBytes(exclude=[*net.parameters(), x]) as counted:
        net(x)
    return counted.total / (batch * width * dtype.itemsize)


@pytest.mark.parametrize(
    ("dtype", "fold"),
    [(torch.float32, 32), (torch.bfloat16, 16), (torch.float16, 16), (torch.float64, 64)],
    ids=lambda value: name_of(value) if isinstance(value, torch.dtype) else "",
)
def test_the_saving_is_as_many_fold_as_the_type_has_bits(dtype: torch.dtype, fold: int) -> None:
    """Beyond the output, which a linear layer keeps."""
    linear = nn.Linear(1024, 2)
    output = kept(nn.ReLU(), linear, dtype)
    whole = kept(mishkit.HMish(), linear, dtype) - output
    bit = kept(mishkit.HMish(save="output"), linear, dtype) - output
    assert whole / bit == fold


@pytest.mark.parametrize("after", [nn.Identity(), nn.Dropout(0.5)], ids=["nothing", "dropout"])
def test_there_is_no_saving_if_the_output_is_not_kept_anyway(after: nn.Module) -> None:
    assert kept(mishkit.HMish(save="output"), after) > kept(mishkit.HMish(), after)


# ---- exp and softplus ----

DTYPES = (torch.float16, torch.float32, torch.float64)
every_float = pytest.mark.parametrize("dtype", DTYPES, ids=name_of)


def last_finite(dtype: torch.dtype) -> Tensor:
    """The largest number of a type whose exponential still rounds to a finite one."""
    info = torch.finfo(dtype)
    with mpmath.workdps(60):
        # Rounding goes to infinity from half a step above the largest number.
        step = mpf(2) ** (math.frexp(info.max)[1] + round(math.log2(info.eps)) - 1)
        end = mpmath.log(mpf(info.max) + step / 2)
        x = torch.tensor(float(end), dtype=dtype)
        while mpf(x.item()) >= end:
            x = torch.nextafter(x, torch.zeros_like(x))
    return x


@every_float
def test_where_exp_overflows(dtype: torch.dtype) -> None:
    published = {torch.float16: 11.086, torch.float32: 88.72283, torch.float64: 709.7827128933840}
    last = last_finite(dtype)
    assert last.item() == pytest.approx(published[dtype], rel=1e-5)
    after = torch.nextafter(last, torch.full_like(last, math.inf))
    assert last.exp().isfinite() and after.exp().isinf()


@every_float
def test_a_step_of_ten_gives_the_published_thresholds(dtype: torch.dtype) -> None:
    tens = torch.arange(0, 1000, 10, dtype=dtype)
    threshold = tens[tens > last_finite(dtype)][0].item()
    assert threshold == tens[tens.exp().isinf()][0].item()
    assert threshold == {torch.float16: 20, torch.float32: 90, torch.float64: 710}[dtype]
    ones = torch.arange(0, 1000, dtype=dtype)
    threshold = ones[ones.exp().isinf()][0].item()
    assert threshold == {torch.float16: 12, torch.float32: 89, torch.float64: 710}[dtype]


def test_one_minus_exp_of_minus_softplus_is_the_sigmoid() -> None:
    softplus = sympy.log(1 + sympy.exp(X))
    assert rational(1 - sympy.exp(-softplus) - sympy.diff(softplus, X)) == 0


def mish_gradient(x: Tensor, softplus_gradient: Callable[[Tensor], Tensor]) -> Tensor:
    """As mish-cuda and darknet compute it."""
    s = F.softplus(x)
    t = s.tanh()
    return t + x * (1 - t * t) * softplus_gradient(s)


def test_in_float32_it_has_the_wrong_sign_in_the_tail() -> None:
    x = torch.linspace(-60, -2, 58_001)
    true = ACTIVATIONS["mish"].df(x.double())
    assert (true < 0).all()
    # Rounded once: how torch rounds its float32 exponential depends on the CPU.
    wrong = mish_gradient(x, lambda s: 1 - torch.exp(-s.double()).float()) > 0
    # From where exp(−s) ≈ 1 − eˣ rounds to 1: half the spacing of numbers below 1 is 2⁻²⁵.
    assert x[wrong].max().item() == pytest.approx(-25 * math.log(2), abs=0.01)
    assert wrong[x < -18].all()
    # And before that it loses its digits one after the other.
    for middle, least in ((-10, 5e-4), (-16, 0.2)):
        near = torch.linspace(middle - 0.5, middle + 0.5, 10_001)
        sigmoid = near.double().sigmoid()
        lost = ((1 - torch.exp(-F.softplus(near))).double() / sigmoid - 1).abs().max()
        assert least < lost < 3 * least
    # The cure is another name for the same thing.
    cured = mish_gradient(x, lambda s: -torch.expm1(-s))
    torch.testing.assert_close(cured.double(), true, rtol=5e-6, atol=0)


# ---- hard Mish ----


@functools.cache
def published_choices(measure: str) -> tuple[list[str], Candidate]:
    """The published x·clamp(x + b, 0, k)/k, closest to mish first; and the closest of all."""
    result = fit(find("mish"), find_family("clamp"), parse_measure(measure))
    assert [c.rank for c in result.published] == [2, 3, 4, 5, 6] and result.fitted.rank == 1
    return [c.label for c in result.published], result.fitted


@pytest.mark.slow
def test_the_ranking_of_the_hard_forms() -> None:
    largest, best = published_choices("max")
    assert largest[0] == "hard Mish, k = 5" and largest[-1] == "hard Mish, k = 3"
    assert best.parameters == pytest.approx({"b": 3.0434, "k": 5.3955}, abs=2e-4)
    mean, best = published_choices("normal:1")
    assert mean[0] == "hard Mish, k = 5, b = 2.8" and mean[-1] == "hard Mish, k = 3"
    assert best.parameters == pytest.approx({"b": 2.3875, "k": 4.0680}, abs=2e-4)
    # ReLU3 is farther than ReLU itself.
    distances = {k: distance(curve_of(find(f"hard_mish:k={k}"))) for k in (3, 4, 5, 6)}
    assert sorted(distances, key=distances.__getitem__) == [5, 4, 6, 3]
    assert distances[3] > distance(curve_of(find("relu")))


def test_relu3_is_smooth_on_the_right_and_has_the_sharpest_kink() -> None:
    kinks = {}
    for k in (3, 4, 5, 6):
        left, right = analysis_of(f"hard_mish:k={k}").joints
        assert left.jumps == 1
        assert right.smoothness == (1 if k == 3 else 0)
        kinks[k] = abs(left.jump)
    assert max(kinks, key=kinks.__getitem__) == 3


def test_hard_mish_is_not_piecewise_linear() -> None:
    curve = Curve.of(parse("x*Min(5, Max(0, x + 2.8))/5", {}))
    assert curve.at(mpf(-1), 2) == mpf(2) / 5
    assert curve.at(mpf(-4), 2) == curve.at(mpf(4), 2) == 0


@pytest.mark.slow
def test_the_cubic_hard_forms_are_not_closer_and_not_smoother() -> None:
    mish, h_mish = curve_of(find("mish")), curve_of(find("h_mish"))
    for cubic, end in (("x*(x/4 + 1)**2", -4), ("x*(x + 1)**2", -1)):
        curve = Curve.of(parse(f"Piecewise((0, x <= {end}), ({cubic}, x <= 0), (x, True))", {}))
        assert distance(curve) > distance(h_mish)
        assert l2(mish, curve) > l2(mish, h_mish)
        for joint in range(2):
            assert curve.jump(joint, 1) == 0 and curve.jump(joint, 2) != 0


# ---- APTx ----


def test_aptx_is_swish_for_alpha_1_and_gamma_one_half() -> None:
    for beta, rho in (("1", 2), ("1/2", 1), ("7/3", "14/3")):
        aptx = definition("aptx", alpha=1, beta=sympy.Rational(beta), gamma=sympy.Rational(1, 2))
        swish = definition("swish", beta=sympy.Rational(rho))
        same = sympy.simplify((aptx - swish).rewrite(sympy.exp))
        assert same == 0
    assert ACTIVATIONS["aptx"].defaults == (1, 1, 0.5)


def test_aptx_is_no_swish_otherwise() -> None:
    """Swish has the slopes 0 and 1 at its two ends for every beta; APTx (α ∓ 1)γ."""

    def slopes(text: str) -> list[float]:
        pieces = curve_of(find(text)).pieces
        return [float(pieces[0].end(-1, 1)), float(pieces[-1].end(1, 1))]

    for beta in (0.3, 1, 9):
        assert slopes(f"swish:beta={beta}") == [0, 1]
    for alpha, gamma in ((0.9, 0.5), (1.1, 0.5), (1, 0.6), (0, 1)):
        got = slopes(f"aptx:alpha={alpha},gamma={gamma}")
        assert got == pytest.approx([(alpha - 1) * gamma, (alpha + 1) * gamma], abs=1e-12)
        assert got != [0, 1]


@pytest.mark.parametrize(
    ("beta", "negative", "positive"), [(0.5, 0.036, 0.184), (1, 0.228, 0.026)], ids=str
)
def test_each_aptx_follows_one_side_of_mish(beta: float, negative: float, positive: float) -> None:
    curve = curve_of(find("aptx", {"beta": beta}))
    assert distance(curve, high=0) == pytest.approx(negative, abs=1e-3)
    assert distance(curve, low=0) == pytest.approx(positive, abs=1e-3)


@pytest.mark.parametrize("beta", [1.0, 30.0, 1e6])
def test_aptx_tends_to_relu(beta: float) -> None:
    """The error is x/(1 + exp(2βx)) for x > 0: at most W(1/e)/2β, where 2βx = 1 + W(1/e)."""
    distance = analyze_named(find("aptx", {"beta": beta}), find("relu")).against
    with mpmath.workdps(40):
        bound = mpmath.lambertw(mpmath.exp(-1)).real / 2
        assert distance is not None
        assert abs(mpf(str(distance.max_error)) * mpf(beta) - bound) < mpf(10) ** -28
    assert float(bound) == pytest.approx(0.13923, abs=5e-6)


def test_beta_1e6_is_nan_at_0_in_float16_unless_it_is_computed_wider() -> None:
    x, beta = torch.zeros(1, dtype=torch.float16), torch.tensor(1e6, dtype=torch.float16)
    assert ((1 + torch.tanh(beta * x)) * 0.5 * x).isnan().all()
    assert mishkit.aptx(x, beta=1e6).item() == 0


def test_aptx_needs_no_fewer_operations_once_both_are_written_out() -> None:
    def functions(expression: sympy.Expr) -> int:
        return sum(map(expression.count, (sympy.exp, sympy.log, sympy.tanh)))

    aptx = definition("aptx", alpha=1, beta=1, gamma=sympy.Rational(1, 2))
    assert functions(aptx) == 1 and functions(definition("mish")) == 3
    # Written out, either is a fraction in one exponential, and no polynomial: one division.
    for name, expression in (("aptx", aptx), ("mish", definition("mish"))):
        _, denominator = sympy.fraction(rational(expression))
        assert denominator.has(E), name


# ---- several machines ----


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process alone."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def reduced(act: nn.Module) -> int:
    """Bytes of gradient that DistributedDataParallel hands to the network in a step."""
    sent = 0

    def count(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        nonlocal sent
        sent += bucket.buffer().nbytes
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    # Checked by DDP, which cannot read annotations that are strings.
    count.__annotations__.clear()
    layers = nn.Sequential(nn.Linear(8, 16), act, nn.Linear(16, 4))
    net = nn.parallel.DistributedDataParallel(layers)
    net.register_comm_hook(None, count)
    net(torch.randn(6, 8)).sum().backward()
    return sent


@pytest.mark.usefixtures("alone")
def test_data_parallelism_sends_nothing_for_an_elementwise_function() -> None:
    bytes_of_relu = reduced(nn.ReLU())
    assert bytes_of_relu == 4 * (8 * 16 + 16 + 16 * 4 + 4)
    for case in TURNING:
        for options in ({}, {"save": "output"}):
            assert reduced(getattr(mishkit, case.a.module_name)(**options)) == bytes_of_relu
    # But for parameters that are trained.
    trained = mishkit.APTx(trainable=True, num_parameters=16)
    assert reduced(trained) == bytes_of_relu + 4 * 3 * 16


@pytest.mark.parametrize("case", TURNING, ids=str)
def test_parts_of_a_batch_or_of_the_channels_need_nothing_of_each_other(case: Any) -> None:
    x = torch.randn(12, 10)
    for dimension in (0, 1):
        parts = torch.cat([case.call(p) for p in x.chunk(2, dimension)], dimension)
        # Plain torch rounds the ends of a tensor otherwise than its middle.
        torch.testing.assert_close(parts, case.call(x), rtol=1e-6, atol=1e-7)
    # But partial sums, as a matrix split along what it sums over leaves them, must meet before.
    a, b = x.chunk(2)
    assert not torch.allclose(case.call(a) + case.call(b), case.call(a + b), atol=0.05)


def test_what_changes_is_what_every_machine_keeps() -> None:
    linear = nn.Linear(1024, 2)
    assert kept(nn.ReLU(), linear) == 1
    assert kept(mishkit.Mish(), linear) == 2
    assert kept(mishkit.Mish(save="output"), linear) == 1 + 1 / 32


# ---- mish ----


def test_mish_is_bounded_below_alone() -> None:
    values = analysis_of("mish").range
    assert values.has_low and float(values.low) == pytest.approx(-0.30884, abs=5e-6)
    assert values.high == math.inf


def test_mish_and_swish_lose_their_gradients_alike() -> None:
    """Both f′ tend to 0 as (1 + x)eˣ does, and are 0 at one point each."""
    with mpmath.workdps(40):
        for x in (-30, -60):
            tail = (1 + mpf(x)) * mpmath.exp(x)
            for name in ("mish", "silu"):
                assert abs(references.df(name, x) / tail - 1) < 10 * mpmath.exp(x) * abs(x)
    for name in ("mish", "silu"):
        assert analysis_of(name).ends[0].slope == 0 and len(analysis_of(name).extrema) == 1
    x = torch.linspace(-200, 0, 20_001)
    zero = [ACTIVATIONS[name].df(x.double()).float() == 0 for name in ("mish", "silu")]
    assert torch.equal(*zero) and zero[0].any()


def test_mish_takes_one_exponential_and_one_division() -> None:
    gate = rational(definition("mish") / X)
    numerator, denominator = sympy.fraction(gate)
    # It has poles at eˣ = −1 ± i, so no sums and products of x and eˣ give it.
    assert sympy.degree(denominator, E) == 2 and sympy.gcd(numerator, denominator) == 1
    n = E * (E + 2)
    square = (E + 1) ** 2
    for form in (X * (n / (n + 2)), X - 2 * X / (square + 1)):
        assert sympy.simplify(form / X - gate) == 0
    # The second form has one multiplication, and loses the tail in float32.
    x = torch.tensor(-20.0)
    u = x.exp() + 1
    assert (x - (x + x) / (u * u + 1)).item() == 0 and mishkit.mish(x).item() < 0


linux = pytest.mark.skipif(
    sys.platform != "linux" or not KERNELS or not shutil.which("objdump"),
    reason="needs the kernels, an ELF library and objdump",
)


@functools.cache
def forward_loops(name: str) -> dict[str, Any]:
    """By instruction set."""
    loops = cost.count(find(name), ("float32",))
    return {loop.isa: loop for loop in loops if loop.body == "forward"}


@linux
def test_the_kernels_divide_once_and_none_is_much_dearer() -> None:
    for isa, mish in forward_loops("mish").items():
        for name in ("mish", "silu", "aptx"):
            loop = forward_loops(name)[isa]
            assert loop.divisions * loop.elements / 4 == 1
        silu, aptx = (forward_loops(name)[isa].vector_instructions for name in ("silu", "aptx"))
        assert 0.65 * mish.vector_instructions < silu < 1.05 * mish.vector_instructions
        assert 0.9 * mish.vector_instructions < aptx < 1.35 * mish.vector_instructions
        assert 0.95 * silu < aptx < 1.4 * silu


SP = "log(1 + exp(x))"
OMEGA = "(4*(x + 1) + 4*exp(2*x) + exp(3*x) + exp(x)*(4*x + 6))"
DELTA = "(2*exp(x) + exp(2*x) + 2)"
DERIVATIVES = [
    ("paper", 1, f"exp(x)*{OMEGA}/{DELTA}**2", True),
    ("paper, by swish", 1, f"sech({SP})**2*x/(1 + exp(-x)) + tanh({SP})", True),
    ("mish-cuda", 1, f"tanh({SP}) + x*(1 - tanh({SP})**2)*(1 - exp(-{SP}))", True),
    ("thinc", 1, f"exp(x)*({OMEGA} - exp(3*x))/{DELTA}**2", False),
    ("dlib draft", 1, f"exp(x)*{DELTA}/{OMEGA}**2", False),
    ("darknet log", 1, "tanh(x) + x*(1 - tanh(x)**2)*(1 - exp(-x))", False),
    ("darknet sp", 1, f"tanh({SP}) + x*(1 - tanh({SP})**2)*(1 - 1/(1 + exp({SP})))", False),
    ("caffe2-rs", 1, f"sech(x)**2*(x*tanh({SP}) + tanh(log(1 + exp(-x))) - 1)", False),
    ("caffe2-rs, plotted", 1, f"tanh({SP}) + x*exp(x)/(exp(x) + 1)**2/cosh({SP})**2", False),
    (
        "caffe2-rs",
        2,
        "(sech(x)**2 + x*tanh(x)*sech(x)**2)*(1 + x*tanh(x)) - 2*(x*sech(x))**2*tanh(x)",
        False,
    ),
    (
        "caffe2-rs, plotted",
        2,
        f"(2*exp(2*x)*(exp(x) + 1) - exp(x)*(exp(x) + 2)**2)/cosh({SP})**4"
        f" + (exp(3*x) + 4*exp(2*x) + exp(x))/cosh({SP})**8"
        f" - 2*exp(2*x)*(exp(x) + 1)**2/cosh({SP})**12",
        False,
    ),
]


@pytest.mark.parametrize(
    ("order", "formula", "right"),
    [derivative[1:] for derivative in DERIVATIVES],
    ids=[f"{source}-{order}" for source, order, *_ in DERIVATIVES],
)
def test_published_derivatives_of_mish(order: int, formula: str, right: bool) -> None:
    published = sympy.sympify(formula, locals={"x": X})
    true = sympy.diff(definition("mish"), X, order)
    if right:
        assert rational(published - true) == 0
    else:
        off = [abs((published - true).subs(X, at).evalf(30)) for at in (-2, -1, 1, 2)]
        assert max(off) > 0.05


def test_the_gradient_at_0_is_three_fifths() -> None:
    slope = rational(sympy.diff(definition("mish"), X)).subs({X: 0, E: 1})
    assert slope == sympy.Rational(3, 5)


def test_the_papers_form_is_nan_from_22_on_in_float32() -> None:
    x = torch.arange(0, 60, 0.01)
    omega = 4 * (x + 1) + 4 * (2 * x).exp() + (3 * x).exp() + x.exp() * (4 * x + 6)
    delta = 2 * x.exp() + (2 * x).exp() + 2
    wrong = (x.exp() * omega / delta**2).isnan()
    # Numerator and denominator are about exp(4x).
    assert torch.equal(wrong, 4 * x.double() > last_finite(torch.float32).item())
    assert x[wrong][0].item() == pytest.approx(22.18, abs=0.011)
    assert mishkit.mish(x.requires_grad_()).sum().isfinite()


def test_the_second_derivative_does_not_oscillate() -> None:
    """Two changes of sign, as swish has."""
    inflections = analysis_of("mish").inflections
    assert [i.becomes_convex for i in inflections] == [True, False]
    assert [float(i.x) for i in inflections] == pytest.approx([-2.25638, 1.49057], abs=5e-6)
    assert len(analysis_of("silu").inflections) == 2
    assert len(find_zeros(definition("mish"), 3)) == len(find_zeros(definition("silu"), 3)) == 3


def find_zeros(f: sympy.Expr, order: int) -> list[float]:
    """Changes of sign of a derivative, by a dense scan."""
    derivative = sympy.lambdify(X, sympy.diff(f, X, order), "mpmath")
    with mpmath.workdps(40):
        values = [derivative(mpf(i) / 20 + mpf("0.0123")) for i in range(-600, 401)]
    return [i / 20 for i, (a, b) in enumerate(itertools.pairwise(values)) if a * b < 0]


def test_mish_has_one_valley_and_no_steep_place() -> None:
    mish = analysis_of("mish")
    assert [e.kind for e in mish.extrema] == ["minimum"]
    slopes = [float(i.slope) for i in mish.inflections if i.slope is not None]
    assert slopes == pytest.approx([-0.1125, 1.0885], abs=5e-5)
    assert max(slopes) == float(mish.lipschitz_f.constant)
    assert (
        1 < float(mish.lipschitz_f.constant) < float(analysis_of("silu").lipschitz_f.constant) < 1.1
    )


def test_the_short_form_is_nan_at_minus_infinity_alone() -> None:
    """x/(1 + 2/(e(e + 2))): 2/0 is inf, and −x/inf is −0."""
    x = every_half(torch.bfloat16).float()
    e = x.exp()
    y = x / (1 + 2 / (e * (e + 2)))
    assert torch.equal(y.isnan(), x.isnan() | (x == -math.inf))
    assert mishkit.mish(torch.tensor(-math.inf)).item() == 0


# ---- what they cost ----


@linux
def test_a_smooth_function_moves_no_more_bytes_than_relu() -> None:
    """And is dearer in instructions, which decide where everything is in the cache."""
    relu = ACTIVATIONS["relu"]
    for name in ("mish", "silu", "gelu", "aptx"):
        for body in ("forward", "backward"):
            for dtype in (torch.float32, torch.bfloat16):
                moved = cost.bytes_moved(ACTIVATIONS[name], body, dtype)
                assert moved == cost.bytes_moved(relu, body, dtype)
        for isa, loop in forward_loops(name).items():
            assert loop.vector_instructions > 5 * forward_loops("relu")[isa].vector_instructions


@linux
def test_no_one_figure_says_how_much_slower_mish_is() -> None:
    """Between the ratio of the bytes and that of the instructions there is room for any figure."""
    mish, relu = (
        cost.bytes_moved(ACTIVATIONS[name], "forward", torch.float32) for name in ("mish", "relu")
    )
    assert mish == relu
    for isa, loop in forward_loops("mish").items():
        assert loop.vector_instructions > 7 * forward_loops("relu")[isa].vector_instructions


class Composed(nn.Module):
    """Mish as it was written before torch had it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(F.softplus(x))


def test_three_times_relus_memory_is_the_composed_forms() -> None:
    linear = nn.Linear(1024, 2)
    relu = kept(nn.ReLU(), linear)
    assert kept(Composed(), linear) == 3 * relu
    assert kept(nn.Mish(), linear) == 2 * relu
    assert kept(mishkit.Mish(), linear) == 2 * relu
    assert kept(mishkit.Mish(save="output"), linear) == (1 + 1 / 32) * relu


# ---- the page ----


on_the_page = pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not here")


@on_the_page
def test_the_page_names_these_tests_and_no_others() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text()))
    here = {name for name in globals() if name.startswith("test_")}
    assert named == {name for name in here if not name.startswith("test_the_page")}


@on_the_page
def test_the_page_gives_every_claim_a_source_a_verdict_and_a_test() -> None:
    sections = re.split(r"^### ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    assert len(sections) > 15
    for section in sections:
        title = section.splitlines()[0]
        verdicts = re.findall(
            r"^\*\*(?:True|False|True only if [^*]+)\.\*\*", section, re.MULTILINE
        )
        assert len(verdicts) == 1, title
        assert re.search(r"\]\[[\w-]*\]", section) or "Heard, no source found" in section, title
        assert re.search(r"`test_\w+`", section), title
