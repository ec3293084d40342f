"""The error bars of every kernel, and of the float64 references that they are measured against."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from typing import ClassVar

import mpmath
import numpy as np
import pytest
import references
import torch
from common import (
    DEFAULTS,
    FURTHER,
    KERNELS,
    OTHERS,
    TRITON,
    TYPICAL,
    Case,
    Engine,
    every_case,
    every_function,
    every_shape,
    mostly_slow,
    shapes_mostly_slow,
)
from pairwise import pairwise

from mishkit.backends import cpu
from mishkit.functions import ACTIVATIONS
from mishkit.lab import LabError
from mishkit.lab.accuracy import sampled as accuracy
from mishkit.lab.accuracy.references import Reference

STRIDE = 16381
"""A quarter of a million float32 a function; `mishkit accuracy` takes more."""


def points() -> torch.Tensor:
    """A few hundred float64 values: the curve, both tails, every magnitude, joints and turns."""
    random = np.random.default_rng(0)
    parts = (
        random.normal(0, 3, 150),
        random.uniform(-110, 110, 100),
        random.uniform(-14, -3, 50),
        np.array([s * 10.0**e for e in range(-30, 31, 5) for s in (-1, 1)]),
        np.array([-3, -2, -1.5, 0, 1, 2, 3, 20]),
        np.array([case.turn for case in DEFAULTS if case.turn is not None]),
    )
    return torch.from_numpy(np.concatenate(parts))


def assert_slope(case: Case, at: float, value: float, error: float) -> None:
    """`value` is the slope there; at a joint, one between those of the two sides."""

    def slope(x: float) -> mpmath.mpf:
        return references.df(case.a.name, x, *case.parameters)

    if abs(value - slope(at)) > error:
        assert at == round(2 * at) / 2, "no joint is here"
        sides = slope(at - 1e-9), slope(at + 1e-9)
        assert min(sides) - 1e-8 <= value <= max(sides) + 1e-8, at


def size(case: Case, at: float) -> tuple[mpmath.mpf, mpmath.mpf]:
    """f there, and what its error is measured by: where f = 0 lies between two slopes, those."""
    true = references.f(case.a.name, at, *case.parameters)
    vanishes = any(references.limit(case.a.name, side, *case.parameters) == 0 for side in (-1, 1))
    return true, abs(true) if vanishes else max(abs(true), abs(at))


# ---- the references ------------------------------------------------------------------------------


@every_shape
def test_reference_f(case: Case) -> None:
    x = points()
    for at, value in zip(x.tolist(), case.exactly("f", x).tolist(), strict=True):
        true, scale = size(case, at)
        # A millionth of an ULP of float32, wherever float32 is not out of exponents.
        assert abs(value - true) <= 1e-13 * scale + 1e-45, at


@shapes_mostly_slow
def test_reference_df(case: Case) -> None:
    x = points()
    x = x[x.abs() < 200]
    for at, value in zip(x.tolist(), case.exactly("df", x).tolist(), strict=True):
        assert_slope(case, at, value, 1e-14)


INVERTED = DEFAULTS + OTHERS + FURTHER


@pytest.mark.parametrize("case", INVERTED, ids=str)
def test_reference_inverse(case: Case) -> None:
    """Held against a root that mpmath finds; beside the minimum f' is the most sensitive."""
    reference, turn = Reference(case.a, case.parameters), case.turn
    f = references.function(case.a.name)
    limits = [references.limit(case.a.name, side, *case.parameters) for side in (-1, 1)]
    near = torch.tensor([-40.0, -7.3, -2.1, -1.21, -1.0, -0.3, 1e-3, 0.7, 2.5, 17.0, 60.0])
    near = near.double()
    y = reference.f(near) * (1 + 2e-8)
    exact = reference.df_of_output(y, near)
    for at, value, gradient in zip(near.tolist(), y.tolist(), exact.tolist(), strict=True):
        bottom, top = limits
        if turn is not None:
            bottom, top = references.f(case.a.name, turn, *case.parameters), limits[at > turn]
        if not bottom < value < top:  # beyond the last value of a branch, where f is flat
            assert gradient == 0
            continue
        with mpmath.workdps(references.DIGITS):
            offset = mpmath.findroot(
                lambda d, at=at, value=value: f(at + d, *case.parameters) - value,
                (0, 1e-9 * (1 if turn is None else math.copysign(1, at - turn))),
                solver="secant",
                tol=1e-60,
            )
            x = float(at + offset)
        assert abs(gradient - references.df(case.a.name, x, *case.parameters)) <= 1e-7, at


def test_reference_inverse_beyond_the_range() -> None:
    reference = Reference(ACTIVATIONS["mish"], ())
    y = torch.tensor([-0.4, -0.4, -0.0, 0.0], dtype=torch.float64)
    near = torch.tensor([-1.1, -1.3, -90.0, -90.0], dtype=torch.float64)
    assert reference.df_of_output(y, near).tolist() == [0, 0, 0, 0]


# ---- the figures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "dtype", "spacing"),
    [
        (1.0, "float32", 2.0**-23),
        (-1.999, "float32", 2.0**-23),
        (0.999, "bfloat16", 2.0**-8),
        (65504.0, "float16", 32.0),
        (0.0, "float16", 2.0**-24),
        (1e-41, "float32", 2.0**-149),
    ],
)
def test_ulp(value: float, dtype: str, spacing: float) -> None:
    assert accuracy.ulp(np.array([value]), dtype) == spacing


def test_a_nan_is_an_infinite_error() -> None:
    errors = accuracy.Errors()
    errors.add(np.array([0.5, math.nan, 0.1]), np.array([1.0, 2.0, 3.0]))
    assert (errors.max, errors.at) == (math.inf, 2.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_inputs_are_all_there(dtype: str) -> None:
    (x,) = accuracy.inputs(dtype, stride=7)
    info = torch.finfo(accuracy.DTYPES[dtype])
    exponents = 2**5 if dtype == "float16" else 2**8
    assert x.numel() == 65536 - 2 * 65536 // 2 // exponents  # without ±inf and the NaNs
    assert x.max() == info.max and x.min() == info.min
    assert x.view(torch.int16).unique().numel() == x.numel()


def test_float32_inputs_stride_over_bit_patterns() -> None:
    x = torch.cat(list(accuracy.inputs("float32", stride=65537)))
    patterns = x.view(torch.int32).long() & 0xFFFFFFFF
    assert (patterns % 65537 == 0).all()
    assert x.numel() == pytest.approx(2**32 / 65537 * 255 / 256, rel=1e-3)


# ---- the kernels ---------------------------------------------------------------------------------


def assert_bars(result: accuracy.Accuracy, engine: str = "") -> None:
    missed = [f"{f.claim} {f.bar}: {f.text}" for f in accuracy.findings(result) if not f.met]
    assert not missed, engine


class Shared(Reference):
    """A reference that inverts an output once for all instruction sets, few of which differ."""

    known: ClassVar[dict[bytes, tuple[torch.Tensor, torch.Tensor]]] = {}
    """Outputs and their gradients by the inputs."""

    def df_of_output(self, y: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
        key = near.numpy().tobytes()
        if key not in self.known:
            self.known[key] = y, super().df_of_output(y, near)
        known_y, known_gradient = self.known[key]
        differs = known_y != y
        gradient = known_gradient.clone()
        gradient[differs] = super().df_of_output(y[differs], near[differs])
        return gradient


every_sweep = pytest.mark.parametrize("dtype", accuracy.DTYPES)


# Each function in each type of each instruction set is a kernel of its own.
@every_sweep
@every_function
@pytest.mark.skipif(not KERNELS, reason="no kernels here")
def test_kernels(case: Case, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "Reference", Shared)
    monkeypatch.setattr(Shared, "known", {})
    for engine in KERNELS:
        with cpu.using(engine.name):
            assert_bars(accuracy.measure(case.a, dtype, stride=STRIDE), engine.name)


def assert_decodes(result: accuracy.Accuracy, steepest: float) -> None:
    """The gradients from the output are as good as an exact inverse's, but for rounding."""
    assert result.decoder.max <= accuracy.BAR_DECODER * result.inverse.max + 2e-6 * steepest
    if result.is_half:
        # N(0, 1) may see little of the curve; less than rounding the gradient costs is no matter.
        decoder, inverse = result.decoder_square.mean**0.5, result.inverse_square.mean**0.5
        rounding = torch.finfo(accuracy.DTYPES[result.dtype]).eps / 8
        assert decoder <= accuracy.BAR_DECODER * inverse + rounding


def steepest(case: Case) -> float:
    return max(1, case.exactly("df", points()).abs().max().item())


@pairwise(
    {
        "kernels": KERNELS,
        "case": [case for case in INVERTED if case not in DEFAULTS],
        "dtype": list(accuracy.DTYPES),
    }
)
def test_kernels_with_other_parameters(case: Case, dtype: str, kernels: Engine) -> None:
    """The slopes in units of the steepest; the values are in test_values."""
    unit = steepest(case)
    result = accuracy.measure(case.a, dtype, *case.parameters, stride=65537)
    assert not result.broken_limits
    assert_decodes(result, unit)
    if dtype == "float32":
        assert result.df_abs.max <= 2 * accuracy.BAR_DF * unit
        assert result.df_y_abs.max <= accuracy.BAR_DF_Y * unit


@every_sweep
@pytest.mark.parametrize(
    "case",
    mostly_slow([c for c in INVERTED if not c.a.iterates(*c.parameters)], TYPICAL),
    ids=str,
)
def test_plain_torch_decodes_as_well(case: Case, dtype: str) -> None:
    result = accuracy.measure(case.a, dtype, *case.parameters, backend="torch", stride=65537)
    assert not result.broken_limits
    assert_decodes(result, steepest(case))


@every_case
def test_float64_kernels(case: Case, kernels: Engine) -> None:
    """Against mpmath: float64 has no better reference, and needs no sweep of its own."""
    x = points()
    y, side = kernels.operator(case, "_packed")(x)
    ones = torch.ones_like(x)
    gradients = kernels.operator(case, "_backward")(ones, x)
    decoded = kernels.operator(case, "_backward_packed")(ones, y, side)
    for at, *got in zip(*(t.tolist() for t in (x, y, gradients, decoded)), strict=True):
        value, gradient, from_output = got
        true, scale = size(case, at)
        # In gelu's tail a rounding of x² in the exponent grows by x²/2.
        assert abs(value - true) <= 1e-12 * scale + 1e-300, at
        if abs(at) < 200:
            assert_slope(case, at, gradient, 1e-14)
            # Rounding y costs √(f″·spacing) at the minimum, and next to nothing elsewhere.
            assert_slope(case, at, from_output, 5e-8 if abs(gradient) < 1e-6 else 1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not TRITON, reason="Triton is not installed")
@pytest.mark.parametrize("name", mostly_slow(["mish", "hardswish"], ["hardswish"]))
def test_triton(name: str) -> None:
    """One that is inverted by a table, and one in closed form."""
    stride = accuracy.default_stride("triton")
    results = list(accuracy.run(accuracy.Settings([name], backend="triton", stride=stride)))
    assert [result.dtype for result in results] == list(accuracy.DTYPES)
    for result in results:
        assert_bars(result)


# ---- the bars can be missed ----------------------------------------------------------------------


class Off(accuracy.Kernels):
    """Kernels with one flaw."""

    flaw = ""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        if self.flaw == "f":
            return torch.where(x.abs() < 3, y * (1 + 6 * torch.finfo(y.dtype).eps), y)
        if self.flaw == "tail":
            return torch.where(x < -87, y - 2e-36, y)
        return y.abs() if self.flaw == "sign of zero" else y

    def backward(self, x: torch.Tensor) -> torch.Tensor:
        return super().backward(x) + (1e-6 if self.flaw == "df" else 0)

    def backward_packed(
        self, y: torch.Tensor, side: torch.Tensor, grad: float = 1.0
    ) -> torch.Tensor:
        wrong = {"side": ~side, "df_y": side}.get(self.flaw, side)
        g = super().backward_packed(y, wrong, grad)
        return g * (1 + (2 if y.dtype == torch.float32 else 4) * 1e-3) if self.flaw == "df_y" else g


@pytest.mark.parametrize(
    ("flaw", "dtype", "bar"),
    [
        ("f", "float32", "f, maximum"),
        ("f", "float16", "f, maximum"),
        ("tail", "float32", "f in the tail, absolute"),
        ("sign of zero", "bfloat16", "limits at ±inf and NaN"),
        ("df", "float32", "df, absolute"),
        ("df_y", "float32", "df_y beyond the rounding of y"),
        ("df_y", "bfloat16", "decoder ÷ exact inverse, rms"),
        ("df_y", "float16", "decoder ÷ exact inverse, rms"),
        ("side", "float32", "df_y beyond the rounding of y"),
        ("side", "bfloat16", "decoder ÷ exact inverse, maximum"),
    ],
)
def test_a_flaw_is_found(flaw: str, dtype: str, bar: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "Kernels", Off)
    monkeypatch.setattr(Off, "flaw", flaw)
    result = accuracy.measure(ACTIVATIONS["mish"], dtype, stride=65537)
    missed = [finding.claim for finding in accuracy.findings(result) if not finding.met]
    assert bar in missed
    row = next(v for v in accuracy.verdicts([result]) if v.claim == f"{dtype}: {bar}")
    assert row.word == "MISSED" and "mish" in row.measured


# ---- the command ---------------------------------------------------------------------------------


def test_exit_status(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = accuracy.Settings(functions=["relu"], dtypes=["bfloat16"], backend="torch")
    assert accuracy.main(settings) == 0
    said = capsys.readouterr().out
    assert "bfloat16: f, maximum" in said and "met" in said and "MISSED" not in said
    monkeypatch.setattr(accuracy, "BAR_F_MAX_ULP", {"bfloat16": -1.0})
    assert accuracy.main(settings) == 1
    assert "MISSED" in capsys.readouterr().out


@pytest.mark.skipif(not TRITON, reason="Triton is not installed")
def test_the_table_says_where_triton_ran(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = accuracy.Settings(["relu"], ["bfloat16"], backend="triton")
    monkeypatch.setattr(accuracy, "measure", lambda a, dtype, **_: accuracy.Accuracy(a.name, dtype))
    for is_there, words in ((False, "in its interpreter, not on a GPU"), (True, "on some GPU")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda is_there=is_there: is_there)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "some GPU")
        if not (is_there or interpreted_from_the_start()):
            continue
        assert accuracy.main(settings) == 0
        assert f"Triton kernels {words}" in capsys.readouterr().out


def interpreted_from_the_start() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


def test_triton_needs_its_interpreter_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    language = pytest.importorskip("triton.language")
    monkeypatch.setattr(language, "sum", None)  # as a compiler's
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LabError, match="set TRITON_INTERPRET=1 from the start"):
        list(accuracy.run(accuracy.Settings(["relu"], backend="triton")))


def test_triton_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LabError, match="Triton is not installed"):
        accuracy.Settings(backend="triton")


@pytest.mark.parametrize(
    "wrong",
    [
        {"functions": ["mush"]},
        {"dtypes": ["int8"]},
        {"isa": "mmx"},
        {"backend": "cuda"},
        {"backend": "torch", "isa": "avx2"},
        {"backend": "triton", "isa": "avx2"},
        {"stride": 0},
    ],
)
def test_misuse(wrong: dict[str, object]) -> None:
    with pytest.raises(LabError):
        dataclasses.replace(accuracy.Settings(backend="torch"), **{"backend": "cpu", **wrong})
