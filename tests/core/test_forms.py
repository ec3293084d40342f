"""The forms for export: each is the function, within the error that it states."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mishkit.activation import Activation
from mishkit.export import RUNTIMES, TorchWriter
from mishkit.forms import STANDARD, Form
from mishkit.functions import ACTIVATIONS
from mishkit.functions._fastest import FASTEST

NEWER = frozenset(("Gelu", "HardSwish", "Mish", "Swish"))
"""Operators that old opsets do not have."""
FORMS = [(a, form) for a in ACTIVATIONS.values() for form in a.forms]


def halves() -> Tensor:
    """Every finite float16."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    return x[x.isfinite()]


def singles() -> Tensor:
    """One float32 in 16,411, and a fine grid where functions bend. Close to the largest float32,
    where torch's own GELU and Hardswish overflow, there are none.
    """
    x = torch.arange(-(2**31), 2**31, 16411, dtype=torch.int64).to(torch.int32).view(torch.float32)
    return torch.cat([x[x.abs() < 5e37], torch.linspace(-40, 40, 100_001)])


def error(a: Activation, form: Form, x: Tensor) -> float:
    """The largest error over all opsets and published parameters, next to max(1, |f(x)|)."""
    worst = 0.0
    for parameters in {a.defaults, *(values for _, values in a.published)}:
        want = a.f(x.double(), *parameters)
        for lacks in (frozenset[str](), NEWER):
            y = form.write(TorchWriter(x, lacks), *parameters)
            is_number = want.abs() <= torch.finfo(x.dtype).max
            assert y.dtype == x.dtype and y[is_number].isfinite().all()
            errors = (y - want).abs() / want.abs().clamp_min(1)
            worst = max(worst, float(errors[is_number].max()))
    return worst


@pytest.mark.parametrize(("a", "form"), FORMS, ids=[f"{a.name}-{f.name}" for a, f in FORMS])
def test_a_form_is_as_exact_as_it_says_and_finite(a: Activation, form: Form) -> None:
    for stated, x in ((form.float32, singles()), (form.float16, halves())):
        measured = error(a, form, x)
        # What is stated is rounded up; processors differ in the last digits.
        assert measured <= stated, (measured, stated)
        assert stated <= 1.5 * measured, (measured, stated)


def test_forms_have_names_of_their_own_and_the_table_knows_them() -> None:
    for a in ACTIVATIONS.values():
        names = [form.name for form in a.forms]
        assert names[0] == STANDARD and len({*names}) == len(names)
        assert all(FASTEST[runtime].get(a.name, STANDARD) in names for runtime in RUNTIMES)
